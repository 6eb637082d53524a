"""Vision transformers: each part against a direct evaluation in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.networks import layers, vit
from mmgen_tokenizers.networks.vit import Block, Decoder, Encoder, TokenDecoder, TokenEncoder, Trunk, ViT, registers_mask

TINY = Trunk(width=8, layers=1, heads=2, mlp=2)
GRID = ViT(TINY, image_size=8, patch=4, head=12)
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def start(kind, *arguments):
    """Parameters as NumPy arrays, none of them at a value that hides it."""
    params = layers.init(kind, jax.random.key(0), *arguments)
    return jax.tree.map(lambda p: np.asarray(p) + 0.1 * draw(*p.shape), params)


def run(kind, params, *arguments, inputs):
    return np.asarray(jax.jit(lambda p: layers.bind(kind, p, *arguments)(*inputs))(params))


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def block(x, p, mask=None, heads=2):
    """One block on x [S, D], head by head."""
    q, k, v = np.split(linear(norm(x, p["norm1"]), p["attention"]["qkv"]), 3, -1)
    mixed = []
    for q1, k1, v1 in zip(*(np.split(a, heads, -1) for a in (q, k, v)), strict=True):
        scores = np.exp(q1 @ k1.T / np.sqrt(q1.shape[-1])) * (1 if mask is None else mask)
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v1)
    x = x + linear(np.concatenate(mixed, -1), p["attention"]["out"])
    h = linear(norm(x, p["norm2"]), p["up"])
    gelu = h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))) / 2
    return x + linear(gelu, p["down"])


def transformer(x, p, mask=None):
    return norm(block(norm(x, p["norm_in"]), p["blocks"]["0"], mask), p["norm_out"])


def patch(image, row, column, size=4):
    return image[row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1)


def patches(image):
    return np.stack([patch(image, row, column) for row in range(2) for column in range(2)])


@pytest.mark.parametrize("masked", [False, True])
def test_block_equals_numpy(masked):
    params, x = start(Block, TINY), draw(2, 5, 8)
    mask = registers_mask(3, 2) if masked else None
    got = np.asarray(jax.jit(lambda p: layers.bind(Block, p, TINY)(x, mask))(params))
    for b in range(2):
        np.testing.assert_allclose(got[b], block(x[b], params, mask), atol=2e-5)


def test_encoder_equals_numpy():
    params, x = start(Encoder, GRID), draw(2, 8, 8, 3)
    got = run(Encoder, params, GRID, inputs=(x,))
    assert got.shape == (2, 2, 2, 8) and "bias" not in params["patch"]
    want = transformer(linear(patches(x[1]), params["patch"]) + params["positions"], params["transformer"])
    np.testing.assert_allclose(got[1].reshape(4, 8), want, atol=2e-5)


def test_decoder_equals_numpy():
    params, z = start(Decoder, GRID), draw(2, 2, 2, 8)

    @jax.jit
    def decode(p):
        decoder = layers.bind(Decoder, p, GRID)
        return decoder.picture(decoder.hidden(z))

    got = np.asarray(decode(params))
    x = transformer(z[1].reshape(4, 8) + params["positions"], params["transformer"])
    drawn = linear(np.tanh(linear(x, params["ffn"])), params["conv_out"])
    assert got.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(patches(got[1]), drawn, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_token_encoder_equals_numpy(causal):
    arguments = (TINY, 4, 2, 3, causal)
    params, x = start(TokenEncoder, *arguments), draw(2, 8, 8, 3)
    got = run(TokenEncoder, params, *arguments, inputs=(x,))
    first = np.concatenate([params["class_token"], linear(patches(x[1]), params["patch"])]) + params["positions"]
    slots = np.concatenate([first, params["latents"] + params["latent_positions"]])
    want = transformer(slots, params["transformer"], registers_mask(5, 3) if causal else None)
    assert got.shape == (2, 3, 8)
    np.testing.assert_allclose(got[1], want[5:], atol=2e-5)


def test_token_decoder_equals_numpy():
    arguments = (TINY, 2, 3)
    params, z = start(TokenDecoder, *arguments), draw(2, 3, 8)
    got = run(TokenDecoder, params, *arguments, inputs=(z,))
    first = np.concatenate([params["class_token"], np.repeat(params["mask"][0], 4, 0)]) + params["positions"]
    want = transformer(np.concatenate([first, z[1] + params["latent_positions"]]), params["transformer"])[1:5]
    assert got.shape == (2, 2, 2, 8)
    np.testing.assert_allclose(got[1].reshape(4, 8), want, atol=2e-5)


def test_registers_read_the_picture_and_those_before():
    mask = registers_mask(2, 3).astype(int)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


def test_networks_follow_the_dtype_of_their_input():
    params, x = start(Encoder, GRID), draw(1, 8, 8, 3)
    y32, y16 = (jax.jit(layers.bind(Encoder, params, GRID))(x.astype(d)) for d in (jnp.float32, jnp.bfloat16))
    assert y32.dtype == jnp.float32 and y16.dtype == jnp.bfloat16
    assert 0 < jnp.abs(y32 - y16).max() < 0.1 * jnp.abs(y32).max()


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: Trunk(width=12, heads=8), "use heads=6"),
        (lambda: dataclasses.replace(GRID, patch=3), "use 9"),
        (lambda: vit.check_size(8, 8, 16), "knows 8 x 8 only"),
    ],
)
def test_impossible_networks_are_refused_with_the_remedy(build, words):
    with pytest.raises(UserError, match=words):
        build()
