"""The family TiTok: its pure functions agree with each other, with either way to draw pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers import cli
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import titok, vqgan
from mmgen_tokenizers.files import flatten
from mmgen_tokenizers.pictures import read_picture, write_png
from mmgen_tokenizers.shards import ShardReader

TRUNK = mt.Trunk(width=16, layers=1, heads=2)
TINY = mt.TiTok(TRUNK, mt.Trunk(8, 1, 1), mt.VQ(size=32, dim=4), tokens=5, image_size=16, patch=8)
CNN = dataclasses.replace(titok.MASKGIT, channels=4, multipliers=(1, 1, 2, 2), decoder_blocks=1, groups=2, latent=6)
LEGACY = dataclasses.replace(TINY, proxy=mt.Proxy(10, CNN), scrambled=True)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=[TINY, LEGACY], ids=["pixels", "proxy"])
def passed(request):
    """(configuration, parameters, the pass of a training step)."""
    params = titok.init(request.param, jax.random.key(0))
    return request.param, params, jax.jit(lambda p: titok.forward(request.param, p, IMAGES))(params)


def test_parameters_are_a_plain_nested_dict(passed):
    config, params, _ = passed
    flat = flatten(params)
    assert {n.split(".")[0] for n in flat} == {"encoder", "quant_conv", "quantizer", "post_quant_conv", "decoder", "head"}
    assert all(leaf.dtype == jnp.float32 for leaf in flat.values())
    assert flat["encoder.latents"].shape == (5, 16) and flat["decoder.latent_positions"].shape == (5, 8)
    assert ("head.codebook" in flat) == (config.proxy is not None)


def test_forward_equals_its_parts(passed):
    config, params, f = passed
    tok = mt.Tokenizer(config, params)
    assert f.reconstruction.shape == IMAGES.shape and f.latents.shape == (2, 5, 4) and f.ids.shape == (2, 5)
    ids = tok.encode(IMAGES)
    np.testing.assert_array_equal(ids, f.ids)
    np.testing.assert_allclose(tok.decode(ids), f.reconstruction.clip(-1, 1), atol=1e-5)


def test_last_layer_gives_the_reconstruction(passed):
    config, params, f = passed
    apply, kernel = titok.last_layer(config, params, f)
    apply = jax.jit(apply)
    np.testing.assert_allclose(apply(kernel), f.reconstruction, atol=1e-6)
    assert jnp.abs(apply(kernel * 2) - f.reconstruction).max() > 0.01


def test_networks_see_and_draw_zero_to_one(passed):
    config, params, f = passed
    network = titok._network(config, params)
    want = network.quant_conv(network.encoder((IMAGES + 1) / 2))
    scrambled = np.abs(np.asarray(want) - f.latents).max() > 1e-3
    assert scrambled == config.scrambled
    np.testing.assert_allclose(network.head.picture(f.hidden) * 2 - 1, f.reconstruction, atol=1e-5)


def test_scrambled_latents_mix_tokens():
    """The published reshape, on numbers that say where they came from: latent n reads entries n, n + N, n + 2 N ..."""
    params = titok.init(LEGACY, jax.random.key(0))
    network = titok._network(LEGACY, params)
    x = np.asarray(network.encoder((IMAGES + 1) / 2))
    kernel, bias = (np.asarray(params["quant_conv"][name]) for name in ("kernel", "bias"))
    want = np.stack([x[1].reshape(-1)[n::5] @ kernel + bias for n in range(5)])
    np.testing.assert_allclose(titok.encode_latents(LEGACY, params, IMAGES)[1], want, atol=1e-5)


def test_layout_and_sizes():
    tok = mt.Tokenizer(TINY, titok.init(TINY, jax.random.key(0)))
    assert tok.family == "titok" and tok.layout == mt.TokenLayout("sequence", 1, 5, 32)
    for images in (np.zeros((1, 16, 24, 3), np.uint8), np.zeros((1, 32, 32, 3), np.uint8)):
        with pytest.raises(UserError, match="knows 16 x 16 only"):
            tok.encode(images)
    with pytest.raises(UserError, match="4 ids a picture, but the layout is 1 x 5 = 5 ids"):  # 4 is no 2 x 2 grid, nor a prefix
        tok.decode(np.zeros((1, 4), np.int32))


def test_commands_take_a_sequence_of_ids(tmp_path):
    """The layout of one row: its width is no width of pictures."""
    tok = mt.Tokenizer(TINY, titok.init(TINY, jax.random.key(0)))
    tok.save(tmp_path / "tok")
    write_png(tmp_path / "a.png", np.full((20, 30, 3), 200, np.uint8))
    common = ["--tokenizer", str(tmp_path / "tok"), "--out"]
    assert cli.main(["encode", str(tmp_path), *common, str(tmp_path / "codes")]) == 0
    assert cli.main(["decode", str(tmp_path / "codes"), *common, str(tmp_path / "out")]) == 0
    want = tok.decode(ShardReader(tmp_path / "codes")[0]["ids"])[0]
    np.testing.assert_allclose(read_picture(tmp_path / "out" / "00000_a.png") / 127.5 - 1, want, atol=1 / 255 + 1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(image_size=20), "use 16"),
        (dict(patch=4, proxy=mt.Proxy(10, CNN)), "patch 4 must be its factor, 8"),
    ],
)
def test_contradictions_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TINY, **change)


def test_a_vqgan_of_vision_transformers(tmp_path):
    """ViT-VQGAN (arXiv 2110.04627): the grid network stands where the convolutional one does."""
    net = mt.ViT(TRUNK, image_size=16, patch=4, head=8)
    config = mt.VQGAN(net, mt.VQ(size=32, dim=4), image_size=16)
    tok = mt.Tokenizer(config, vqgan.init(config, jax.random.key(0)))
    f = jax.jit(lambda p: vqgan.forward(config, p, IMAGES))(tok.params)
    ids = tok.encode(IMAGES)
    assert ids.shape == (2, 16)
    np.testing.assert_array_equal(ids, f.ids)
    np.testing.assert_allclose(tok.decode(ids), f.reconstruction.clip(-1, 1), atol=1e-5)
    apply, kernel = vqgan.last_layer(config, tok.params, f)
    np.testing.assert_allclose(apply(kernel), f.reconstruction, atol=1e-5)
    tok.save(tmp_path / "tok")
    assert mt.load(tmp_path / "tok").config == config
    with pytest.raises(UserError, match="knows 16 x 16 only"):
        tok.encode(np.zeros((1, 16, 24, 3), np.uint8))
    with pytest.raises(UserError, match="must be the network's, 16"):
        dataclasses.replace(config, image_size=32)
