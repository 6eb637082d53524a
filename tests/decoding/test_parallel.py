"""Parallel decoders give the tokens of plain decoding, in fewer forwards."""

import dataclasses
import re

import jax
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.decoding import parallel, window
from mmgen.decoding.choice import auto_window
from mmgen.decoding.jacobi import INITS
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import (
    BlockConfig,
    ClassCondition,
    FeatureCondition,
    GeneratorConfig,
    Masked,
    NextNeighbor,
    NextToken,
    RandomOrder,
    TextCondition,
    TokenLayout,
)

N = 12
RASTER = GeneratorConfig(
    layout=TokenLayout(height=3, width=4, codebook_size=7),
    condition=ClassCondition(3),
    block=BlockConfig(width=16, heads=2, mlp=24),
    depth=2,
)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
GUIDED = ({"guidance": 3.0, "temperature": 3.0}, {"guidance": np.linspace(1, 4, N), "temperature": 2.0})  # one program
FILTERED = {"temperature": 1.3, "top_k": 3, "top_p": 0.9}
JACOBI = {"decoder": "jacobi", "window": 3}


class Words:
    """Stands for a SentencePiece model: a number a letter, padded on the left."""

    def encode(self, texts, length):
        rows = [[0] * (length - len(text) - 1) + [1, *(2 + ord(letter) % 7 for letter in text)] for text in texts]
        return np.array(rows), np.array(rows) > 0


def generator(c: GeneratorConfig, seed: int = 0) -> Generator:
    return Generator(c, plans.parameters(c, seed), text=Words())


@pytest.fixture(scope="module", autouse=True)
def poison():
    """Every slot's cache row is poisoned first: one that is read before it is written gives NaN or 1e9."""
    start = window.Windowed.start

    def poisoned(*args):
        carry = start(*args)
        return carry._replace(cache=tuple((k + np.nan, v + 1e9) for k, v in carry.cache))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window.Windowed, "start", poisoned)
        yield


@pytest.fixture(scope="module")
def raster() -> Generator:
    return generator(RASTER)


@pytest.fixture(scope="module")
def plain(raster) -> list[np.ndarray]:
    """Tokens of plain decoding, for each of the guided settings."""
    tokens = [raster.generate(labels=LABELS, seed=3, **settings).tokens for settings in GUIDED]
    assert all(len({row.tobytes() for row in rows}) == len(LABELS) for rows in tokens)
    return tokens


def test_jacobi_gives_the_tokens_of_plain_decoding(raster, plain):
    """From any drafts, by one program; rows of a batch go on at their own pace."""
    for settings, expected in zip(GUIDED, plain, strict=True):
        for init in (*INITS, np.random.default_rng(0).integers(7, size=(3, N))):
            out = raster.generate(labels=LABELS[:3], seed=3, **settings, **JACOBI, init=init)
            np.testing.assert_array_equal(out.tokens, expected[:3])
            assert 1 + (N - 1) / 3 <= out.forwards <= N
    programs = [program for (machine, _), program in raster._programs.compiled.items() if getattr(machine, "window", 0) == 3]
    assert [program._cache_size() for program in programs] == [1]


@pytest.mark.parametrize(("rows", "width"), [(1, 2), (8, 8)])
def test_batches_of_other_sizes(raster, plain, rows, width):
    out = raster.generate(labels=LABELS[:rows], seed=3, **GUIDED[0], decoder="jacobi", window=width)
    np.testing.assert_array_equal(out.tokens, plain[0][:rows])


def test_without_guidance_with_filters_and_a_window_beyond_the_picture(raster):
    asked = {"labels": LABELS[:3], "seed": 1, **FILTERED}
    out = raster.generate(**asked, decoder="jacobi", window=N + 3)
    np.testing.assert_array_equal(out.tokens, raster.generate(**asked).tokens)
    assert raster.generate(**asked, decoder="jacobi", window=N + 3, init=out.tokens).forwards == 2


def test_filters_of_what_guidance_made(raster):
    asked = {"labels": LABELS[:3], "seed": 2, "guidance": 2.0, **FILTERED}
    out = raster.generate(**asked, decoder="speculative", window=2, draft=generator(RASTER, seed=1))
    np.testing.assert_array_equal(out.tokens, raster.generate(**asked).tokens)


def test_the_fewest_and_the_most_forwards(raster, plain):
    asked = {"labels": LABELS[:3], "seed": 3, **GUIDED[0], **JACOBI}
    best, worst = (raster.generate(**asked, init=(plain[0][:3] + wrong) % 7) for wrong in (0, 1))
    assert best.forwards == -(-(N - 1) // 3) + 1
    assert worst.forwards <= N
    for out in (best, worst):
        np.testing.assert_array_equal(out.tokens, plain[0][:3])


SEQUENCE = GeneratorConfig(
    layout=TokenLayout("sequence", 1, N, 7), condition=TextCondition(9, 6), depth=1,
    block=BlockConfig(width=16, heads=2, mlp=24, position="rope_1d"),
)  # fmt: skip
GROUPS = dataclasses.replace(
    RASTER,
    plan=NextToken(order=(5, 0, 11, 2, 3, 9, 10, 1, 7, 8, 4, 6)),
    layout=TokenLayout(height=3, width=4, codebook_size=3, groups=2),
    condition=FeatureCondition(5, 4),
    depth=1,
)
FEATURES = {"features": np.random.default_rng(0).normal(size=(3, 4, 5)), "features_mask": np.tri(4, dtype=bool)[1:, ::-1]}
# Each sample goes through the sites that are known first.
RANDOM = dataclasses.replace(RASTER, plan=RandomOrder(), depth=1)
KNOWN = {"labels": [0, 1, 2], "known": np.arange(N) % 7, "known_mask": np.random.default_rng(1).random((3, N)) < 0.3}


@pytest.mark.parametrize(
    ("c", "condition"),
    [(SEQUENCE, {"prompts": ["a", "abc", ""]}), (GROUPS, FEATURES), (RANDOM, KNOWN)],
    ids=["sequence, prompts", "order, groups, features", "known tokens"],
)
def test_models_of_other_kinds(c, condition):
    gen = generator(c)
    asked = {**condition, **GUIDED[0]}
    out = gen.generate(**asked, decoder="jacobi", window=4)
    np.testing.assert_array_equal(out.tokens, gen.generate(**asked).tokens)
    assert gen.generate(**asked, decoder="jacobi", window=4, init=out.tokens).forwards == 4


def test_speculation_gives_the_tokens_of_plain_decoding(raster, plain):
    """Whatever the draft; one that is always right shows that its cache has no gap behind windows of which all was kept."""
    stranger = generator(RASTER, seed=1)
    for settings, expected in zip(GUIDED, plain, strict=True):
        asked = {"labels": LABELS[:3], "seed": 3, **settings, "decoder": "speculative", "window": 3}
        for draft, most in ((stranger, N), (raster, -(-(N - 1) // 3) + 1)):
            out = raster.generate(**asked, draft=draft)
            np.testing.assert_array_equal(out.tokens, expected[:3])
            assert out.forwards <= most


def test_a_picture_does_not_depend_on_its_batch(raster):
    """Nor, with maximal coupling, on how long the others take."""
    asked = {"seed": 1, **GUIDED[0], **JACOBI, "coupling": "maximal"}
    tokens = [raster.generate(labels=labels, **asked).tokens for labels in ([0, 1, 2], [2, 1, 1])]
    np.testing.assert_array_equal(tokens[0][1], tokens[1][1])
    assert (tokens[0][0] != tokens[1][0]).any()


@pytest.mark.parametrize("options", [{}, JACOBI])
def test_a_stream_shows_the_tokens_as_they_come(raster, plain, options):
    seen = list(raster.stream(labels=LABELS[:3], seed=3, every=2, **GUIDED[0], **options))
    before = np.zeros((3, N), bool)
    for tokens, done in seen:
        assert (done >= before).all() and (done.sum() > before.sum())
        np.testing.assert_array_equal(tokens[done], plain[0][:3][done])
        before = done
    assert len(seen) <= N // 2 and seen[-1].done.all() and not seen[0].done.all()


def test_a_stream_is_computed_ahead_once_it_goes_on(raster, monkeypatch):
    programs, begun = raster._programs, []
    looks = programs.looks
    monkeypatch.setattr(programs, "looks", lambda *args: (begun.append(0) or look for look in looks(*args)))
    stream = raster.stream(labels=LABELS[:3], every=4, **GUIDED[0])
    assert [len(begun) for _ in stream] == [1, 3, 4]


def test_what_cannot_be_streamed_is_refused(raster, monkeypatch):
    with pytest.raises(UserError, match="every 0"):
        raster.stream(labels=[0], every=0)
    monkeypatch.setattr(Generator, "rows_at_once", 2)
    with pytest.raises(UserError, match="3 pictures do not fit in one stream: ask for at most 2"):
        raster.stream(labels=[0, 1, 2])
    masked = dataclasses.replace(RASTER, plan=Masked(), depth=1)
    with pytest.raises(UserError, match="masked model"):
        generator(masked).stream(labels=[0])
    with pytest.raises(UserError, match="not Masked"):
        generator(masked).generate(labels=[0], decoder="jacobi", window=2)


@pytest.mark.parametrize(
    ("decoder", "rows", "slots"),
    [("autoregressive", 4, [12]), ("jacobi", 4, [15]), ("jacobi", 1, [15]), ("speculative", 4, [15, 13])],
)
def test_the_loop_copies_no_cache(decoder, rows, slots, monkeypatch):
    """Read from the optimised program; what stands in its entry computation runs once."""
    gen, lowered, jit = generator(RASTER), [], jax.jit
    options = {} if decoder == "autoregressive" else {**JACOBI, "decoder": decoder}
    options |= {"draft": generator(RASTER, seed=1)} if decoder == "speculative" else {}

    def lowering(fun, **options):
        program = jit(fun, **options)
        return lambda *args: lowered.append(program.lower(*args)) or program(*args)

    monkeypatch.setattr(jax, "jit", lowering)
    gen.generate(labels=LABELS[:rows], **GUIDED[0], **options)
    loop = lowered[-1].compile().as_text().partition("ENTRY")[0]
    for room in slots:  # 1 + 11 and room for the last window, which has one site for a draft model
        cache = rf"f32\[{2 * rows},2,{room},8\]"  # guided pairs, 2 heads, slots, head dim
        assert re.search(rf"= {cache}\S* (dynamic-update-slice|scatter|fusion)\(", loop)
        assert not re.findall(rf"= {cache}\S* copy\(", loop)


def test_memory_of_a_picture(raster):
    narrow, wide = (parallel.Parallel(RASTER, raster.dtype, width, "gumbel").row_bytes() for width in (2, 8))
    assert narrow - raster._decoder.row_bytes() > 4 * N * 7 and wide - narrow > 32 * 6 * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "jacoby"}, "Did you mean 'jacobi'"),
        ({"decoder": "jacobi", "window": 1}, "window 1 must be 2 or more"),
        ({"decoder": "jacobi", "window": "wide"}, "window 'wide' must be 2 or more"),
        ({"decoder": "jacobi", "init": "lest"}, "Did you mean 'left'"),
        ({"decoder": "jacobi", "init": np.zeros((1, N))}, r"give tokens \(3, 12\)"),
        ({"decoder": "jacobi", "init": np.full((3, N), 7)}, r"tokens in 0 \.\. 6"),
        ({"decoder": "jacobi", "coupling": "maximum"}, "Did you mean 'maximal'"),
        ({"window": 4}, "window is a setting of decoder 'jacobi' or 'speculative'"),
        ({"decoder": "speculative", "init": "left"}, "init is a setting of decoder 'jacobi'"),
        ({"decoder": "speculative"}, "needs a draft"),
        ({"seed": 1 << 32}, r"seed 4294967296 must be a whole number in 0 \.\. 4294967295"),
    ],
)
def test_options_that_do_not_fit_are_refused(raster, options, message):
    with pytest.raises(UserError, match=message):
        raster.generate(labels=[0, 1, 2], **options)


def test_models_that_do_not_fit_are_refused(raster):
    for kind in ("neighbor", "scale"):
        gen = generator(plans.config(kind))
        with pytest.raises(UserError, match='not Next.*: use decoder="autoregressive"'):
            gen.generate(labels=[0], decoder="jacobi", window=3)
    other = generator(dataclasses.replace(RASTER, layout=TokenLayout(height=3, width=4, codebook_size=5)))
    with pytest.raises(UserError, match="3 x 4 = 12 ids of 5 codes, this generator 3 x 4 = 12 ids of 7 codes"):
        raster.generate(labels=[0], decoder="speculative", draft=other)
    assert not window.is_sequential(NextNeighbor().build(RASTER.layout, 1))
    with pytest.raises(UserError, match="predicts in another order"):
        raster.generate(
            labels=[0],
            decoder="speculative",
            draft=generator(dataclasses.replace(RASTER, plan=NextToken(order=GROUPS.plan.order))),
        )


def test_a_draft_of_another_tokenizer_is_refused(raster, monkeypatch):
    draft = generator(RASTER, seed=1)
    for number, gen in enumerate((raster, draft)):
        monkeypatch.setattr(gen, "tokenizer", type("Tokenizer", (), {"fingerprint": f"print{number}"}))
    with pytest.raises(UserError, match=r"another tokenizer \(print1\) than this generator \(print0\)"):
        raster.generate(labels=[0], decoder="speculative", draft=draft)


def test_the_window_that_suits_a_device(monkeypatch):
    """Wide where weights are what a forward reads, narrow where many rows share them."""
    c = GeneratorConfig(
        layout=TokenLayout(height=24, width=24, codebook_size=16384), depth=24, block=BlockConfig(1024, 16, mlp=2816)
    )
    gen = jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))
    params = {"layers": gen["blocks"], "ends": gen["ends"]}
    device = type("Device", (), {"device_kind": "NVIDIA H200"})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    windows = [auto_window(c, params, 2 * batch, 2) for batch in (1, 4, 16, 64)]
    # of 96, 30, 13 and 9.1 free sites, the first cut to the largest window
    assert windows == [64, 16, 8, 8]
    device.device_kind = "TPU v6 lite"
    assert auto_window(c, params, 32, 2) > windows[2]
