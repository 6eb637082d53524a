"""LlamaGen's tokenizer against numbers of its own code, and the presets against the names and shapes of the published files."""

import json
import os
import pickle
import zipfile

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import flatten, read_checkpoint, save_arrays, unflatten
from mmgen_tokenizers.networks import layers
from mmgen_tokenizers.pretrained import export, llamagen
from mmgen_tokenizers.pretrained.from_weights import fitted

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(parity):
    """(folder, arrays, config, tokenizer)."""
    folder = parity("llamagen_vq")
    config = json.loads((folder / "meta.json").read_text())["config"]
    with np.load(folder / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return folder, arrays, config, mt.convert("llamagen-vq", folder / "model.safetensors", config=config)


def close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value; ours [B, H, W, C] where theirs is [B, C, H, W]."""
    ours = np.asarray(ours)
    ours = ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def pictures(array):
    return array.transpose(0, 2, 3, 1)


def test_activations(fixture):
    _, io, _, tok = fixture

    @jax.jit
    def run(weights, x, codes):
        net = layers.bind(vqgan.Network, weights, tok.config)
        first = net.encoder.conv_in(x)
        down = net.encoder.downs["0"](net.encoder.levels["0"](first))
        z = net.decoder.conv_in(net.post_quant_conv(codes))
        deep = net.encoder(x)
        return first[:, ::8, ::8], down[:, ::4, ::4], deep, net.quant_conv(deep), z, net.decoder.middle(z)

    weights = {name: p for name, p in tok.params.items() if name != "quantizer"}
    got = run(weights, pictures(io["image"]), pictures(io["quant"]))
    for name, array in zip(("enc_conv_in", "enc_down0", "enc_out", "latents", "dec_conv_in", "dec_mid"), got, strict=True):
        close(array, io[name])


def test_pictures_to_ids_and_back(fixture):
    _, io, _, tok = fixture
    x = pictures(io["image"])
    ids = tok.encode(x)
    np.testing.assert_array_equal(ids, io["indices"].reshape(2, -1))
    close(tok.embed(ids).reshape(2, 4, 4, 8), io["quant"])
    close(tok.embed(io["rand_indices"].reshape(2, -1)).reshape(2, 4, 4, 8), io["rand_zq"])
    both = tok.decode(np.concatenate([ids, io["rand_indices"].reshape(2, -1)]))  # 64 pixels: another square than 256
    close(both[:2], io["recon_from_indices"].clip(-1, 1))
    close(both[2:], io["recon_rand"].clip(-1, 1))


def test_losses_and_gradients(fixture):
    _, io, _, tok = fixture
    x = pictures(io["image"])

    @jax.jit
    def run(params, x):
        def loss(p):
            forward = vqgan.forward(tok.config, p, x)
            return jnp.square(forward.reconstruction - x).mean() + sum(forward.losses.values()), forward

        (total, forward), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return total, forward, gradient, jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(gradient)))

    total, forward, gradient, norm = run(tok.params, x)
    close(forward.reconstruction, io["recon"])
    for name, value in (("vq_loss", "codebook"), ("commit_loss", "commitment"), ("entropy_loss", "entropy")):
        np.testing.assert_allclose(forward.losses[value], io[name], rtol=1e-5)
    np.testing.assert_allclose(total, io["total_loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, io["grad_norm"], rtol=1e-4)
    close(np.asarray(gradient["encoder"]["conv_in"]["kernel"]).transpose(3, 0, 1, 2), io["grad_enc_conv_in"])
    close(gradient["quantizer"]["codebook"], io["grad_codebook"], 5e-4)  # the temperature of 0.01 magnifies rounding


def test_round_trip_is_bitwise(fixture, tmp_path):
    folder, _, _, tok = fixture
    theirs = read_checkpoint(folder / "model.safetensors")
    tok.save(tmp_path / "tok")
    export(mt.load(tmp_path / "tok"), tmp_path / "back", "llamagen")
    back = read_checkpoint(tmp_path / "back" / "model.safetensors")
    assert theirs.keys() == back.keys()
    assert all(theirs[name].tobytes() == back[name].tobytes() and theirs[name].shape == back[name].shape for name in theirs)


def test_a_used_usage_buffer_survives_too(fixture, tmp_path):
    folder, _, config, _ = fixture
    state = read_checkpoint(folder / "model.safetensors")
    state["quantize.codebook_used"] = np.arange(65536, dtype=np.float32)
    save_arrays(tmp_path / "used", unflatten(state))
    mt.convert("llamagen-vq", tmp_path / "used" / "model.safetensors", tmp_path / "tok", config)
    export(mt.load(tmp_path / "tok"), tmp_path / "back")
    back = read_checkpoint(tmp_path / "back" / "model.safetensors")
    assert back["quantize.codebook_used"].tobytes() == state["quantize.codebook_used"].tobytes()


def test_configuration_is_read_off_the_weights(fixture):
    folder, _, config, tok = fixture
    again = mt.convert("llamagen-vq", folder / "model.safetensors", config={"entropy_loss_ratio": 0.1})
    assert again.config == tok.config and again.fingerprint == tok.fingerprint
    written = {
        "encoder_ch_mult": [1, 1, 1, 2, 2],
        "decoder_ch_mult": [1, 1, 1, 2, 2],
        "codebook_show_usage": True,
        "dropout_p": 0.0,
    }
    assert mt.convert("llamagen-vq", folder / "model.safetensors", config=written).config.network == tok.config.network


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ch": 64}, "has ch 64, but here it is 32"),
        ({"codebook_size": 512}, "has codebook_size 512"),
        ({"num_res_blocks": 3}, "has num_res_blocks 3"),
        ({"downsample": 8}, "has downsample 8, but here it is 16"),
        ({"encoder_ch_mult": [1, 2], "decoder_ch_mult": [1, 1]}, "has encoder_ch_mult "),
        ({"chmult": [1, 2]}, "Did you mean 'ch_mult'"),
    ],
)
def test_a_wrong_config_is_refused(fixture, change, words):
    folder, _, config, _ = fixture
    kept = {} if "encoder_ch_mult" in change else config
    with pytest.raises(UserError, match=words):
        mt.convert("llamagen-vq", folder / "model.safetensors", config=kept | change)


def test_a_foreign_tokenizer_is_not_exported(fixture, tmp_path):
    config = mt.VQGAN(mt.CNN(4, (1,), 1, 2, attention_levels=(0,), latent=4, groups=2, stem=2), mt.VQ(16, 4), 8)
    with pytest.raises(UserError, match="stem is 2, there it is 1"):
        export(mt.Tokenizer(config, vqgan.init(config, jax.random.key(0))), tmp_path / "no")
    with pytest.raises(UserError, match="Did you mean 'llamagen'"):
        export(fixture[3], tmp_path / "no", "lamagen")


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8"])
def test_preset_has_the_names_and_shapes_of_the_published_file(parity, name):
    """Full size, nothing allocated but zeros that the system never backs with memory."""
    keys = json.loads((parity("keys") / f"llamagen_{name}.json").read_text())["keys"]
    published = {key: np.broadcast_to(np.float32(0), shape) for key, (_, shape) in keys.items()}
    preset = llamagen.PRESETS[name]
    assert llamagen.configure(None, published) == preset  # also what a conversion finds by itself
    table = llamagen.table(len(preset.network.multipliers))
    ours = flatten(fitted(preset, published, table))  # raises where a name or a shape differs
    expected = flatten(shapes(preset))
    assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in expected.items()}
    zeros = unflatten({n: np.broadcast_to(np.float32(0), leaf.shape) for n, leaf in expected.items()})
    back = llamagen.to_reference(zeros, preset)
    assert {n: list(a.shape) for n, a in back.items()} == {n: shape for n, (_, shape) in keys.items()}


def test_torch_file_is_read_without_running_it(fixture, tmp_path):
    """A malicious .pt: its code does not run, and the answer is one line."""
    marker = tmp_path / "owned"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"model": {"encoder.conv_in.weight": Evil()}}))
    with pytest.raises(UserError):
        mt.convert("llamagen-vq", tmp_path / "evil.pt")
    assert not marker.exists()
