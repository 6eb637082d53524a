"""The family Flexible: any first few tokens decode, and training drops the others."""

import dataclasses

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import flexible

TINY = mt.Flexible(
    encoder=mt.Trunk(32, 1, 2),
    decoder=mt.Trunk(32, 1, 2),
    quantizer=mt.VQ(size=64, dim=4),
    tokens=6,
    image_size=16,
    patch=8,
)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer(TINY, flexible.init(TINY, jax.random.key(0)))


def test_forward_without_a_key_keeps_all_tokens(tok):
    f = jax.jit(lambda p: flexible.forward(TINY, p, IMAGES))(tok.params)
    ids = tok.encode(IMAGES)
    assert f.latents.shape == (2, 6, 4) and ids.shape == (2, 6)
    np.testing.assert_array_equal(ids, f.ids)
    np.testing.assert_allclose(tok.decode(ids), f.reconstruction.clip(-1, 1), atol=1e-5)
    apply, kernel = flexible.last_layer(TINY, tok.params, f)
    np.testing.assert_allclose(apply(kernel), f.reconstruction, atol=1e-5)


def test_each_prefix_decodes_and_ignores_what_follows(tok):
    ids = tok.encode(IMAGES)
    pictures = [tok.decode(ids[:, :k]) for k in range(1, 7)]
    assert all(p.shape == IMAGES.shape for p in pictures)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(pictures, pictures[1:], strict=False))
    codes = jnp.asarray(tok.embed(ids))
    draw = jax.jit(lambda p, codes, kept: flexible.picture(TINY, p, flexible.hidden(TINY, p, codes, kept)))
    for k in (1, 4):
        kept = np.broadcast_to(np.arange(6) < k, (2, 6))
        other = codes.at[:, k:].set(7.0)  # what stands behind the prefix plays no part
        drawn = draw(tok.params, other, kept)
        np.testing.assert_allclose(drawn.clip(-1, 1), pictures[k - 1], atol=1e-5)


def test_one_program_serves_every_length(tok):
    from mmgen_tokenizers.api import _decode

    tok.decode(np.zeros((2, 6), np.int32))
    before = _decode._cache_size()
    for k in range(1, 6):
        tok.decode(np.zeros((2, k), np.int32))
    assert _decode._cache_size() == before


def test_too_many_or_wrong_ids_are_refused(tok):
    assert tok.layout == mt.TokenLayout("sequence", 1, 6, 64, ordered=True)
    with pytest.raises(UserError, match="7 ids a picture, but the layout is 1 x 6"):
        tok.decode(np.zeros((1, 7), np.int32))
    with pytest.raises(UserError, match="from -1 to 0"):  # the sign of an absent token is not the user's to give
        tok.decode(np.array([[0, -1]]))


@pytest.mark.parametrize("causal", [True, False])
def test_causal_tokens_do_not_know_those_behind(tok, causal):
    """Moving the last token's query changes earlier latents only where the encoder is not causal."""
    config = dataclasses.replace(TINY, causal=causal)
    encode = jax.jit(lambda p: flexible.encode_latents(config, p, IMAGES))
    encoder = tok.params["encoder"]
    moved = {**tok.params, "encoder": {**encoder, "latents": encoder["latents"].at[-1].mul(-1)}}
    change = np.abs(np.asarray(encode(moved) - encode(tok.params))).max((0, 2))
    assert change[-1] > 1e-3
    assert (change[:-1].max() == 0) if causal else (change[:-1].min() > 0)


@pytest.mark.parametrize(
    "kind, tokens, wanted", [("uniform", 6, range(1, 7)), ("powers", 8, (1, 2, 4, 8)), ("powers", 6, (1, 2, 4, 6))]
)
def test_lengths_are_drawn_evenly(kind, tokens, wanted):
    config = dataclasses.replace(TINY, lengths=kind, tokens=tokens)
    values, counts = np.unique(flexible.draw_lengths(config, jax.random.key(0), 6000), return_counts=True)
    np.testing.assert_array_equal(values, wanted)
    np.testing.assert_allclose(counts / 6000, 1 / len(values), atol=0.03)


def test_training_drops_tails_by_the_key(tok):
    """With a key each picture is what its own prefix gives."""
    key = jax.random.key(3)
    lengths = np.asarray(flexible.draw_lengths(TINY, key, 2))
    assert len(set(lengths)) == 2 and lengths.min() < 6
    f = jax.jit(lambda p: flexible.forward(TINY, p, IMAGES, jnp.float32, key))(tok.params)
    for i, k in enumerate(lengths):
        np.testing.assert_allclose(f.reconstruction[i].clip(-1, 1), tok.decode(np.asarray(f.ids[:, :k]))[i], atol=1e-5)
