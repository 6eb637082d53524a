"""Step-by-step decoding over the cache equals one teacher-forced pass, for every kind of plan."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from mmgen.decoding import autoregressive
from mmgen.decoding.target import Filter, noise
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig, NextNeighbor, NextToken, TextCondition, TokenLayout


def raster(**block) -> GeneratorConfig:
    return GeneratorConfig(
        layout=TokenLayout(height=3, width=4, codebook_size=5),
        condition=ClassCondition(3),
        block=BlockConfig(width=16, heads=2, mlp=24, **block),
        depth=2,
    )


CONFIGS = {
    "raster": raster(),
    "order-1d-grouped-queries-qk-norm": dataclasses.replace(
        raster(kv_heads=1, qk_norm=True, position="rope_1d"), plan=NextToken(order=(7, 2, 11, 0, 5, 9, 1, 8, 3, 10, 4, 6))
    ),
    "new": plans.config("new"),
    "sub-tokens": dataclasses.replace(raster(), layout=TokenLayout(height=3, width=4, codebook_size=5, groups=3)),
    "neighbor": plans.config("neighbor"),
    "random": dataclasses.replace(plans.config("random", **plans.RAR), condition=ClassCondition(3, prefix=2)),
    "scale": plans.config("scale"),
    "scale-var": plans.config("scale", **plans.VAR, modulation="block"),
    "scale-var-shared": plans.config("scale", **plans.VAR, modulation="shared"),
}


def generator(name: str) -> Generator:
    return Generator(CONFIGS[name], plans.parameters(CONFIGS[name]))


@pytest.fixture(scope="module")
def raster_generator() -> Generator:
    return generator("raster")


def test_programs_that_are_kept_do_not_keep_the_weights(raster_generator):
    copy = raster_generator.copied(jax.tree.map(jnp.copy, raster_generator.params))  # as training does for each preview
    copy.generate(labels=[0], top_k=2)  # a program that no other test has made before
    held = weakref.ref(copy)
    del copy
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_logits_equal_the_full_forward_at_every_site(name, monkeypatch):
    """Every slot's cache row is poisoned first: reading one too early gives NaN or 1e9."""
    c = CONFIGS[name]
    seen = {}

    def record(t, *pair):
        seen[int(t)] = [np.asarray(logits) for logits in pair]

    def spy(conditional, unconditional, guidance, *rest):
        jax.debug.callback(record, guidance - 2, conditional, unconditional)
        return conditional

    def poisoned(*args):
        return tuple((k + jnp.nan, v + 1e9) for k, v in empty(*args))

    empty = autoregressive.empty_cache
    monkeypatch.setattr(autoregressive, "empty_cache", poisoned)
    monkeypatch.setattr(autoregressive, "target", spy)
    monkeypatch.setattr(autoregressive, "PIECE", 4 if name == "raster" else 128)
    gen = generator(name)
    plan = transformer.build_plan(c)
    out = gen.generate(labels=[2, 0], guidance=2 + np.arange(plan.times), seed=3)  # so that the factor tells the time
    jax.effects_barrier()
    assert len(seen) == out.forwards == plan.times
    for row, label in ((0, [2, 0]), (1, [3, 3])):
        full = gen.logits(out.tokens, labels=label)
        for t, pair in seen.items():
            sites = np.flatnonzero(plan.site_time == t)
            np.testing.assert_allclose(pair[row][:, : len(sites)], full[:, sites], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_site_depends_on_itself_or_a_later_one(name):
    c = CONFIGS[name]
    plan, params = transformer.build_plan(c), plans.parameters(c)
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, plan.sites, c.layout.groups), 0, 5))
    ids = ids if c.layout.groups > 1 else ids[..., 0]
    forward = jax.jit(lambda ids: transformer.forward(c, params, {"ids": ids, "label": jnp.array([1])}))
    before = np.asarray(forward(ids))
    for site in range(plan.sites):
        changed = ids.copy()
        changed[:, site] = (changed[:, site] + 1) % 5
        moved = np.abs(np.asarray(forward(changed)) - before).reshape(plan.sites, -1).max(-1) > 1e-6
        later = plan.site_time > plan.site_time[site]
        assert not moved[~later].any() and (moved[later].any() or not later.any())


def test_tokens_are_the_noisy_argmax_of_the_teacher_forced_distribution(raster_generator):
    gen = raster_generator
    out = gen.generate(labels=[0, 1], guidance=3.0, temperature=0.7, seed=5, first_index=7)
    cond, uncond = (gen.logits(out.tokens, labels=x) for x in ([0, 1], [3, 3]))
    z = (uncond + 3.0 * (cond - uncond)) / np.float32(0.7)
    g = noise(jax.random.key(5, impl="threefry2x32"), jnp.array([7, 8], jnp.uint32), jnp.arange(12), (5,))
    assert (np.argmax(z + np.asarray(g), -1) == out.tokens).all()


def test_same_seed_same_picture_in_any_batch_and_chunk(raster_generator, monkeypatch):
    gen = raster_generator
    labels = [0, 1, 2, 1, 0]
    whole = gen.generate(labels=labels, num=3, guidance=2.0, seed=1).tokens
    assert len({t.tobytes() for t in whole}) > 5
    single = [gen.generate(labels=[np.repeat(labels, 3)[i]], guidance=2.0, seed=1, first_index=i).tokens[0] for i in (0, 4, 14)]
    assert (np.stack(single) == whole[[0, 4, 14]]).all()
    monkeypatch.setattr(Generator, "rows_at_once", 4)
    assert (gen.generate(labels=labels, num=3, guidance=2.0, seed=1).tokens == whole).all()
    assert (gen.generate(labels=labels, num=3, guidance=2.0, seed=2).tokens != whole).any()


def test_a_growing_cache_changes_no_token(raster_generator, monkeypatch):
    monkeypatch.setattr(autoregressive, "PIECE", 4)
    grown = generator("raster")
    assert [segment.room for segment in grown._decoder.segments] == [1, 4, 8, 12]
    asked = {"labels": [0, 1, 2, 1], "seed": 1, "guidance": 2.0, "temperature": 2.0}
    np.testing.assert_array_equal(grown.generate(**asked).tokens, raster_generator.generate(**asked).tokens)


def test_few_sizes_are_compiled():
    gen = generator("raster")
    for rows in range(1, 5):
        gen.generate(labels=[0] * rows)
    (program,) = gen._programs.compiled.values()
    assert program._cache_size() == 3  # 1, 2, 4 rows


def test_two_programs_serve_all_settings():
    """One with guidance, one without."""
    gen = generator("raster")
    for seed, settings in enumerate([{"guidance": 2.0}, {"guidance": np.linspace(1, 3, 12)}, {"guidance": 1.0}, {}]):
        for temperature in (0.7, 1.0):
            gen.generate(labels=[seed % 3], seed=seed, first_index=seed, temperature=temperature, **settings)
    assert sorted((which.guided, p._cache_size()) for (_, which), p in gen._programs.compiled.items()) == [
        (False, 1),
        (True, 1),
    ]


def test_groups_of_nearly_equal_width_share_a_loop():
    widths = [s.width for s in autoregressive.schedule(transformer.build_plan(CONFIGS["raster"]))]
    assert widths == [1, 1]
    plan = NextNeighbor().build(TokenLayout(height=16, width=16, codebook_size=5), 1)
    segments = autoregressive.schedule(plan)
    computed = sum(s.width * (s.stop - s.start) for s in segments)
    assert computed <= autoregressive.MAX_PADDING * plan.slots and len(segments) < 14
    assert [s.width for s in autoregressive.schedule(transformer.build_plan(CONFIGS["scale"]))] == [1, 4, 9]


def test_padding_of_a_prompt_changes_nothing():
    """The rotary code is relative, so a left-padded prompt gives the logits of the unpadded one."""
    ids = np.arange(12)[None] % 5
    logits = []
    for length in (3, 6):
        c = dataclasses.replace(raster(position="rope_1d"), plan=NextToken("diagonal"), condition=TextCondition(9, length))
        params = plans.parameters(c)
        prompt = np.array([[0] * (length - 3) + [4, 2, 1]])
        batch = {"ids": ids, "prompt": prompt, "prompt_valid": np.arange(length)[None] >= length - 3}
        logits.append(np.asarray(jax.jit(transformer.forward, static_argnums=0)(c, params, batch)))
    np.testing.assert_allclose(*logits, rtol=2e-5, atol=2e-5)


def greedy(c: GeneratorConfig, params: dict, batch: dict, every: int = 0) -> np.ndarray:
    """Tokens of greedy decoding without guidance: in one go, or in calls of so many steps."""
    decoder, rows = autoregressive.Autoregressive(c, jnp.float32), len(next(iter(batch.values())))
    settings, which = autoregressive.Settings(jnp.ones(decoder.plan.times), 1.0, 1.0), Filter(False, 1, False)
    weights, key = autoregressive.decode_params(c, params, jnp.float32), jax.random.key(0)
    request = autoregressive.Request(weights, batch, jnp.arange(rows), key, settings, which)
    if not every:
        return np.asarray(jax.jit(lambda: decoder.decode(request)[0])())
    continued = jax.jit(lambda carry, steps, stage: decoder.continued((request,), carry, steps, stage), static_argnums=2)
    carry = decoder.opened((request,))
    for time in range(0, decoder.plan.times, every):
        for stage, steps in decoder.stages(time, every):
            carry = continued(decoder.grown(carry, stage), steps, stage)
    assert continued._cache_size() == len(decoder.segments), "one program serves every number of steps"
    return np.asarray(decoder.seen(carry)[0])


@pytest.mark.parametrize("name", ["raster", "neighbor", "scale-var-shared"])  # one width, several, one a step
def test_decoding_in_pieces_gives_the_same_tokens(name):
    c = CONFIGS[name]
    params, batch = plans.parameters(c), {"label": np.array([2, 0])}
    assert (greedy(c, params, batch, every=3) == greedy(c, params, batch)).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_computes_too(name):
    """Traced alone: what accelerators do by default must not mix types that a product or a convolution refuses."""
    c, batch = CONFIGS[name], {"label": np.array([2, 0])}
    decoder, bfloat16 = autoregressive.Autoregressive(c, jnp.bfloat16), jnp.dtype("bfloat16")
    settings, which = autoregressive.Settings(jnp.ones(decoder.plan.times), 1.0, 1.0), Filter(False, 1, False)

    def tokens_and_logits(params):
        weights, carry = autoregressive.decode_params(c, params, bfloat16), decoder.start(batch, 2, jnp.arange(2))
        tokens = decoder.advance(weights, carry, batch, jax.random.key(0), settings, which).tokens[:, :-1]
        return tokens, transformer.forward(c, params, {"ids": tokens, **batch}, dtype=bfloat16)

    tokens, logits = jax.eval_shape(lambda key: tokens_and_logits(transformer.init(c, key)), jax.random.key(0))
    assert tokens.dtype == jnp.int32 and logits.dtype == jnp.float32 and logits.shape == (*tokens.shape, 5)


def test_codes_of_the_tokenizer_are_not_rounded():
    c = CONFIGS["scale"]
    params = transformer.init(c, jax.random.key(0))
    cast = transformer.cast(transformer.axes(c), params, jnp.bfloat16)["ends"]["input"]
    for name in ("codebook", "phi_kernel", "phi_bias"):
        assert cast[name] is params["ends"]["input"][name]
    assert cast["embed"].dtype == cast["bias"].dtype == jnp.bfloat16


def _padded_prompts() -> tuple[GeneratorConfig, dict]:
    c = dataclasses.replace(raster(), condition=TextCondition(9, 6))
    prompt = np.array([[0, 0, 0, 4, 2, 1], [3, 5, 6, 7, 8, 1], [0, 0, 0, 0, 0, 2]])
    return c, {"prompt": prompt, "prompt_valid": prompt > 0}


def _own_orders() -> tuple[GeneratorConfig, dict]:
    """Each sample visits the grid in an order of its own; the second reads every token one site later than the plan says."""
    plan = transformer.build_plan(raster())
    position, source = np.tile(plan.position, (2, 1, 1)), np.tile(plan.source, (2, 1))
    position[1, 1:] = np.random.default_rng(0).permutation(position[1, 1:])
    source[1, 1:] -= 1
    return raster(), {"label": np.array([1, 1]), "position": position, "source": source}


def _random_orders() -> tuple[GeneratorConfig, dict]:
    c = plans.config("random")
    orders = np.stack([np.random.default_rng(seed).permutation(16) for seed in (0, 1)])
    return c, {"label": np.array([1, 1]), "position": c.plan.places(c.layout, 1, orders)}


@pytest.mark.parametrize("case", [_padded_prompts, _own_orders, _random_orders])
def test_what_differs_per_sample_is_decoded_as_it_is_trained(case):
    c, batch = case()
    params = plans.parameters(c)
    tokens = greedy(c, params, batch)
    logits = jax.jit(lambda ids: transformer.forward(c, params, {"ids": ids, **batch}))(tokens)
    assert (np.argmax(logits, -1) == tokens).all()
    assert len({row.tobytes() for row in tokens}) == len(tokens)
