"""The tokenizers of Open-MAGVIT2 and MaskBit against numbers of their own code; the binary quantizers against BSQ-ViT's too."""

import dataclasses
import functools
import json

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import flatten, read_checkpoint, save_arrays, unflatten
from mmgen_tokenizers.networks import layers
from mmgen_tokenizers.pretrained import PUBLISHED, maskbit, open_magvit2
from mmgen_tokenizers.pretrained.from_weights import fitted
from mmgen_tokenizers.quantizers import binary
from mmgen_tokenizers.quantizers.binary import BSQ

pytestmark = pytest.mark.parity
FOLDERS = {"open_magvit2": open_magvit2, "maskbit": maskbit}


def arrays(folder):
    """The saved arrays, channels last."""
    with np.load(folder / "io.npz") as file:
        return {n: a.transpose(0, 2, 3, 1) if a.ndim == 4 else a for n, a in ((n, file[n]) for n in file.files)}


@functools.cache
def loaded(folder):
    """(family, their config, arrays, tokenizer)."""
    family, config = FOLDERS[folder.name], json.loads((folder / "meta.json").read_text())["config"]
    return family, config, arrays(folder), mt.convert(family.FAMILY, folder / "model.safetensors", config=config)


@pytest.fixture(params=FOLDERS)
def fixture(request, parity):
    return loaded(parity(request.param))


def signed(family, pictures):
    """Their pictures in [-1, 1]: MaskBit has [0, 1]."""
    return pictures * 2 - 1 if family is maskbit else pictures


def close(ours, theirs, tolerance=1e-4):
    """Within `tolerance` of the largest value."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def activations(config, params, image, codes):
    """What the fixtures keep of the way to the latents and back, by their names."""
    net = layers.bind(vqgan.Network, params, config)
    encoder, decoder = net.encoder, net.decoder
    seen = {"enc_conv_in": encoder.conv_in(image)}
    seen["enc_down0_block"] = encoder.levels["0"](seen["enc_conv_in"])
    seen["enc_down0"] = seen["enc_downsample0"] = encoder.downs["0"](seen["enc_down0_block"])
    seen["enc_down1"] = encoder.downs["1"](encoder.levels["1"](seen["enc_down0"]))
    seen["enc_mid"] = encoder.middle(encoder.levels["2"](seen["enc_down1"]))
    seen["dec_conv_in"] = decoder.conv_in(codes)
    x = seen["dec_mid"] = decoder.middle(seen["dec_conv_in"])
    for level in ("2", "1", "0"):
        if decoder.adaptive is not None:
            x = seen[f"dec_adaptive{level}"] = decoder.adaptive[level](x, codes)
        x = seen[f"dec_block{level}"] = decoder.levels[level](x)
        if level != "0":
            x = seen[f"dec_upsample{level}"] = decoder.ups[level](x)
        seen[f"dec_up{2 - int(level)}"] = x  # MaskBit counts from the lowest resolution
    return seen


def test_activations(fixture):
    _, _, io, tok = fixture
    seen = jax.jit(functools.partial(activations, tok.config))(tok.params, io["image"], io["quant"])
    kept = [name for name in io if name.startswith(("enc_", "dec_"))]
    assert len(kept) == 10 and set(kept) <= seen.keys()
    for name in kept:
        stride = seen[name].shape[1] // io[name].shape[1]
        close(seen[name][:, ::stride, ::stride], io[name])


def test_pictures_to_bits_and_ids_and_back(fixture):
    family, _, io, tok = fixture
    image = signed(family, io["image"])
    ids = tok.encode(image)
    np.testing.assert_array_equal(ids, io["ids"])
    np.testing.assert_array_equal(tok.encode_bits(image), io["bits"].reshape(2, 64, 10))
    np.testing.assert_array_equal(tok.embed(ids).reshape(io["quant"].shape), np.where(io["bits"], 1, -1))
    both = tok.decode(np.concatenate([ids, io["rand_ids"]]))
    want = signed(family, np.concatenate([io["recon"], io["recon_rand"]]))
    close(both, want.clip(-1, 1))


def test_every_code_is_that_of_the_published_table(parity):
    table = read_checkpoint(parity("maskbit") / "model.safetensors")["quantize.codebook"]
    np.testing.assert_array_equal(loaded(parity("maskbit"))[3].embed(np.arange(1024)[None])[0], table)
    _, _, io, tok = loaded(parity("open_magvit2"))
    np.testing.assert_array_equal(tok.embed(io["rand_ids"]).reshape(2, 8, 8, 10), io["rand_quant"])


def test_groups_are_cut_as_open_magvit2_cuts_its_factors(parity):
    """Its factors have 4 and 6 bits, first channels first; ours are equal: groups of 2 bits give the same bits in order."""
    folder = parity("open_magvit2")
    io = loaded(folder)[2]
    tok = mt.convert("open-magvit2", folder / "model.safetensors", config={"groups": 5})
    assert tok.layout_for(32, 32).codebook_size == 4 and tok.layout_for(32, 32).groups == 5
    pairs = tok.encode(io["image"])
    np.testing.assert_array_equal(pairs[..., :2] @ [1, 4], io["ids_pre"])
    np.testing.assert_array_equal(pairs[..., 2:] @ [1, 4, 16], io["ids_post"])


# Losses ------------------------------------------------------------------------------------------------------------


def test_training_pass_gives_unclamped_pictures_and_the_straight_through_gradient(fixture):
    family, _, io, tok = fixture
    got = jax.jit(lambda p, x: vqgan.forward(tok.config, p, x))(tok.params, signed(family, io["image"]))
    close(got.latents, io["latents"])
    close(got.reconstruction, signed(family, io["recon"]))
    pull = io.get("R", np.ones_like(io["latents"]))
    gradient = jax.jit(jax.grad(lambda z: (binary.quantize(tok.config.quantizer, {}, z).codes * pull).mean()))(io["latents"])
    close(gradient, io.get("grad_st", pull / pull.size))


FLOORS = {"open_magvit2": lambda p: np.log(p + 1e-5), "maskbit": lambda p: np.log(np.maximum(p, 1e-5))}
NAMES = {
    "open_magvit2": ("per_sample_entropy", "codebook_entropy", "commit_loss"),
    "maskbit": ("per_sample_entropy", "avg_entropy", "commitment_loss"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_entropies_and_commitment(parity, name):
    """Those codes keep the logarithm of the mean probability off -inf each in its own way: with it the sum is theirs exactly.
    Ours is nearer to the entropy, from which theirs differ by less than 3 in 10,000."""
    _, _, io, tok = loaded(parity(name))
    quantizer, z = tok.config.quantizer, io["latents"].reshape(-1, 10)
    logits = z * (4 / quantizer.temperature)
    each, diverse, losses = jax.jit(
        lambda z: (
            binary._entropy_of_bits(logits).sum(-1).mean(),
            binary._entropy_of_mean(logits),
            binary.quantize(quantizer, {}, z).losses,
        )
    )(io["latents"])
    sample, mean, commit = (float(io[n]) for n in NAMES[name])
    np.testing.assert_allclose(each, sample, rtol=2e-5)
    np.testing.assert_allclose(diverse, mean, rtol=3e-4)
    np.testing.assert_allclose(losses["entropy"], quantizer.entropy * (sample - mean), rtol=3e-4)
    np.testing.assert_allclose(losses["commitment"], commit * (0.25 if name == "open_magvit2" else 1), rtol=1e-5)
    one = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-700, 700)))
    bits = (np.arange(1024)[:, None] >> np.arange(10)) & 1
    p = np.prod(np.where(bits, one[:, None], 1 - one[:, None]), -1).mean(0)
    np.testing.assert_allclose(-(p * FLOORS[name](p)).sum(), mean, rtol=1e-5)
    np.testing.assert_allclose(diverse, -(p * np.log(p + 1e-300)).sum(), rtol=1e-5)


@pytest.mark.parametrize("name", FOLDERS)
def test_gradient_of_the_losses(parity, name):
    """To 2 in 1000, for the same reason."""
    _, _, io, tok = loaded(parity(name))
    gradient = jax.jit(jax.grad(lambda z: sum(binary.quantize(tok.config.quantizer, {}, z).losses.values())))(io["latents"])
    close(gradient, io["grad_latents"], 2e-3)


@pytest.fixture(scope="module")
def spherical(parity):
    return arrays(parity("bsq_vit"))


def test_bsq_ids_and_codes(spherical):
    io = spherical
    np.testing.assert_array_equal(binary.nearest(BSQ(12), {}, io["latents"]), io["ids"])
    np.testing.assert_array_equal(binary.nearest(BSQ(12, groups=3), {}, io["latents"]), io["group_ids"])
    np.testing.assert_array_equal(binary.ids_to_bits(BSQ(12), io["ids"]), io["bits"])
    close(binary.lookup(BSQ(12), {}, io["ids"]), io["quant"], 1e-6)
    close(binary.lookup(BSQ(12), {}, io["rand_ids"]), io["rand_quant"], 1e-6)


@pytest.mark.parametrize(
    "suffix, config",
    [
        ("", BSQ(12, entropy=1.0, block=4)),
        ("_analytical", BSQ(12, entropy=1.0, block=1, temperature=0.01)),
        ("_t10", BSQ(12, entropy=1.0, block=4, temperature=0.1, diversity=0.5)),
    ],
)
def test_bsq_entropy(spherical, suffix, config):
    want = spherical[f"persample_entropy{suffix}"] - config.diversity * spherical[f"codebook_entropy{suffix}"]
    np.testing.assert_allclose(jax.jit(lambda z: binary.entropy_loss(config, z))(spherical["latents"]), want, atol=1e-5)


def test_bsq_gradients(spherical):
    """Along the sphere: the saved gradients are at normalised latents, ours is that before normalisation too."""
    io, z = spherical, spherical["latents"]
    # Their entropy is divided by the inverse temperature, their commitment is a sum over channels.
    config = BSQ(12, entropy=0.1 / 10, block=4, temperature=0.1, diversity=0.5, commitment=0.25 * 12)

    def run(z):
        quantized = binary.quantize(config, {}, z)
        return sum(quantized.losses.values()), (quantized.codes * io["R"]).sum()

    total, _ = jax.jit(run)(z)
    np.testing.assert_allclose(total, io["loss_group_t10"], rtol=1e-5)
    for i, name in enumerate(("grad_loss_group_t10", "grad_st")):
        along = io[name] - (io[name] * z).sum(-1, keepdims=True) * z
        close(jax.jit(jax.grad(lambda z, i=i: run(z)[i]))(z), along, 1e-5)


# What a converter can get wrong ------------------------------------------------------------------------------------


def changed(tok, network=None, quantizer=None, **changes):
    config = dataclasses.replace(
        tok.config,
        network=dataclasses.replace(tok.config.network, **(network or {})),
        quantizer=dataclasses.replace(tok.config.quantizer, **(quantizer or {})),
        **changes,
    )
    return mt.Tokenizer(config, tok.params)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("open_magvit2", {"network": {"down": "asymmetric"}}),
        ("open_magvit2", {"quantizer": {"order": "msb"}}),
        ("maskbit", {"network": {"down": "symmetric"}}),
        ("maskbit", {"quantizer": {"order": "msb"}}),
        ("maskbit", {"range": "signed"}),
    ],
)
def test_the_numbers_tell_each_switch(parity, name, changes):
    """Padding, order of bits, range: turned the other way, ids come out otherwise."""
    family, _, io, tok = loaded(parity(name))
    assert (changed(tok, **changes).encode(signed(family, io["image"])) != io["ids"]).mean() > 0.02


def test_maskbit_counts_decoder_levels_from_the_lowest(parity):
    """And the other way round the shapes do not fit."""
    state = read_checkpoint(parity("maskbit") / "model.safetensors")
    assert state["decoder.up.0.res_blocks.0.conv1.weight"].shape[0] == 64
    assert state["decoder.up.2.res_blocks.0.conv1.weight"].shape[0] == 32
    swapped = {n.replace("up.0", "up.x").replace("up.2", "up.0").replace("up.x", "up.2"): a for n, a in state.items()}
    with pytest.raises(UserError, match="decoder.up"):
        fitted(loaded(parity("maskbit"))[3].config, swapped, maskbit.table(3))


def test_the_moving_average_is_taken(parity, tmp_path):
    folder = parity("open_magvit2")
    state = read_checkpoint(folder / "model.safetensors")
    stored = {n: a + 1 for n, a in state.items()} | {"model_ema." + n.replace(".", ""): a for n, a in state.items()}
    stored |= {"loss.discriminator.main.0.weight": np.ones(3, np.float32), "model_ema.decay": np.float32(0.999)}
    save_arrays(tmp_path, unflatten(stored))
    tok = mt.convert("open-magvit2", tmp_path / "model.safetensors", config=loaded(folder)[1])
    assert tok.fingerprint == loaded(folder)[3].fingerprint


# Configurations ----------------------------------------------------------------------------------------------------


def test_configuration_is_read_off_the_weights(fixture, parity, tmp_path):
    family, config, _, tok = fixture
    state = read_checkpoint(parity(next(n for n, f in FOLDERS.items() if f is family)) / "model.safetensors")
    assert family.configure({"resolution": 32}, state) == dataclasses.replace(tok.config, image_size=32)
    opened = {"vq_model": config} if family is maskbit else {**config, **config["ddconfig"]}
    assert family.configure(opened, state).network == tok.config.network
    tok.save(tmp_path / "tok")
    again = mt.load(tmp_path / "tok")
    assert again.config == tok.config and again.fingerprint == tok.fingerprint and again.source == family.FAMILY


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("open_magvit2", {"n_embed": 512}, "has n_embed 512, but here it is 1024"),
        ("open_magvit2", {"ddconfig": {"z_chanels": 10}}, "Did you mean 'z_channels'"),
        ("open_magvit2", {"sample_minimization_weight": 0.5}, "has sample_minimization_weight 0.5"),
        ("open_magvit2", {"groups": 3}, "10 bits do not divide into groups=3"),
        ("maskbit", {"token_size": 12}, "has token_size 12, but here it is 10"),
        ("maskbit", {"quantizer_type": "lookup"}, "has quantizer_type lookup"),
        ("maskbit", {"vq_model": {"hidden_chanels": 32}}, "Did you mean 'hidden_channels'"),
    ],
)
def test_a_wrong_config_is_refused(parity, name, change, words):
    with pytest.raises(UserError, match=words):
        FOLDERS[name].configure(change, read_checkpoint(parity(name) / "model.safetensors"))


def test_weights_of_another_family_are_refused(parity):
    states = {name: read_checkpoint(parity(name) / "model.safetensors") for name in (*FOLDERS, "maskgit_vqgan")}
    for name, other in (("open_magvit2", "maskbit"), ("maskbit", "open_magvit2"), ("maskbit", "maskgit_vqgan")):
        with pytest.raises(UserError, match=f"is it a tokenizer of {FOLDERS[name].FAMILY}"):
            FOLDERS[name].configure(None, states[other])


FULL_SIZE = {"256": "256_L_18", "128": "128_L_18", "16384-pretrain": "pretrain14"}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_preset_has_the_names_and_shapes_of_the_published_file(parity, name):
    """Full size, nothing allocated but zeros that the system never backs with memory."""
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / f"openmagvit2_{FULL_SIZE[name]}.json").read_text())
    published = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    preset = open_magvit2.PRESETS[f"Open-MAGVIT2-{name}"]
    assert open_magvit2.configure(None, published) == preset
    found = {key: array.shape for key, array in flatten(fitted(preset, published, open_magvit2.table())).items()}
    assert found == {key: leaf.shape for key, leaf in flatten(shapes(preset)).items()} and len(found) == len(keys)


def test_published_list_agrees_with_the_presets():
    for preset, config in {**open_magvit2.PRESETS, **maskbit.PRESETS}.items():
        layout = vqgan.layout(config, 256, 256)
        assert PUBLISHED[preset][2:4] == (layout.sites, layout.codebook_size)
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes(c))) / 1e6 for name, c in maskbit.PRESETS.items()}
    assert all(54 < size < 60 for size in sizes.values()), sizes  # published as 54M; strides and upsampling have weights too
