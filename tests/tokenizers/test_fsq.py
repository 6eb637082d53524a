"""Finite scalar quantization: every code there and back, and the formula of the paper in NumPy (float64)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.quantizers import fsq
from mmgen_tokenizers.quantizers.fsq import FSQ

RNG = np.random.default_rng(0)


def direct(levels, z):
    """(bounded, digits) in float64."""
    levels = np.array(levels)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2 == 0, 0.5, 0)
    bounded = np.tanh(z + np.arctanh(offset / half)) * half - offset
    return bounded, np.round(bounded).astype(int) + levels // 2


@pytest.mark.parametrize(
    "levels", [(2,), (5,), (8, 8, 8, 5, 5, 5), (16, 16, 16, 16), (7, 5, 3, 2), (1000, 1000, 1000), (2,) * 31]
)
def test_ids_and_codes_are_inverses(levels):
    config = FSQ(levels)
    all_of_them = config.size <= 2**16
    ids = np.arange(config.size) if all_of_them else np.append(RNG.integers(0, config.size, 5000), [0, config.size - 1])
    codes = jax.jit(lambda i: fsq.lookup(config, {}, i))(ids)
    assert codes.shape == (len(ids), len(levels)) and codes.dtype == jnp.float32 and jnp.abs(codes).max() <= 1
    again = jax.jit(lambda c: fsq.codes_to_ids(config, c))(codes)
    assert again.dtype == jnp.int32
    np.testing.assert_array_equal(again, ids)
    if all_of_them:
        assert len(np.unique(codes, axis=0)) == config.size


def test_the_first_channel_is_the_lowest_digit():
    assert int(fsq.codes_to_ids(FSQ((8, 5)), np.array([-0.75, 1.0]))) == 1 + 8 * 4  # digits 1 and 4
    np.testing.assert_allclose(fsq.lookup(FSQ((8, 5)), {}, np.array(0)), [-1, -1])


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (2, 3, 4, 1000)])
def test_nearest_equals_numpy_and_reaches_every_level_and_no_more(levels):
    config = FSQ(levels)
    z = RNG.standard_normal((4000, len(levels))) * 3
    bounded, digits = direct(levels, z)
    sure = (np.abs(bounded - np.floor(bounded) - 0.5) > 1e-3).all(1)  # not where float32 may round to the other side
    ids = np.asarray(jax.jit(lambda z: fsq.nearest(config, {}, z))(z.astype(np.float32)))
    places = np.cumprod([1, *levels[:-1]])
    np.testing.assert_array_equal(ids[sure], (digits * places).sum(1)[sure])
    ends = np.array([[-np.inf] * len(levels), [np.inf] * len(levels)], np.float32)
    np.testing.assert_array_equal(fsq.nearest(config, {}, ends), [0, config.size - 1])
    found = ids[:, None] // places % levels
    assert all(len(np.unique(found[:, k])) == n for k, n in enumerate(levels) if n < 1000)


def test_half_precision_latents_give_the_ids_of_their_float32_values():
    config, z = FSQ((512, 512)), jnp.asarray(RNG.standard_normal((1000, 2)), jnp.bfloat16)
    np.testing.assert_array_equal(*(fsq.nearest(config, {}, x) for x in (z, z.astype(jnp.float32))))


def test_gradients_equal_finite_differences_of_the_straight_through_surrogate():
    config = FSQ((8, 5, 2))
    z = RNG.standard_normal((6, 3))
    pull, half = RNG.standard_normal(z.shape), np.array([4, 2, 1])
    held, digits = direct(config.levels, z)

    def surrogate(z):
        return (pull * (digits - half + direct(config.levels, z)[0] - held) / half).sum()

    step = 1e-5 * np.eye(z.size).reshape(-1, *z.shape)
    want = np.array([(surrogate(z + d) - surrogate(z - d)) / 2e-5 for d in step]).reshape(z.shape)
    run = jax.jit(jax.value_and_grad(lambda z: (pull * fsq.quantize(config, {}, z).codes).sum()))
    value, got = run(z.astype(np.float32))
    np.testing.assert_allclose(value, surrogate(z), rtol=1e-5)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def test_a_training_step_has_ids_and_no_losses():
    config, z = FSQ((8, 5, 2)), RNG.standard_normal((2, 4, 4, 3)).astype(np.float32)
    quantized, nearest = jax.jit(lambda z: (fsq.quantize(config, {}, z), fsq.nearest(config, {}, z)))(z)
    np.testing.assert_array_equal(quantized.ids, nearest)
    np.testing.assert_allclose(quantized.codes, fsq.lookup(config, {}, nearest), atol=1e-7)
    assert quantized.losses == {}


@pytest.mark.parametrize(
    "levels, words", [((), "8,8,8,5,5,5"), ((8, 1), "2 to 1000"), ((1001,), "2 to 1000"), ((8,) * 11, "fewer channels")]
)
def test_impossible_levels_are_refused(levels, words):
    with pytest.raises(UserError, match=words):
        FSQ(levels)
