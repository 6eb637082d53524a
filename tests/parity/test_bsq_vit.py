"""BSQ-ViT against numbers of its own code, and the preset against the names and shapes of the published files."""

import json

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import flatten, read_checkpoint, rename, save_arrays, unflatten
from mmgen_tokenizers.networks import layers
from mmgen_tokenizers.pretrained import bsq_vit

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(parity):
    """(folder, arrays, tokenizer)."""
    folder = parity("bsq_vit")
    config = json.loads((folder / "meta.json").read_text())["config"]
    chosen = {key: config[key] for key in (*bsq_vit.DEFAULTS, *bsq_vit.CLAIMS, *bsq_vit.IGNORED) if key in config}
    with np.load(folder / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return folder, arrays, mt.convert("bsq-vit", folder / "model.safetensors", config=chosen | {"heads": 4})


def pictures(array):
    return array.transpose(0, 2, 3, 1)


def close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value; a grid [B, h, w, D] is a sequence there."""
    ours = np.asarray(ours)
    ours = ours.reshape(theirs.shape) if ours.size == theirs.size else ours
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_activations(fixture):
    _, io, tok = fixture

    @jax.jit
    def run(params):
        net = layers.bind(vqgan.Network, params, tok.config)
        deep = net.encoder(pictures(io["image"]))
        z = net.post_quant_conv(io["quant"])
        hidden = net.decoder.hidden(z.reshape(2, 4, 4, -1))
        return deep, net.quant_conv(deep), z, hidden, net.decoder.conv_out(hidden)

    got = run(tok.params)
    *rest, patches = got
    for name, array in zip(("enc_out", "quant_embed", "post_quant_embed", "dec_ffn"), rest, strict=True):
        close(array, io[name])
    in_their_order = np.asarray(patches).reshape(2, 16, 64, 3).swapaxes(2, 3)  # (channel, dy, dx)
    close(in_their_order, io["dec_conv_out"])


def test_pictures_to_ids_and_back(fixture):
    _, io, tok = fixture
    ids = tok.encode(pictures(io["image"]))
    np.testing.assert_array_equal(ids, io["ids"])
    np.testing.assert_array_equal(tok.encode_bits(pictures(io["image"])), io["bits"])
    close(tok.embed(io["rand_ids"]), io["rand_quant"])
    both = np.concatenate([ids, io["rand_ids"]])
    theirs = pictures(np.concatenate([io["recon_from_ids"], io["recon_rand"]]))
    close(jax.jit(lambda p: vqgan.decode(tok.config, p, both, 4, 4))(tok.params), theirs)
    close(tok.decode(both), theirs.clip(-1, 1))


def test_training_forward(fixture):
    _, io, tok = fixture
    f = jax.jit(lambda p: vqgan.forward(tok.config, p, pictures(io["image"])))(tok.params)
    close(f.reconstruction, pictures(io["recon"]))
    np.testing.assert_allclose(sum(f.losses.values()), io["loss"], atol=1e-5)  # of two entropies near 8
    entropy = io["persample_entropy"] - io["codebook_entropy"]
    np.testing.assert_allclose(f.losses["commitment"], io["loss"] - entropy, rtol=1e-4)  # their beta of 0 never arrives


def test_configuration_is_read_off_the_weights(fixture, tmp_path):
    folder, _, tok = fixture
    again = mt.convert("bsq-vit", folder / "model.safetensors", config={"heads": 4})
    assert again.config == tok.config and again.config.quantizer.block == 4
    state = {f"module.module.{name}": array for name, array in read_checkpoint(folder / "model.safetensors").items()}
    save_arrays(tmp_path, unflatten(state))  # as a file of averaged weights names them
    assert mt.convert("bsq-vit", tmp_path, tmp_path / "tok", {"heads": 4}).fingerprint == tok.fingerprint
    assert mt.load(tmp_path / "tok").config == tok.config


@pytest.mark.parametrize(
    "change, words",
    [({"embed_dim": 18}, "embed_dim"), ({"l2_norm": False}, "l2_norm"), ({"patch": 8}, "unknown config key 'patch'")],
)
def test_a_wrong_config_is_refused(parity, change, words):
    with pytest.raises(UserError, match=words):
        mt.convert("bsq-vit", parity("bsq_vit") / "model.safetensors", config=change)


PUBLISHED_AS = {"BSQ-ViT-18": "256x256_bsqvit_b18g18", "BSQ-ViT-36": "256x256_bsqvit_b36g36"}


@pytest.mark.parametrize("name", bsq_vit.PRESETS)
def test_preset_has_the_names_and_shapes_of_the_published_file(parity, name):
    """Full size, nothing allocated but zeros that the system never backs with memory."""
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / f"bsq_{PUBLISHED_AS[name]}.json").read_text())
    state = bsq_vit.channels_last({key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()})
    preset = bsq_vit.PRESETS[name]
    assert bsq_vit.configure(None, state) == preset
    rename(state, bsq_vit.TABLE, {key: leaf.shape for key, leaf in flatten(shapes(preset)).items()})
