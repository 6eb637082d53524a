"""The tokenizers of taming, MaskGIT and IBQ against numbers of their own code; also Chameleon's against published shapes."""

import dataclasses
import functools
import json

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
from mmgen_tokenizers.pretrained import PUBLISHED, chameleon, ibq, maskgit, taming
from mmgen_tokenizers.pretrained.from_weights import averaged, fitted
from mmgen_tokenizers.quantizers import vq

pytestmark = pytest.mark.parity
FOLDERS = {"taming_vqgan": taming, "maskgit_vqgan": maskgit, "ibq": ibq}
QUANT = {"taming_vqgan": "quant", "maskgit_vqgan": "zq", "ibq": "quant"}


@functools.cache
def loaded(folder):
    """(family, their config, arrays channels last, tokenizer)."""
    family = FOLDERS[folder.name]
    config = json.loads((folder / "meta.json").read_text())["config"]
    with np.load(folder / "io.npz") as file:
        io = {name: file[name] for name in file.files}
    io = {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 and n != "logits" else a for n, a in io.items()}
    return family, config, io, mt.convert(family.FAMILY, folder / "model.safetensors", config=config)


@pytest.fixture(params=FOLDERS)
def fixture(request, parity):
    return loaded(parity(request.param))


def signed(family, pictures):
    """Their pictures in [-1, 1]: MaskGIT has [0, 1]."""
    return pictures * 2 - 1 if family is maskgit else pictures


def close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def through(level, x):
    """The outputs of a level's blocks and attentions, in order."""
    seen = []
    for block in map(str, range(level.count)):
        for part in (level.blocks, level.attention):
            x = x if part is None else part[block](x)
            seen.append(x)
    return seen


def activations(config, params, image, codes):
    """What the fixtures keep of the way to the latents and back, by their names."""
    net = layers.bind(vqgan.Network, {name: p for name, p in params.items() if name != "quantizer"}, config)
    encoder, decoder = net.encoder, net.decoder
    seen = {"enc_conv_in": encoder.conv_in(image), "enc_out": encoder(image)}
    seen["enc_down0"] = seen["enc_downsample0"] = encoder.downs["0"](encoder.levels["0"](seen["enc_conv_in"]))
    seen["enc_down1"] = encoder.downs["1"](encoder.levels["1"](seen["enc_down0"]))
    lowest = through(encoder.levels["2"], seen["enc_down1"])
    seen |= {"enc_attn": lowest[1], "enc_mid": encoder.middle(lowest[-1])}
    if encoder.middle.attention is not None:
        seen["enc_mid_attn"] = encoder.middle.attention(encoder.middle.blocks["0"](lowest[-1]))
    seen["dec_conv_in"] = decoder.conv_in(codes if net.post_quant_conv is None else net.post_quant_conv(codes))
    seen["dec_mid"] = decoder.middle(seen["dec_conv_in"])
    lowest = through(decoder.levels["2"], seen["dec_mid"])
    seen |= {"dec_up_last": lowest[-2], "dec_up2": decoder.ups["2"](lowest[-1])}
    seen["dec_up1"] = seen["dec_upsample1"] = decoder.ups["1"](decoder.levels["1"](seen["dec_up2"]))
    return seen


def test_activations(fixture):
    family, _, io, tok = fixture
    image = io["image"]
    seen = jax.jit(functools.partial(activations, tok.config))(tok.params, image, io[QUANT[_name(family)]])
    kept = [name for name in io if name.startswith(("enc_", "dec_"))]
    assert len(kept) >= 8 and set(kept) <= seen.keys()
    for name in kept:
        stride = seen[name].shape[1] // io[name].shape[1]
        close(seen[name][:, ::stride, ::stride], io[name])


def _name(family):
    return next(name for name, other in FOLDERS.items() if other is family)


def test_pictures_to_ids_and_back(fixture):
    family, _, io, tok = fixture
    ids = tok.encode(signed(family, io["image"]))
    np.testing.assert_array_equal(ids, io["ids"])
    close(tok.embed(ids).reshape(io["latents"].shape), io[QUANT[_name(family)]])
    both = tok.decode(np.concatenate([ids, io["rand_ids"]]))
    want = signed(family, np.concatenate([io["recon"], io["recon_rand"]]))
    close(both, want.clip(-1, 1))
    assert np.abs(want).max() > 1  # so that clamping is seen


def test_training_pass_gives_unclamped_pictures_and_the_losses_of_the_quantizer(fixture):
    family, _, io, tok = fixture
    got = jax.jit(lambda p, x: vqgan.forward(tok.config, p, x))(tok.params, signed(family, io["image"]))
    close(got.latents, io["latents"])
    close(got.reconstruction, signed(family, io["recon"]))
    np.testing.assert_array_equal(got.ids, io["ids"])
    want = next(io[name] for name in ("emb_loss", "quantizer_loss", "quant_loss") if name in io)
    np.testing.assert_allclose(sum(loss for name, loss in got.losses.items() if name != "entropy"), want, rtol=1e-5)


# IBQ's quantizer ---------------------------------------------------------------------------------------------------


def test_index_backpropagation(parity):
    """Scores, losses and gradients from the saved latents."""
    _, _, io, tok = loaded(parity("ibq"))
    config, z = dataclasses.replace(tok.config.quantizer, entropy=1.0), io["latents"]
    close(vq._affinity(config, z.reshape(-1, 16), tok.params["quantizer"]["codebook"]), io["logits"].reshape(-1, 256))

    def losses(params, z):
        q = vq.quantize(config, params, z)
        distance = sum(q.losses[name] for name in ("codebook", "commitment", "index"))
        return jnp.stack([(q.codes * io["R"]).sum() / len(z), distance, q.losses["entropy"]]), q.codes

    (values, codes), gradients = jax.jit(lambda p, z: (losses(p, z), jax.jacrev(lambda *a: losses(*a)[0], (0, 1))(p, z)))(
        tok.params["quantizer"], z
    )
    close(codes, io["quant"])
    np.testing.assert_allclose(values[1:], [io["quant_loss"], io["entropy_loss"]], rtol=1e-5)
    for i, name in enumerate(("st", "quant_loss", "entropy")):
        close(gradients[0]["codebook"][i], io[f"grad_codebook_{name}"])
        close(gradients[1][i], io[f"grad_z_{name}"])


# What a converter can get wrong ------------------------------------------------------------------------------------


def ids_with(tok, image, network=None, quantizer=None, **changes):
    config = dataclasses.replace(
        tok.config,
        network=dataclasses.replace(tok.config.network, **(network or {})),
        quantizer=dataclasses.replace(tok.config.quantizer, **(quantizer or {})),
        **changes,
    )
    return mt.Tokenizer(config, tok.params).encode(image)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("taming_vqgan", {"network": {"down": "symmetric"}}),
        ("taming_vqgan", {"quantizer": {"normalize": True}}),
        ("maskgit_vqgan", {"range": "signed"}),
        ("ibq", {"quantizer": {"backpropagation": "latent"}}),
    ],
)
def test_the_numbers_tell_each_switch(parity, name, changes):
    """Padding, normalisation, range, inner product instead of distance: turned the other way, ids come out otherwise."""
    family, _, io, tok = loaded(parity(name))
    image = signed(family, io["image"])
    assert (ids_with(tok, image) == io["ids"]).all()
    assert (ids_with(tok, image, **changes) != io["ids"]).mean() > 0.02


def test_maskgit_drops_the_input_where_channels_change(parity):
    keys = read_checkpoint(parity("maskgit_vqgan") / "model.safetensors")
    _, _, _, tok = loaded(parity("maskgit_vqgan"))
    assert keys["encoder.down.2.block.0.nin_shortcut.weight"].shape == (64, 64, 1, 1)  # not [64, 32]: it reads its own output
    assert tok.config.network.shortcut == "output"
    with pytest.raises(UserError, match="of another shape"):
        config = dataclasses.replace(tok.config, network=dataclasses.replace(tok.config.network, shortcut="input"))
        fitted(config, keys, maskgit.table())


def test_the_moving_average_is_taken_and_losses_are_dropped(parity, tmp_path):
    folder = parity("ibq")
    state = read_checkpoint(folder / "model.safetensors")
    training = {f"state_dict.{n}": a + 1 for n, a in state.items()}
    means = {"model_ema." + n.replace(".", ""): a for n, a in state.items()}
    extra = {"loss.discriminator.main.0.weight": np.ones(3, np.float32), "model_ema.decay": np.float32(0.999)}
    stored = {n.removeprefix("state_dict."): a for n, a in training.items()} | means | extra
    stored["model_ema.lossdiscriminatormain0weight"] = np.zeros(3, np.float32)
    save_arrays(tmp_path, unflatten(stored))
    tok = mt.convert("ibq", tmp_path / "model.safetensors", config=loaded(folder)[1])
    assert tok.fingerprint == loaded(folder)[3].fingerprint
    del stored["model_ema.decoderconv_inbias"]
    with pytest.raises(UserError, match="none of decoder.conv_in.bias"):
        averaged(stored)


# Configurations ----------------------------------------------------------------------------------------------------


def test_configuration_is_read_off_the_weights(fixture, parity):
    family, config, _, tok = fixture
    assert family.configure({"resolution": 32}, _state(family, parity)).network == tok.config.network
    assert tok.config.image_size == 32 and tok.source == family.FAMILY
    flat = {key: value for key, value in config.items() if key != "ddconfig"} | config.get("ddconfig", {})
    assert family.configure(flat, _state(family, parity)) == tok.config


def _state(family, parity):
    return read_checkpoint(parity(_name(family)) / "model.safetensors")


def test_training_settings_of_a_conversion(parity):
    """taming's legacy loss puts beta on the codebook, MaskGIT's port does likewise; IBQ's entropy is a switch."""

    def weights(family, **config):
        quantizer = family.configure({"resolution": 32} | config, _state(family, parity)).quantizer
        return quantizer.codebook, quantizer.commitment, quantizer.entropy

    assert weights(taming) == weights(maskgit) == (0.25, 1.0, 0.0)
    assert weights(taming, beta=0.5, legacy=False) == (1.0, 0.5, 0.0)
    assert weights(maskgit, commitment_cost=0.1) == (0.1, 1.0, 0.0)
    assert weights(ibq) == (0.25, 1.0, 0.05) and weights(ibq, use_entropy_loss=False) == (0.25, 1.0, 0.0)


def test_saved_and_loaded(fixture, tmp_path):
    _, _, _, tok = fixture
    tok.save(tmp_path / "tok")
    again = mt.load(tmp_path / "tok")
    assert again.config == tok.config and again.fingerprint == tok.fingerprint and again.source == tok.source


@pytest.mark.parametrize(
    "family, change, words",
    [
        (taming, {"ch": 64}, "has ch 64, but here it is 32"),
        (taming, {"ddconfig": {"attn_resolutions": [16]}}, r"has attn_resolutions \[16\], but here it is \{8\}"),
        (taming, {"ddconfig": {"n_embedd": 1}}, "Did you mean 'n_embed'"),
        (taming, {"remap": "used.npy"}, "unknown config key 'remap'"),
        (maskgit, {"channel_mult": [1, 2, 2]}, "has channel_mult"),
        (maskgit, {"num_embeddings": 1024}, "has num_embeddings 1024, but here it is 256"),
        (ibq, {"batch_maximization_weight": 0.5}, "has batch_maximization_weight 0.5, but here it is 1.0"),
    ],
)
def test_a_wrong_config_is_refused(parity, family, change, words):
    with pytest.raises(UserError, match=words):
        family.configure({"resolution": 32} | change, _state(family, parity))


def test_weights_of_another_family_are_refused(parity):
    with pytest.raises(UserError, match="no encoder.down.0.block.0.conv2.weight: is it a tokenizer of taming-vqgan"):
        taming.configure(None, read_checkpoint(parity("llamagen_vq") / "model.safetensors"))
    with pytest.raises(UserError, match="no encoder.mid.0.conv1.weight: is it a tokenizer of maskgit-vqgan"):
        maskgit.configure(None, _state(taming, parity))
    state = _state(taming, parity)
    del state["decoder.up.1.block.2.conv1.bias"]
    with pytest.raises(UserError, match="missing: decoder.up.1.block.2.conv1.bias"):
        fitted(taming.configure(None, state), state, taming.table())


FULL_SIZE = {
    "taming-f16-1024": "taming_1024", "taming-f16-16384": "taming_16384", "chameleon": "taming_8192_chameleon",
    "maskgit-f16-256": "maskgit_vqgan", "IBQ-1024": "ibq_1024", "IBQ-16384": "ibq_16384", "IBQ-262144": "ibq_262144",
}  # fmt: skip


@pytest.mark.parametrize("name", FULL_SIZE)
def test_preset_has_the_names_and_shapes_of_the_published_file(parity, name):
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / f"{FULL_SIZE[name]}.json").read_text())
    published = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    family = next(f for f in (taming, chameleon, maskgit, ibq) if name in f.PRESETS)
    preset = family.PRESETS[name]
    assert family.configure(None, published) == preset  # what a conversion finds by itself
    table = maskgit.table() if family is maskgit else taming.table()
    found = {key: array.shape for key, array in flatten(fitted(preset, published, table)).items()}
    assert found == {key: leaf.shape for key, leaf in flatten(shapes(preset)).items()}
    assert PUBLISHED[name][0] == family.FAMILY and PUBLISHED[name][3] == preset.quantizer.size


def test_ibq_8192_differs_in_its_codes_only():
    other = ibq.PRESETS["IBQ-1024"]
    codes = dataclasses.replace(other.quantizer, size=8192)
    assert ibq.PRESETS["IBQ-8192"] == dataclasses.replace(other, quantizer=codes) and PUBLISHED["IBQ-8192"][3] == 8192
