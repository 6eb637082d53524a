"""The distribution that is sampled from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.decoding.target import Filter, guidance_schedule, noise, resolve, target
from mmgen.model.config import Sampling

LOGITS = np.log(np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]], np.float32))


def probabilities(logits, guidance=1.0, uncond=None, temperature=1.0, top_k=0, top_p=1.0):
    which = Filter(uncond is not None, top_k, top_p < 1)
    return np.asarray(jax.nn.softmax(target(jnp.asarray(logits), uncond, guidance, temperature, top_p, which), axis=-1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.41}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [4 / 7, 3 / 7, 0, 0]),  # top-p over what top-k left: 4/9 + 3/9 >= 0.7
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 0.5, "top_p": 0.5}, [1, 0, 0, 0]),  # temperature comes first
    ],
)
def test_filters(settings, expected):
    np.testing.assert_allclose(probabilities(LOGITS[:1], **settings)[0], expected, atol=1e-6)


def test_ties_at_the_last_place_are_kept():
    assert (probabilities(LOGITS[1:], top_k=1) == 0.25).all()


def kept_by_sorting(z: np.ndarray, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """Which entries of each row a sort in float64 keeps; rows in which rounding may move the edge of top-p."""
    kept, unclear = np.zeros(z.shape, bool), np.zeros(len(z), bool)
    for i, row in enumerate(z.astype(np.float64)):
        row = np.where(row < np.sort(row)[-min(top_k or len(row), len(row))], -np.inf, row)
        values = np.unique(row)[::-1]
        mass = np.exp(values - values[0]) * (row == values[:, None]).sum(1)
        before = (np.cumsum(mass) - mass) / mass.sum()
        kept[i] = (row > -np.inf) & (row >= values[(before < top_p) | (top_p == 1)].min())
        unclear[i] = top_p < 1 and np.abs(before - top_p).min() < 1e-6
    return kept, unclear


@pytest.mark.parametrize(("top_k", "nucleus"), [(3, False), (0, True), (3, True), (9, True), (11, False)])
def test_filters_keep_what_a_sort_keeps(top_k, nucleus):
    """Of rows with ties, both zeros, neighboring floats and entries that cannot be drawn, and of rows without."""
    rng = np.random.default_rng(0)
    coarse = rng.choice(np.array([-np.inf, -1.5, -0.0, 0.0, 1.0, 1.0 + 2**-23, 2.0, 300.0], np.float32), (200, 9))
    coarse[:, 0] = rng.choice(np.array([-40.0, 0.0, 1e-30], np.float32), 200)
    rows = np.concatenate([coarse, rng.normal(size=(200, 9)).astype(np.float32) * 3])
    filtered = jax.jit(lambda z, p: target(z, None, 1.0, 1.0, p, Filter(False, top_k, nucleus)))
    for top_p in (0.05, 0.5, 0.93, 0.9999) if nucleus else (1.0,):
        expected, unclear = kept_by_sorting(rows, top_k, top_p)
        out = np.asarray(filtered(rows, np.float32(top_p)))
        assert unclear.mean() < 0.1
        np.testing.assert_array_equal((out > -np.inf)[~unclear], expected[~unclear])
        np.testing.assert_array_equal(out[out > -np.inf], rows[out > -np.inf])
    program = jax.jit(lambda z: target(z, None, 1.0, 1.0, 1.0, Filter(False, top_k, nucleus))).lower(rows).as_text()
    assert "sort" not in program and ("while" in program) == (nucleus or top_k < 9)


def test_a_top_p_that_rounds_to_one_keeps_all():
    assert (probabilities(np.tile(LOGITS, 3), top_p=1 - 1e-12) > 0).all()


def test_guidance_is_between_and_beyond_the_two_models():
    uncond = jnp.zeros((1, 4))
    for g in (0.0, 1.0, 2.5):
        np.testing.assert_allclose(
            probabilities(LOGITS[:1], g, uncond), np.exp(g * LOGITS[:1]) / np.exp(g * LOGITS[:1]).sum(), atol=1e-6
        )


def test_schedules():
    assert guidance_schedule("constant", 3.0, 4).tolist() == [3, 3, 3, 3]
    np.testing.assert_allclose(guidance_schedule("linear", 4.0, 4), [1, 2, 3, 4])
    t = np.arange(8) / 8
    np.testing.assert_allclose(
        guidance_schedule(("power_cosine", 2.75), 16.0, 8), 1 + 15 * (1 - np.cos(np.pi * t**2.75)) / 2, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "set top-k to 1"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"top_k": [5]}, "top_k must be a number"),
        ({"guidance": "strong"}, "guidance must be a number, or an array"),
        ({"guidance": "3"}, "guidance must be a number, or an array"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"guidance": np.ones(3)}, "16 decode steps"),
        ({"guidance": float("nan")}, "finite"),
        ({"guidance_schedule": "linar"}, "linear"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        resolve(Sampling(), 16, **settings)


def test_noise_depends_on_seed_index_and_site_alone():
    key = jax.random.key(1)
    whole = noise(key, jnp.arange(4), jnp.arange(5), (7,))
    np.testing.assert_array_equal(noise(key, jnp.array([2]), jnp.array([3, 1]), (7,))[0], whole[2, jnp.array([3, 1])])
    assert len(np.unique(np.asarray(whole))) == whole.size
    assert not np.allclose(noise(jax.random.key(2), jnp.arange(4), jnp.arange(5), (7,)), whole)


@pytest.mark.statistics
def test_samples_follow_the_distribution():
    """Chi-square of 20,000 draws over 4 tokens: 3 degrees of freedom, 21.1 is exceeded once in ten thousand."""
    scores = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    g = noise(jax.random.key(0), jnp.arange(100), jnp.arange(200), (4,))
    counts = np.bincount(np.asarray(jnp.argmax(scores + g, -1)).reshape(-1), minlength=4)
    expected = 20_000 * np.array([0.4, 0.3, 0.2, 0.1])
    assert ((counts - expected) ** 2 / expected).sum() < 21.1
