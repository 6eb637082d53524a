"""Binary codes: ids and bits are one another's inverse, losses and gradients against direct evaluations in NumPy (float64)."""

import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.quantizers import binary
from mmgen_tokenizers.quantizers.binary import BSQ, LFQ

RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal((3, 2, 4, 5)).astype(np.float32) * 0.3
SOFT = dict(temperature=0.7, entropy=0.2, commitment=0.5, diversity=0.8)


def every_id(config, above=5000):
    """All ids of a vocabulary of up to 2^16, random ones above; with groups, each group in another order."""
    size = config.size
    ids = np.arange(size) if size <= 2**16 else np.append(RNG.integers(0, size, above), [0, size - 1])
    return ids if config.groups == 1 else np.stack([RNG.permutation(ids) for _ in range(config.groups)], -1)


@pytest.mark.parametrize("order", ["lsb", "msb"])
@pytest.mark.parametrize("kind", [LFQ, BSQ])
@pytest.mark.parametrize("bits, groups", [(1, 1), (10, 1), (16, 1), (18, 1), (30, 1), (12, 3), (32, 2), (36, 2), (64, 8)])
def test_ids_bits_and_codes_are_inverses(kind, bits, groups, order):
    config = kind(bits, groups, order=order)
    ids = every_id(config)

    @jax.jit
    def run(ids):
        bits, codes = binary.ids_to_bits(config, ids), binary.lookup(config, {}, ids)
        return bits, codes, binary.bits_to_ids(config, bits), binary.nearest(config, {}, codes)

    some, codes, again, nearest = run(ids)
    assert some.shape == (len(ids), bits) and some.dtype == jnp.int8 and again.dtype == jnp.int32
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(nearest, ids)
    np.testing.assert_allclose(codes, (2.0 * some - 1) * (bits**-0.5 if kind is BSQ else 1), rtol=1e-6)
    if bits // groups == 16:
        assert len(np.unique(np.packbits(some, axis=1), axis=0)) == len(ids)


def test_the_first_channel_is_the_lowest_or_the_highest_bit():
    bits = np.array([1, 0, 0, 0, 1, 1])
    for order, whole, halves in (("lsb", 0b110001, (0b001, 0b110)), ("msb", 0b100011, (0b100, 0b011))):
        assert int(binary.bits_to_ids(LFQ(6, order=order), bits)) == whole
        np.testing.assert_array_equal(binary.bits_to_ids(LFQ(6, 2, order=order), bits), halves)
    assert LFQ().order == "lsb" and BSQ().order == "msb"


def test_a_latent_of_0_is_a_negative_bit():
    z = np.array([[0.0, 1e-30, -0.0]], np.float32)
    quantized = jax.jit(lambda z: binary.quantize(LFQ(3, entropy=0.0), {}, z))(z)
    assert quantized.ids.item() == 0b010
    np.testing.assert_array_equal(quantized.codes, [[-1, 1, -1]])


# Losses ------------------------------------------------------------------------------------------------------------


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def soft_codes(config, z, bits):
    """softmax of -|z - code|^2 / temperature over all codes of the first `bits` channels of z [M, >= bits]: [M, 2^bits]."""
    codes = np.array(list(itertools.product([-1, 1], repeat=bits))) * config.scale
    p = np.exp(-((z[:, None, :bits] - codes) ** 2).sum(-1) / config.temperature)
    return p / p.sum(1, keepdims=True)


def entropy(p):
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)


def direct_entropy_loss(config, z):
    z = z.reshape(-1, config.bits)
    blocks = [z[:, i : i + config.block] for i in range(0, config.bits, config.block)]
    diverse = sum(entropy(soft_codes(config, block, block.shape[1]).mean(0)) for block in blocks)
    return entropy(soft_codes(config, z, config.bits)).mean() - config.diversity * diverse


@pytest.mark.parametrize("block", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_entropy_loss_equals_the_sum_over_all_codes(kind, block):
    config = kind(5, block=block, **SOFT)
    z = LATENTS if kind is LFQ else unit(LATENTS)
    got = jax.jit(lambda z: binary.entropy_loss(config, z))(z)
    np.testing.assert_allclose(got, direct_entropy_loss(config, z.astype(np.float64)), rtol=2e-5)


def test_entropy_loss_at_the_temperature_of_training():
    """Where most bits are certain: exponents of hundreds neither overflow nor make a gradient NaN."""
    config = LFQ(5, temperature=0.01)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: binary.entropy_loss(config, z)))(LATENTS * 20)
    used = np.bincount((LATENTS > 0).reshape(-1, 5) @ 2 ** np.arange(5))
    np.testing.assert_allclose(value, -entropy(used / used.sum()), rtol=1e-3)
    assert jnp.isfinite(gradient).all()


def test_memory_of_the_entropy_loss_does_not_grow_with_the_codebook():
    positions, config = 64, LFQ(60, groups=4, block=10)
    z = jnp.zeros((positions, 60))
    sizes: list[int] = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(v.aval.size for v in equation.outvars)
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(jax.grad(lambda z: binary.entropy_loss(config, z)))(z).jaxpr)
    assert positions * 60 <= max(sizes) <= positions * 60 + 2 * positions * 2**5


@pytest.mark.parametrize("config", [LFQ(5, block=2, **SOFT), BSQ(5, block=3, **SOFT), BSQ(5)])
def test_gradients_equal_finite_differences_of_the_straight_through_surrogate(config):
    """With the signs held, codes move with the (normalised) latent; the commitment pulls it to the held code."""
    latents = LATENTS[0, 0].astype(np.float64)
    pull = RNG.standard_normal(latents.shape)

    def seen(z):
        return unit(z) if config.spherical else z

    held = seen(latents)
    code = config.scale * np.sign(held)

    def surrogate(z):
        losses = config.commitment * ((seen(z) - code) ** 2).mean() + config.entropy * direct_entropy_loss(config, seen(z))
        return (pull * (code + config.scale * (seen(z) - held))).sum() + losses

    def loss(z):
        quantized = binary.quantize(config, {}, z)
        return (pull * quantized.codes).sum() + sum(quantized.losses.values())

    step = 1e-5 * np.eye(latents.size).reshape(-1, *latents.shape)
    want = np.array([(surrogate(latents + d) - surrogate(latents - d)) / 2e-5 for d in step]).reshape(latents.shape)
    value, got = jax.jit(jax.value_and_grad(loss))(latents.astype(np.float32))
    np.testing.assert_allclose(value, surrogate(latents), rtol=1e-4)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_losses_that_are_switched_off_are_not_computed():
    losses = jax.eval_shape(lambda z: binary.quantize(LFQ(5, entropy=0.0), {}, z).losses, LATENTS)
    assert set(losses) == {"commitment"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(bits=36), "an id of 36 bits does not fit int32; use groups=2 or more"),
        (dict(bits=64, groups=2), "use groups=4 or more"),
        (dict(bits=18, groups=4), "use groups=3"),
        (dict(bits=18, block=25), "1 to 24 bits"),
    ],
)
def test_impossible_codes_are_refused_with_the_remedy(arguments, words):
    with pytest.raises(UserError, match=words):
        LFQ(**arguments)
