"""The switches of the convolutional network: each against a direct evaluation, or by the names and shapes that it gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import flatten
from mmgen_tokenizers.networks import layers
from mmgen_tokenizers.networks.cnn import CNN, AdaptiveNorm, Attention, Decoder, Down, Encoder, ResBlock, Up
from mmgen_tokenizers.networks.layers import Conv, GroupNorm, depth_to_space, space_to_depth

TINY = CNN(channels=8, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=2, attention_levels=(1,), latent=6, groups=4)
RNG = np.random.default_rng(0)


def picture(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def convolve(x, kernel, stride, top, left):
    """x [H, W, I] with zeros around it, first window at (-top, -left): [h, w, O] at every `stride`."""
    H, W, _ = x.shape
    padded = np.zeros((H + 4, W + 4, x.shape[2]))
    padded[top : top + H, left : left + W] = x
    rows, columns = range(0, H, stride), range(0, W, stride)
    return np.array([[np.einsum("abi,abio->o", padded[i : i + 3, j : j + 3], kernel) for j in columns] for i in rows])


def init(kind, *arguments):
    return jax.jit(lambda key: layers.init(kind, key, *arguments))(jax.random.key(1))


def run(kind, *arguments, x, params=None):
    params = params or init(kind, *arguments)
    return params, np.asarray(jax.jit(lambda p, x: layers.bind(kind, p, *arguments)(x))(params, x))


def numpy_group_norm(x, groups):
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)


def shapes(config, side):
    params = jax.eval_shape(lambda: layers.init(side, jax.random.key(0), config))
    return {name: leaf.shape for name, leaf in flatten(params).items()}


def test_convolution_is_uniform_in_the_bounds_of_pytorch():
    params = init(Conv, 64, 32, 3)
    bound = (9 * 64) ** -0.5
    assert params["kernel"].shape == (3, 3, 64, 32) and params["bias"].shape == (32,)
    assert 0.99 * bound < jnp.abs(params["kernel"]).max() <= bound
    assert abs(float(params["kernel"].std()) - bound / 3**0.5) < 0.01 * bound


def test_group_norm_equals_numpy():
    x, scale, bias = picture(2, 3, 5, 8) * 3 + 5, picture(8), picture(8)
    norm = GroupNorm(8, 4, 1e-6)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    np.testing.assert_allclose(jax.jit(norm)(x), numpy_group_norm(x, 4) * scale + bias, atol=2e-5)


def test_space_to_depth_and_back():
    x = picture(2, 4, 6, 3)
    deep = space_to_depth(x, 2)
    assert deep.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(deep[0, 1, 2], x[0, 2:4, 4:6].reshape(12))  # (dy, dx, channel)
    np.testing.assert_array_equal(depth_to_space(deep, 2), x)


@pytest.mark.parametrize("height, width", [(4, 3), (32, 33)])  # as one convolution, and as four
def test_doubling_is_a_convolution_of_the_repeated_pixels(height, width):
    """And has its gradients, by which decoders are trained."""
    x, weight = picture(2, height, width, 5), picture(2, 2 * height, 2 * width, 6) / height
    params = {"kernel": picture(3, 3, 5, 6), "bias": picture(6)}

    def value(x, params, doubles):
        conv = layers.bind(Conv, params, 5, 6, 3)
        conv.doubles = doubles
        y = conv(x if doubles else x.repeat(2, 1).repeat(2, 2))
        return jnp.vdot(weight, y), y

    figures = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True), static_argnums=2)
    found, direct = (figures(jnp.asarray(x), params, doubles) for doubles in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, direct)


@pytest.mark.parametrize("down, top", [("asymmetric", 0), ("symmetric", 1)])
def test_down_pads_where_it_says(down, top):
    x = picture(1, 4, 6, 8)
    params, got = run(Down, dataclasses.replace(TINY, down=down), 8, x=x)
    want = convolve(x[0], np.asarray(params["conv"]["kernel"]), 2, top, top) + params["conv"]["bias"]
    assert got.shape == (1, 2, 3, 8)
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_down_by_average_has_no_parameters():
    x = picture(1, 4, 4, 8)
    module = Down(dataclasses.replace(TINY, down="average"), 8, layers.Draws())
    np.testing.assert_allclose(jax.jit(module)(x)[0, 0, 1], x[0, :2, 2:].mean((0, 1)), atol=1e-6)
    assert not any("downs" in name for name in shapes(dataclasses.replace(TINY, down="average"), Encoder))


def test_up_nearest_and_depth_to_space():
    x = picture(1, 2, 3, 8)
    params, got = run(Up, TINY, 8, x=x)
    want = convolve(x[0].repeat(2, 0).repeat(2, 1), np.asarray(params["conv"]["kernel"]), 1, 1, 1) + params["conv"]["bias"]
    np.testing.assert_allclose(got[0], want, atol=1e-5)
    params, got = run(Up, dataclasses.replace(TINY, up="depth_to_space"), 8, x=x)
    deep = convolve(x[0], np.asarray(params["conv"]["kernel"]), 1, 1, 1) + params["conv"]["bias"]
    assert params["conv"]["kernel"].shape == (3, 3, 8, 32)
    np.testing.assert_allclose(got[0, 1, 4], deep[0, 2].reshape(2, 2, 8)[1, 0], atol=1e-5)  # row 1 of pixel (0, 2): dy 1, dx 0


def test_shortcut_on_the_input_or_on_the_output():
    x = picture(1, 3, 3, 8)
    for where, shape in (("input", (8, 16)), ("output", (16, 16))):
        params = jax.tree.map(np.asarray, init(ResBlock, dataclasses.replace(TINY, shortcut=where), 8, 16))
        assert params["shortcut"]["kernel"].shape == shape
        params["conv2"] = {"kernel": 0 * params["conv2"]["kernel"], "bias": np.arange(16.0)}  # the branch is now 0 ... 15
        _, got = run(ResBlock, dataclasses.replace(TINY, shortcut=where), 8, 16, x=x, params=params)
        read = x[0, 0, 0] if where == "input" else np.arange(16.0)
        want = np.arange(16.0) + read @ params["shortcut"]["kernel"] + params["shortcut"]["bias"]
        np.testing.assert_allclose(got[0, 0, 0], want, rtol=1e-5)
    assert "shortcut" not in jax.eval_shape(lambda: layers.init(ResBlock, jax.random.key(0), TINY, 8, 8))


def test_no_bias_in_blocks_and_first_convolution():
    names = shapes(dataclasses.replace(TINY, bias=False), Encoder)
    assert not {"conv_in.bias", "levels.1.blocks.0.conv1.bias", "levels.1.blocks.0.shortcut.bias"} & names.keys()
    assert {"conv_out.bias", "downs.0.conv.bias", "middle.attention.query.bias"} <= names.keys()
    assert "conv_in.bias" in shapes(dataclasses.replace(TINY, bias=False), Decoder)


def test_attention_equals_numpy_fused_or_not():
    x = picture(1, 2, 3, 8)
    params, got = run(Attention, TINY, 8, x=x)
    params = jax.tree.map(np.asarray, params)
    h = numpy_group_norm(x, 4).reshape(6, 8)
    q, k, v = (h @ params[name]["kernel"] + params[name]["bias"] for name in ("query", "key", "value"))
    scores = np.exp(q @ k.T / 8**0.5)
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(got, x + mixed.reshape(x.shape), atol=1e-5)
    packed = {n: np.concatenate([params[name][n] for name in ("query", "key", "value")], -1) for n in ("kernel", "bias")}
    fused = {"norm": params["norm"], "out": params["out"], "qkv": packed}
    _, again = run(Attention, dataclasses.replace(TINY, fused_qkv=True), 8, x=x, params=fused)
    np.testing.assert_allclose(again, got, atol=1e-6)


def test_adaptive_norm_uses_the_unbiased_deviation_of_the_latent():
    x, z = picture(2, 4, 4, 8), picture(2, 2, 2, 6)
    c = dataclasses.replace(TINY, adaptive=True)
    params = jax.tree.map(np.asarray, init(AdaptiveNorm, c, 8))
    got = jax.jit(lambda p: layers.bind(AdaptiveNorm, p, c, 8)(x, z))(params)
    normed = numpy_group_norm(x, 4)
    flat = z.reshape(2, 4, 6)
    scale = np.sqrt(((flat - flat.mean(1, keepdims=True)) ** 2).sum(1) / 3 + 1e-6) @ params["scale"]["kernel"]
    offset = flat.mean(1) @ params["offset"]["kernel"] + params["offset"]["bias"]
    want = normed * (scale + params["scale"]["bias"])[:, None, None] + offset[:, None, None]
    np.testing.assert_allclose(got, want, atol=3e-5)
    names = shapes(c, Decoder)
    assert names["adaptive.1.scale.kernel"] == (6, 16) and names["adaptive.0.scale.kernel"] == (6, 16)  # of the level's input


def test_levels_and_middle_have_the_parts_that_are_asked_for():
    c = dataclasses.replace(TINY, decoder_attention_levels=(), middle_blocks=3, latent_kernel=1)
    encoder, decoder = shapes(c, Encoder), shapes(c, Decoder)
    assert "levels.1.attention.0.query.kernel" in encoder and "levels.0.attention.0.query.kernel" not in encoder
    assert not any("levels.1.attention" in name for name in decoder)
    assert "middle.blocks.2.conv1.kernel" in encoder and "middle.attention.query.kernel" in decoder
    assert encoder["conv_out.kernel"] == (16, 6) and shapes(TINY, Encoder)["conv_out.kernel"] == (3, 3, 16, 6)
    assert "levels.0.blocks.1.conv1.kernel" in decoder and "levels.0.blocks.1.conv1.kernel" not in encoder
    assert decoder["levels.0.blocks.0.conv1.kernel"] == (3, 3, 16, 8)  # level 0 reads what level 1 gives
    bare = shapes(dataclasses.replace(TINY, middle_attention=False, attention_levels=()), Encoder)
    assert not any("attention" in name for name in bare)


def test_stem_makes_pictures_small_first():
    c = dataclasses.replace(TINY, stem=4)
    assert c.factor == 8 and TINY.factor == 2 and shapes(c, Encoder)["conv_in.kernel"] == (3, 3, 48, 8)

    def through(x):
        encoder, decoder = (layers.bind(side, layers.init(side, jax.random.key(0), c), c) for side in (Encoder, Decoder))
        z = encoder(x)
        return z, decoder.hidden(z), decoder.picture(decoder.hidden(z))

    z, hidden, reconstruction = jax.eval_shape(through, picture(1, 16, 24, 3))
    assert (z.shape, hidden.shape, reconstruction.shape) == ((1, 2, 3, 6), (1, 4, 6, 8), (1, 16, 24, 3))


def test_networks_follow_the_dtype_of_their_input():
    params, x = init(Attention, TINY, 8), picture(1, 4, 4, 8)
    y32, y16 = (jax.jit(layers.bind(Attention, params, TINY, 8))(x.astype(d)) for d in (jnp.float32, jnp.bfloat16))
    assert y32.dtype == jnp.float32 and y16.dtype == jnp.bfloat16
    assert 0 < jnp.abs(y32 - y16).max() < 0.1


def test_same_key_same_parameters_and_all_float32():
    a, b = (init(Decoder, TINY) for _ in range(2))
    assert all((x == y).all() and x.dtype == jnp.float32 for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("change, words", [(dict(channels=12, groups=8), "groups=6"), (dict(attention_levels=(2,)), "0 to 1")])
def test_impossible_networks_are_refused_with_the_remedy(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TINY, **change)
