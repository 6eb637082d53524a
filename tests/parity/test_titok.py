"""TiTok, with MaskGIT's decoder and with its own, against numbers of its own code; the presets against the published names."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import titok
from mmgen_tokenizers.files import flatten, read_checkpoint, rename
from mmgen_tokenizers.pretrained import titok as published

pytestmark = pytest.mark.parity
KEYS = (*published.DEFAULTS, *published.CLAIMS)


@pytest.fixture(scope="module", params=["titok", "titok_rgb"])
def fixture(request, parity):
    """(folder, arrays, the reference's configuration, tokenizer)."""
    folder = parity(request.param)
    config = json.loads((folder / "meta.json").read_text())["config"]
    config = {key: config[key] for key in KEYS}
    with np.load(folder / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return folder, arrays, config, mt.convert("titok", folder / "model.safetensors", config=config)


def pictures(array):
    """Theirs [B, C, H, W] in [0, 1] -> ours."""
    return array.transpose(0, 2, 3, 1) * 2 - 1


def close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


def latents(tok, io):
    return jax.jit(lambda p: titok.encode_latents(tok.config, p, pictures(io["image"])))(tok.params)


def test_activations(fixture):
    _, io, _, tok = fixture
    close(latents(tok, io), io["z"][:, :, 0].swapaxes(1, 2))

    @jax.jit
    def decoder_out(params):
        network = titok._network(tok.config, params)
        x = network.decoder(network.post_quant_conv(jnp.asarray(io["z_quantized"][:, :, 0].swapaxes(1, 2))))
        head = network.head
        return head.hidden(x) if tok.config.proxy is None else head.scores(jnp.tanh(head.ffn(x)))

    if tok.config.proxy is not None:  # of the other the array is what its last convolution gives: the picture
        close(decoder_out(tok.params), io["decoder_out"].transpose(0, 2, 3, 1))


def test_pictures_to_ids_and_back(fixture):
    _, io, _, tok = fixture
    ids = tok.encode(pictures(io["image"]))
    np.testing.assert_array_equal(ids, io["ids"][:, 0])
    close(tok.embed(ids), io["z_quantized"][:, :, 0].swapaxes(1, 2))
    both = np.concatenate([ids, io["rand_ids"][:, 0]])
    drawn = jax.jit(lambda p: titok.decode(tok.config, p, both, 1, 8))(tok.params)  # not clamped: most of it is beyond 1
    close(drawn, pictures(np.concatenate([io["recon_from_ids"], io["recon_rand"]])))


def test_training_forward(fixture):
    _, io, _, tok = fixture
    forward = jax.jit(lambda p: titok.forward(tok.config, p, pictures(io["image"])))(tok.params)
    close(forward.reconstruction, pictures(io["recon"]))
    np.testing.assert_array_equal(forward.ids, io["ids"][:, 0])
    if io["quantizer_loss"]:  # the reference trains no codes under MaskGIT's decoder
        np.testing.assert_allclose(sum(forward.losses.values()), io["quantizer_loss"], rtol=1e-5)


def test_latents_are_scrambled_where_they_were_published_so(fixture):
    folder, io, config, tok = fixture
    assert tok.config.scrambled == (tok.config.proxy is not None)
    other = mt.convert("titok", folder / "model.safetensors", config=config | {"is_legacy": not config["is_legacy"]})
    theirs = io["z"][:, :, 0].swapaxes(1, 2)
    assert np.abs(latents(other, io) - theirs).max() > 0.1 * np.abs(theirs).max()


def test_configuration_is_read_off_the_weights(fixture):
    folder, _, config, tok = fixture
    wanted = {} if tok.config.proxy else {"use_l2_norm": True}  # the published ones of one stage have it not
    again = mt.convert("titok", folder / "model.safetensors", config={"heads": 2, **wanted})
    assert again.config == tok.config and again.fingerprint == tok.fingerprint
    assert mt.convert("titok", folder / "model.safetensors").config.encoder.heads == 1  # 64 channels a head


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_latent_tokens": 32}, "num_latent_tokens"),
        ({"crop_size": 256}, "crop_size"),
        ({"heads": 3}, "use heads=2"),
        ({"usel2norm": True}, "Did you mean 'use_l2_norm'"),
    ],
)
def test_a_wrong_config_is_refused(parity, change, words):
    with pytest.raises(UserError, match=words):
        mt.convert("titok", parity("titok") / "model.safetensors", config=change)


def test_saved_and_loaded(fixture, tmp_path):
    _, io, _, tok = fixture
    tok.save(tmp_path / "tok")
    again = mt.load(tmp_path / "tok")
    assert again.config == tok.config and again.family == again.source == "titok"
    layout = again.layout
    assert (layout.kind, layout.sites, layout.codebook_size, layout.ordered) == ("sequence", 8, 256, False)
    close(again.decode(io["rand_ids"][:, 0]), pictures(io["recon_rand"]).clip(-1, 1))


def test_every_weight_is_used_and_goes_back_to_the_bit(fixture):
    folder, _, _, tok = fixture
    theirs = read_checkpoint(folder / "model.safetensors")
    back = rename({name: np.asarray(array) for name, array in flatten(tok.params).items()}, published.table(), None, back=True)
    assert back.keys() == theirs.keys()
    assert all(back[name].tobytes() == theirs[name].tobytes() for name in theirs)


PUBLISHED_AS = {"TiTok-L-32": "l32", "TiTok-B-64": "b64", "TiTok-S-128": "s128", "TiTok-BL-64-VQ": "bl64_vq8k",
                "TiTok-BL-128-VQ": "bl128_vq8k", "TiTok-SL-256-VQ": "sl256_vq8k"}  # fmt: skip


@pytest.mark.parametrize("name", published.PRESETS)
def test_preset_has_the_names_and_shapes_of_the_published_file(parity, name):
    """Full size, nothing allocated but zeros that the system never backs with memory."""
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / f"titok_{PUBLISHED_AS[name]}.json").read_text())
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    preset = published.PRESETS[name]
    assert published.configure(None, state) == preset
    rename(state, published.table(), {key: leaf.shape for key, leaf in flatten(shapes(preset)).items()})


def test_the_two_key_tables_agree(parity):
    for name in ("l32", "b64", "s128", "bl64_vq8k"):
        keys = json.loads((parity("keys") / f"titok_{name}.json").read_text())["keys"]
        others = json.loads((parity().parent / "research" / "tokenizer_keys" / f"titok_{name}.json").read_text())
        assert {key: shape for key, (_, shape) in keys.items()} == others


def test_continuous_titok_is_refused(parity):
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / "titok_bl64_vae_c16.json").read_text())
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    with pytest.raises(UserError, match="no quantize.embedding.weight: is it a tokenizer of titok"):
        published.configure(None, state)


def test_no_other_size_of_picture(fixture):
    with pytest.raises(UserError, match="knows 64 x 64 only"):
        fixture[3].encode(np.zeros((1, 64, 80, 3), np.uint8))
    with pytest.raises(UserError, match="patch 16 must be its factor, 8"):
        proxy = mt.Proxy(network=dataclasses.replace(titok.MASKGIT, multipliers=(1, 1, 2, 2)))
        mt.TiTok(proxy=proxy, image_size=256)
