"""Parallel decoders draw from the distribution of plain decoding: every sequence of a tiny model is enumerated.

The rules run over a table of logits for each context, and over a transformer. Known mistakes of other decoders are planted in a
copy of a rule, and must be seen.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from scipy.stats import chi2

from mmgen.decoding import autoregressive, parallel
from mmgen.decoding.autoregressive import Carry, Request, Settings, decode_params
from mmgen.decoding.coupling import agreed, maximal
from mmgen.decoding.jacobi import INITS, Jacobi, Start
from mmgen.decoding.speculative import Speculative
from mmgen.decoding.target import Filter, noise, target
from mmgen.decoding.window import Windowed, at
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig, TokenLayout
from mmgen.model.heads import choose

pytestmark = pytest.mark.statistics

V, N, ROWS, WINDOW = 3, 5, 60_000, 3
LEVEL = 1e-4
CONFIG = GeneratorConfig(
    layout=TokenLayout("sequence", 1, N, V),
    condition=ClassCondition(1),
    block=BlockConfig(width=8, heads=1, mlp=8, position="rope_1d"),
    depth=1,
)
WHICH = Filter(guided=True, top_k=0, nucleus=True)
SETTINGS = Settings(jnp.linspace(1.2, 1.8, N), jnp.float32(1.2), jnp.float32(0.9))
SEQUENCES = np.array(list(itertools.product(range(V), repeat=N)))


class Table:
    """In place of a transformer: `params` [2, contexts, V] are logits, conditional and unconditional, for each context."""

    def begin(self, r: Request) -> Carry:
        tokens = jnp.zeros((len(r.index), N + 1), jnp.int32)
        scores, _ = self.scores(r, tokens, tokens[:, 0], None, ())
        first = choose(scores[:, :1], noise(r.key, r.index, jnp.arange(1), (V,)))
        return Carry(tokens.at[:, :1].set(first), (), jnp.ones((len(r.index), 1), bool), r.index, jnp.int32(0))

    def scores(self, r: Request, tokens, site, valid, cache):
        sites = jnp.minimum(site[:, None] + jnp.arange(self.window), N - 1)
        pair = r.params[:, contexts(tokens, sites)]
        return target(*pair, SETTINGS.guidance[sites][..., None], SETTINGS.temperature, SETTINGS.top_p, WHICH), cache


def contexts(tokens, sites):
    """The row of the table for what stands before each site."""
    digits = jnp.pad(jnp.cumsum(tokens[:, :N] * V ** np.arange(N), axis=1), ((0, 0), (1, 0)))
    return jnp.asarray((V ** np.arange(N) - 1) // (V - 1))[sites] + at(digits, sites)


class TableJacobi(Table, Jacobi):
    pass


class TableDraft(Table, Windowed):
    pass


class TableSpeculative(Table, Speculative):
    def __init__(self, *args):
        super().__init__(*args)
        self.draft = TableDraft(CONFIG, jnp.float32, 1)


def logits(seed: int, like: np.ndarray | None = None) -> np.ndarray:
    """A table of random logits; a draft's are near those of the model that it drafts for."""
    own = np.random.default_rng(seed).normal(scale=0.6, size=(2, (V**N - 1) // (V - 1), V)).astype(np.float32)
    return own if like is None else like + own


TABLE = logits(0)


def joint(pair: np.ndarray) -> np.ndarray:
    """Exact probabilities of SEQUENCES, from the logits [2, 243, N, V] of every site."""
    scores = target(*pair, SETTINGS.guidance[:, None], SETTINGS.temperature, SETTINGS.top_p, WHICH)
    law = np.asarray(jax.nn.softmax(scores, axis=-1), np.float64)
    return np.take_along_axis(law, SEQUENCES[..., None], -1).prod((1, 2))


@pytest.fixture(scope="module")
def table_joint() -> np.ndarray:
    sites = jnp.tile(jnp.arange(N), (len(SEQUENCES), 1))
    return joint(TABLE[:, contexts(jnp.asarray(SEQUENCES), sites)])


def p_value(tokens: np.ndarray, probability: np.ndarray) -> float:
    """Chi-square over the sequences, the rare ones in one cell with the first; 0 where one that cannot be was drawn."""
    observed = np.bincount(np.asarray(tokens) @ V ** np.arange(N)[::-1], minlength=V**N)
    expected = len(tokens) * probability
    if observed[expected == 0].any():
        return 0.0
    cell = np.where(expected < 10, 0, np.arange(V**N))
    observed, expected = (np.bincount(cell, counts)[np.unique(cell)] for counts in (observed, expected))
    assert len(expected) > 150, "the joint distribution is too narrow to tell anything"
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))


def sample(decoder, params: list, batches: list[dict] | None = None, rows: int = ROWS):
    """A jitted (seed, what Jacobi begins from, what goes wrong) -> tokens [rows, N] of as many samples in one batch."""
    batches = batches or [{}] * len(params)

    # These programs compute for longer than they compile: not with conftest's level 0.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def run(params, seed, init, mistake):
        decoder.mistake = mistake
        index, key = jnp.arange(rows, dtype=jnp.uint32), jax.random.key(seed)
        requests = [Request(p, batch, index, key, SETTINGS, WHICH) for p, batch in zip(params, batches, strict=True)]
        start = (Start(init, jnp.ones((rows, N), jnp.int32)),) if isinstance(decoder, Jacobi) else ()
        return decoder.decode(*requests, *start)[0]

    return lambda seed=0, init=0, mistake=0: run(params, seed, np.int32(init), np.int32(mistake))


@pytest.fixture(autouse=True)
def cheaper_noise(monkeypatch):
    """The same for all rows at once: that noise belongs to a picture is tested elsewhere."""

    def noise(key, index, site, shape):
        draws = jax.vmap(lambda n: jax.random.gumbel(jax.random.fold_in(key, n), (len(index), *shape)))(site)
        return jnp.moveaxis(draws, 0, 1)

    for module in (parallel, autoregressive):
        monkeypatch.setattr(module, "noise", noise)


def test_jacobi_with_maximal_coupling(table_joint):
    """Whatever it begins from."""
    inits = range(len(INITS) + 1)
    draw = sample(TableJacobi(CONFIG, jnp.float32, WINDOW, "maximal"), [TABLE], rows=ROWS // len(inits))
    assert p_value(np.concatenate([draw(seed=init, init=init) for init in inits]), table_joint) > LEVEL


def test_speculation_with_maximal_coupling(table_joint):
    decoder = TableSpeculative(CONFIG, jnp.float32, CONFIG, jnp.float32, WINDOW, "maximal")
    assert p_value(sample(decoder, [TABLE, logits(1, TABLE)])(), table_joint) > LEVEL


# Mistakes ----------------------------------------------------------------------------------------------------------


class Mistaken(TableJacobi):
    """One program for all: `self.mistake` numbers what goes wrong; 0: nothing."""

    MISTAKES = (
        "none",
        "the law of a kept draft stays that of its first draw",  # SCD's release
        "the same before the first change, and a batch goes on with its slowest row",  # SJD's
        "top-p applied to the rest",
        "the last token of a window from raw logits",
        "noise of one site for all of a window",
        "the conditional row alone tested",
    )

    def wrong(self, number: int, instead, right):
        return jnp.where(self.mistake == number, instead, right)

    def scores(self, r: Request, tokens, site, valid, cache):
        right, cache = super().scores(r, tokens, site, valid, cache)
        raw = r.params[0, contexts(tokens, jnp.minimum(site[:, None] + jnp.arange(self.window), N - 1))]
        self.unguided = target(raw, None, 1.0, SETTINGS.temperature, SETTINGS.top_p, Filter(False, 0, True))
        return right.at[:, -1].set(self.wrong(4, raw[:, -1], right[:, -1])), cache

    def fresh_noise(self, *args):
        right = super().fresh_noise(*args)
        return self.wrong(5, right[:, :1], right)

    def maximal(self, scores, drafts, law, fresh):
        tokens, p = maximal(scores, drafts, law, fresh)
        kept = tokens[:, :-1] == drafts
        front = jnp.cumprod(kept, axis=1)
        stale = self.wrong(1, kept, self.wrong(2, front, 0))[..., None]
        p_after = p.at[:, :-1].set(jnp.where(stale, law, p[:, :-1]))
        rest = jnp.log(jnp.maximum(p[:, :-1] - law, 0))
        filtered = choose(target(rest, None, 1.0, 1.0, jnp.float32(0.7), Filter(False, 0, True)), fresh[:, :-1, :-1])
        anew = maximal(scores, drafts, law, fresh.at[..., -1].set(-jnp.inf))[0][:, :-1]  # nothing is kept
        tested = maximal(self.unguided, drafts, law, fresh)[0][:, :-1] == drafts
        front_tokens = self.wrong(3, jnp.where(kept, drafts, filtered), tokens[:, :-1])
        front_tokens = self.wrong(6, jnp.where(tested, drafts, anew), front_tokens)
        return tokens.at[:, :-1].set(front_tokens), p_after

    def agreed(self, tokens, drafts):
        right = agreed(tokens, drafts)
        return self.wrong(2, jnp.repeat(right.reshape(-1, 2).min(1), 2), right)


def test_mistakes_are_seen(table_joint, monkeypatch):
    decoder = Mistaken(CONFIG, jnp.float32, WINDOW, "maximal")
    monkeypatch.setattr(parallel, "maximal", decoder.maximal)
    monkeypatch.setattr(parallel, "agreed", decoder.agreed)
    draw = sample(decoder, [TABLE], rows=ROWS // 3)
    p = [p_value(draw(seed=1, init=INITS.index("left"), mistake=i), table_joint) for i in range(len(Mistaken.MISTAKES))]
    assert p[0] > LEVEL
    assert max(p[1:]) < LEVEL, dict(zip(Mistaken.MISTAKES, p, strict=True))


# Transformers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> tuple[list[dict], np.ndarray]:
    """Parameters of a model and of a draft, small enough that all sequences are likely; the model's joint distribution."""
    fresh = transformer.init(CONFIG, jax.random.key(0))
    params = [jax.tree.map(lambda p: 0.7 * p, plans.randomized(fresh, seed)) for seed in range(2)]
    ids, label = np.concatenate([SEQUENCES] * 2), np.repeat([0, 1], len(SEQUENCES))
    forward = jax.jit(lambda p: transformer.forward(CONFIG, p, {"ids": ids, "label": label}, dtype=jnp.bfloat16))
    return params, joint(forward(params[0]).reshape(2, -1, N, V))


@pytest.mark.parametrize("name", ["gumbel", "maximal", "speculative"])
def test_transformers_in_bfloat16(name, models):
    """Whose logits differ by rounding from those of teacher forcing."""
    dtype, (params, expected) = jnp.bfloat16, models
    if name == "speculative":
        decoder = Speculative(CONFIG, dtype, CONFIG, dtype, WINDOW, "maximal")
    else:
        decoder, params = Jacobi(CONFIG, dtype, WINDOW, name), params[:1]
    batch = {"label": jnp.repeat(jnp.arange(2), ROWS)}
    tokens = sample(decoder, [decode_params(CONFIG, p, dtype) for p in params], [batch] * len(params))()
    assert p_value(tokens, expected) > LEVEL
