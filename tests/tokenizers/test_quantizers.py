"""Tokenizers with quantizers that hold no table: the same object, functions and files as with VQ."""

import dataclasses

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers import quantizers
from mmgen_tokenizers.configs import from_json, to_json
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.quantizers import binary, vq

NET = mt.CNN(4, (1, 1), 1, 1, attention_levels=(), middle_blocks=1, middle_attention=False, latent=4, groups=2, stem=2)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 8, 3), dtype=np.uint8)
FLOATS = IMAGES / np.float32(127.5) - 1
KINDS = {"lfq": mt.LFQ(10), "lfq in groups": mt.LFQ(12, 3), "bsq": mt.BSQ(36, 2), "fsq": mt.FSQ((8, 5, 5))}


@pytest.fixture(scope="module", params=KINDS)
def tok(request):
    """Fresh, but that its latents of IMAGES have mean 0 and some size: they reach many codes."""
    config = mt.VQGAN(NET, KINDS[request.param], image_size=16)
    params = vqgan.init(config, jax.random.key(0))
    latents = np.asarray(jax.jit(lambda p, x: vqgan.encode_latents(config, p, x))(params, FLOATS)).reshape(40, -1)
    last, mean, scale = params["quant_conv"], latents.mean(0), 1 / latents.std(0)
    moved = {"kernel": last["kernel"] * scale, "bias": (last["bias"] - mean) * scale}
    return mt.Tokenizer(config, {**params, "quant_conv": moved})


def test_ids_there_and_back(tok):
    quantizer = tok.config.quantizer
    ids = tok.encode(IMAGES)
    groups = (quantizer.groups,) if quantizer.groups > 1 else ()
    assert ids.shape == (5, 8, *groups) and ids.dtype == np.int32 and len(np.unique(ids)) > 8
    layout = tok.layout_for(16, 8)
    assert layout == mt.TokenLayout(height=4, width=2, codebook_size=quantizer.size, groups=quantizer.groups)
    assert "quantizer" not in tok.params
    again = jax.jit(lambda c: quantizers.functions(quantizer).nearest(quantizer, {}, c))(tok.embed(ids))
    if not isinstance(quantizer, mt.FSQ):  # whose codes are not the latents that round to them
        np.testing.assert_array_equal(again, ids)
    forward = jax.jit(lambda p, x: vqgan.forward(tok.config, p, x))(tok.params, FLOATS)
    np.testing.assert_array_equal(forward.ids, ids)
    np.testing.assert_allclose(tok.decode(ids, layout), np.clip(forward.reconstruction, -1, 1), atol=1e-5)


def test_encoding_is_deterministic_and_each_picture_for_itself(tok):
    ids = tok.encode(IMAGES)
    np.testing.assert_array_equal(tok.encode(IMAGES), ids)
    np.testing.assert_array_equal(np.concatenate([tok.encode(IMAGES[i : i + 1]) for i in range(5)]), ids)
    np.testing.assert_array_equal(tok.encode(IMAGES[::-1])[::-1], ids)


def test_bits_are_those_of_the_ids(tok):
    quantizer = tok.config.quantizer
    if isinstance(quantizer, mt.FSQ):
        with pytest.raises(UserError, match="codes of a FSQ are not bits"):
            tok.encode_bits(IMAGES)
        return
    bits = tok.encode_bits(IMAGES)
    assert bits.shape == (5, 8, quantizer.bits) and bits.dtype == np.int8 and set(np.unique(bits)) == {0, 1}
    np.testing.assert_array_equal(binary.bits_to_ids(quantizer, bits), tok.encode(IMAGES))
    turned = dataclasses.replace(quantizer, order="msb" if quantizer.order == "lsb" else "lsb", groups=quantizer.groups * 2)
    other = mt.Tokenizer(dataclasses.replace(tok.config, quantizer=turned), tok.params)
    np.testing.assert_array_equal(other.encode_bits(IMAGES), bits)  # whatever the order and the groups of the ids


def test_saved_and_loaded(tok, tmp_path):
    tok.save(tmp_path / "tok")
    loaded = mt.load(tmp_path / "tok")
    assert loaded.config == tok.config and loaded.fingerprint == tok.fingerprint
    np.testing.assert_array_equal(loaded.encode(IMAGES), tok.encode(IMAGES))


def test_ids_of_another_shape_or_size_are_refused(tok):
    ids, size, groups = tok.encode(IMAGES), tok.config.quantizer.size, tok.config.quantizer.groups
    with pytest.raises(UserError, match=rf"\[B, N, {groups}\]" if groups > 1 else r"\[B, N\]"):
        tok.decode(ids[:, 0] if groups > 1 else ids[..., None])
    with pytest.raises(UserError, match=f"codes 0 to {size - 1}"):
        tok.decode(np.full_like(ids, size))


def test_configurations_as_json():
    for quantizer in (mt.VQ(), *KINDS.values()):
        config = mt.VQGAN(NET, quantizer, image_size=16)
        assert from_json(mt.VQGAN, to_json(config)) == config
    old = {"network": to_json(NET), "quantizer": {"size": 32, "dim": 4}, "image_size": 16}  # from before there was a choice
    assert from_json(mt.VQGAN, old).quantizer == mt.VQ(32, 4)


def test_usage_of_codes_in_groups():
    config = mt.LFQ(4, groups=2)  # 2 x 4 codes
    usage = vq.start_usage(config, window=3)
    update, report = (jax.jit(f, static_argnames="groups") for f in (vq.update_usage, vq.usage_metrics))
    usage = update(usage, np.array([[[0, 3], [1, 3]]]), groups=2)
    np.testing.assert_array_equal(usage["idle"], [0, 0, 1, 1, 1, 1, 1, 0])
    metrics = report(usage, groups=2)
    np.testing.assert_allclose(metrics["usage"], 3 / 8)
    np.testing.assert_allclose(metrics["perplexity"], np.exp((np.log(2) + 0) / 2), rtol=1e-5)
    usage = update(usage, np.array([[[2, 0], [3, 1], [0, 2]]]), groups=2)  # three positions: the first two fall out
    metrics = report(usage, groups=2)
    np.testing.assert_allclose([metrics["usage"], metrics["perplexity"]], [6 / 8, 3], rtol=1e-5)
    with pytest.raises(UserError, match="set the quantizer's groups"):
        vq.start_usage(mt.LFQ(30))
