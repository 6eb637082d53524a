"""The rounds of masked prediction."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.decoding.autoregressive import Request, Settings, decode_params
from mmgen.decoding.masked import MaskedRounds
from mmgen.decoding.target import Filter, noise
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.plan import Masked

GROUPED = dataclasses.replace(plans.config("masked").layout, groups=2)


@pytest.fixture(scope="module")
def gen() -> Generator:
    c = plans.config("masked")
    return Generator(c, plans.randomized(transformer.init(c, jax.random.key(0))))


def test_one_round_is_the_noisy_argmax_of_the_logits_of_an_empty_picture(gen):
    out = gen.generate(labels=[0, 1], guidance=3.0, temperature=0.7, seed=5, first_index=7, steps=1)
    empty = np.full((2, 16), 5)
    cond, uncond = (gen.logits(empty, labels=x) for x in ([0, 1], [3, 3]))
    z = (uncond + 3.0 * (cond - uncond)) / np.float32(0.7)
    key = jax.random.split(jax.random.fold_in(jax.random.key(5, impl="threefry2x32"), 0))[0]
    g = noise(key, jnp.array([7, 8], jnp.uint32), jnp.arange(16), (5,))
    assert (np.argmax(z + np.asarray(g), -1) == out.tokens).all() and out.forwards == 1


def rounds(c, params, steps: int, choice: float, seed: int = 0):
    """Tokens before the first round and after each."""
    decoder, rows = MaskedRounds(c, jnp.float32), 3
    settings = Settings(jnp.ones(steps), jnp.float32(1), jnp.float32(1), jnp.float32(choice))
    weights, batch, index = decode_params(c, params, jnp.float32), {"label": jnp.arange(rows)}, jnp.arange(rows)
    request = Request(weights, batch, index, jax.random.key(seed), settings, Filter(False, 0, False))
    step = jax.jit(functools.partial(decoder.round, request, jnp.full(rows, c.layout.sites * c.layout.groups)))
    groups = (c.layout.groups,) if c.layout.groups > 1 else ()
    tokens = [jnp.full((rows, c.layout.sites, *groups), c.layout.codebook_size)]
    for t in range(steps):
        tokens.append(step(t, tokens[-1]))
    return [np.asarray(x) for x in tokens]


def test_each_round_leaves_as_many_holes_as_the_schedule_says_and_changes_no_token():
    """32 sub-tokens, 4 rounds: 32 acos(1/4) / (pi/2) = 26.9, 32 acos(2/4) / (pi/2) = 21.3, ..."""
    c = dataclasses.replace(plans.config("masked"), plan=Masked("arccos"), layout=GROUPED)
    states = rounds(c, plans.randomized(transformer.init(c, jax.random.key(0))), 4, choice=2.0)
    for before, after, count in zip(states, states[1:], [26, 21, 14, 0], strict=False):
        assert ((after == 5).reshape(3, -1).sum(1) == count).all()
        assert (after[before < 5] == before[before < 5]).all()


def test_the_least_certain_tokens_stay_hidden_and_every_round_fills_a_hole(gen):
    """Certainty has noise that gets less from round to round; and there are more rounds than tokens."""
    states = rounds(gen.config, gen.params, 20, choice=3.0)
    left = [int((x[0] == 5).sum()) for x in states]
    assert left[-1] == 0 and left[-2] == 1 and all(a > b or a == b == 1 for a, b in zip(left, left[1:], strict=False))
    t = left.index(8)
    before, after = states[t : t + 2]
    logp = np.asarray(jax.nn.log_softmax(gen.logits(before, labels=[0, 1, 2])))
    keys, site = jax.random.split(jax.random.fold_in(jax.random.key(0), t)), jnp.arange(16)
    drawn = np.argmax(logp + np.asarray(noise(keys[0], jnp.arange(3), site, (5,))), -1)
    doubt = 3.0 * (1 - (t + 1) / 20) * np.asarray(noise(keys[1], jnp.arange(3), site, ()))
    for row in range(3):
        new, still = (before[row] == 5) & (after[row] < 5), after[row] == 5
        assert (after[row][new] == drawn[row][new]).all() and new.any() and still.any()
        chance = logp[row, np.arange(16), drawn[row]] + doubt[row]
        assert chance[new].min() > chance[still].max()


def test_same_seed_same_picture_in_any_batch(gen):
    labels = [0, 1, 2, 1, 0]
    ask = dict(guidance=2.0, temperature=3.0)
    whole = gen.generate(labels=labels, num=2, seed=1, **ask).tokens
    assert whole.max() < 5 and len({t.tobytes() for t in whole}) == 10
    single = [gen.generate(labels=[np.repeat(labels, 2)[i]], seed=1, first_index=i, **ask).tokens[0] for i in (0, 9)]
    assert (np.stack(single) == whole[[0, 9]]).all()
    assert (gen.generate(labels=labels, num=2, seed=2, **ask).tokens != whole).any()
    assert (gen.generate(labels=labels, num=2, seed=1, choice_temperature=0.0, **ask).tokens != whole).any()


def test_rounds_belong_to_masked_plans(gen):
    c = plans.config("neighbor")
    other = Generator(c, transformer.init(c, jax.random.key(0)))
    with pytest.raises(UserError, match="settings of masked models"):
        other.generate(labels=[0], steps=3)
    with pytest.raises(UserError, match="needs steps >= 1"):
        gen.generate(labels=[0], steps=0)
    with pytest.raises(UserError, match=r"one for each of the 5 decode steps"):
        gen.generate(labels=[0], guidance=np.ones(4))
    with pytest.raises(UserError, match="tokens must be in 0 .. 5; found 0 .. 6"):
        gen.logits(np.array([[6] + [0] * 15]), labels=[0])
