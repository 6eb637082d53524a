"""The family VQGAN: its pure functions agree with each other, and it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.files import flatten
from mmgen_tokenizers.networks.cnn import CNN
from mmgen_tokenizers.quantizers.vq import VQ

NET = CNN(8, (1, 2), 1, 1, attention_levels=(), middle_blocks=1, middle_attention=False, latent=8, groups=4, stem=2)
TINY = VQGAN(NET, VQ(size=32, dim=4), image_size=16)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return vqgan.init(TINY, jax.random.key(0))


def test_parameters_are_a_plain_nested_dict(params):
    flat = flatten(params)
    assert {name.split(".")[0] for name in flat} == {"encoder", "decoder", "quant_conv", "post_quant_conv", "quantizer"}
    assert all(type(leaf) is type(jnp.zeros(1)) and leaf.dtype == jnp.float32 for leaf in flat.values())
    assert flat["quantizer.codebook"].shape == (32, 4) and flat["quant_conv.kernel"].shape == (8, 4)


def jitted(function, *static):
    """function(config, params, x, ...) with all but params and x fixed, compiled."""
    config, *rest = static
    return jax.jit(lambda p, x: function(config, p, x, *rest))


@pytest.fixture(scope="module")
def forward(params):
    return jitted(vqgan.forward, TINY)(params, IMAGES)


def test_forward_equals_its_parts(params, forward):
    f = forward
    assert f.reconstruction.shape == IMAGES.shape and f.latents.shape == (2, 4, 6, 4) and f.ids.shape == (2, 24)
    ids = jitted(vqgan.encode, TINY)(params, IMAGES)
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, f.ids)
    np.testing.assert_allclose(jitted(vqgan.decode, TINY, 4, 6)(params, ids), f.reconstruction, atol=1e-5)
    codes = np.asarray(jitted(vqgan.embed, TINY)(params, ids))
    np.testing.assert_allclose(np.linalg.norm(codes, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(codes.reshape(2, 4, 6, 4)[1, 2, 3], codes[1, 15], atol=0)


def test_unit_range_is_converted_at_both_ends(params):
    unit = dataclasses.replace(TINY, range="unit")
    halved = jitted(vqgan.encode_latents, TINY)(params, (IMAGES + 1) / 2)
    np.testing.assert_allclose(jitted(vqgan.encode_latents, unit)(params, IMAGES), halved, atol=1e-6)
    ids = np.zeros((1, 16), np.int32)
    signed, doubled = (jitted(vqgan.decode, c, 4, 4)(params, ids) for c in (TINY, unit))
    np.testing.assert_allclose(doubled, signed * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("size, shape", [(3, (3, 3, 8, 4)), (0, None)])
def test_convolutions_around_the_quantizer(size, shape):
    config = VQGAN(NET, VQ(size=32, dim=4 if size else 8), 16, quant_conv=size)
    shapes = jax.eval_shape(lambda: vqgan.init(config, jax.random.key(0)))
    assert ("quant_conv" in shapes) == bool(size)
    if size:
        assert shapes["quant_conv"]["kernel"].shape == shape
    run = jax.eval_shape(lambda: vqgan.forward(config, vqgan.init(config, jax.random.key(0)), IMAGES))
    assert run.reconstruction.shape == IMAGES.shape


def test_bfloat16_network_with_float32_quantizer(params, forward):
    f, g = jitted(vqgan.forward, TINY, jnp.bfloat16)(params, IMAGES), forward
    assert (
        f.hidden.dtype == jnp.bfloat16
        and f.latents.dtype == f.reconstruction.dtype == f.losses["codebook"].dtype == jnp.float32
    )
    assert jnp.abs(f.latents - g.latents).max() < 0.05 * jnp.abs(g.latents).max()


def test_last_layer_gives_the_reconstruction(params, forward):
    f = forward
    apply, kernel = vqgan.last_layer(TINY, params, f)
    apply = jax.jit(apply)
    np.testing.assert_allclose(apply(kernel), f.reconstruction, atol=1e-6)
    assert jnp.abs(apply(kernel * 2) - f.reconstruction).max() > 0.1


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: dataclasses.replace(TINY, image_size=18), "use 16"),
        (lambda: dataclasses.replace(TINY, quant_conv=0), "must be the quantizer's dim"),
    ],
)
def test_contradictions_are_refused(build, words):
    with pytest.raises(UserError, match=words):
        build()


def test_it_learns_and_uses_its_codes(params):
    images = np.repeat(np.random.default_rng(1).uniform(-1, 1, (16, 4, 4, 3)), 4, 1).repeat(4, 2).astype(np.float32)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(p):
            f = vqgan.forward(TINY, p, images)
            return jnp.square(f.reconstruction - images).mean() + sum(f.losses.values()), f.ids

        (value, ids), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value, ids

    state, values = optimizer.init(params), []
    for _ in range(80):
        params, state, value, ids = step(params, state)
        values.append(float(value))
    assert values[0] > 0.3 and values[-1] < 0.12, (values[0], values[-1])
    assert len(np.unique(ids)) > 8
