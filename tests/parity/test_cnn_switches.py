"""The one network as published tokenizers that are not converted yet: its switches against the numbers of their own code.

Only the network; quantizers other than VQ are stood in for by the codes of the fixtures.
"""

import json

import jax
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.files import flatten, read_checkpoint, rename, unflatten
from mmgen_tokenizers.networks.cnn import CNN
from mmgen_tokenizers.pretrained.cnn_names import ATTENTION, BLOCK, ENDS, at, rows
from mmgen_tokenizers.quantizers.vq import VQ

pytestmark = pytest.mark.parity


def table(down, up, middle, resample, kernel, levels=None, extra=()):
    """Rename rows. `down`, `up`: names of a level's blocks; `middle`: of its parts in order; `resample`: of down- and
    upsampling; `kernel`: kind of the encoder's last convolution; `levels`: where the decoder counts from the lowest."""
    layers = [(f"encoder.{a}", f"encoder.{b}", kernel if a == "conv_out" else kind) for a, b, kind in ENDS]
    layers += at("decoder", "decoder", ENDS)
    parts = ("blocks.0", "attention", "blocks.1") if len(middle) == 3 else ("blocks.0", "blocks.1")
    for side, blocks in (("encoder", down), ("decoder", up)):
        for name, part in zip(middle, parts, strict=True):
            layers += at(f"{side}.{name}", f"{side}.middle.{part}", ATTENTION if part == "attention" else BLOCK)
        for i in range(5):
            theirs = levels - 1 - i if levels and side == "decoder" else i
            layers += at(blocks.format(theirs), f"{side}.levels.{i}.blocks.{{b}}", BLOCK)
            attention = blocks.format(theirs).replace(".block.", ".attn.")
            layers += at(attention, f"{side}.levels.{i}.attention.{{b}}", ATTENTION)
            place = blocks.format(theirs).rsplit(".", 2)[0]
            name, ours = (
                (resample[0], f"encoder.downs.{i}.conv") if side == "encoder" else (resample[1], f"decoder.ups.{i}.conv")
            )
            layers.append((f"{place}.{name}", ours, "conv"))
    return [*rows([*layers, *extra]), ("quantize.embedding.weight", "quantizer.codebook", ""), *JUNK]


# What is no part of the network: buffers, and VAR's convolutions between scales.
JUNK = [(f"quantize.{name}", "", "") for name in ("{a}", "quant_resi.qresi_ls.{i}.weight", "quant_resi.qresi_ls.{i}.bias")]
DOWN, UP = "encoder.down.{}.block.{{b}}", "decoder.up.{}.block.{{b}}"
TAMING = (DOWN, UP, ("mid.block_1", "mid.attn_1", "mid.block_2"), ("downsample.conv", "upsample.conv"), "conv")
RES = ("encoder.down.{}.res_blocks.{{b}}", "decoder.up.{}.res_blocks.{{b}}")
PLAIN = dict(decoder_blocks=2, attention_levels=(), middle_attention=False, bias=False, latent_kernel=1)


def around(kind):
    return (("quant_conv", "quant_conv", kind), ("post_quant_conv", "post_quant_conv", kind))


def variant(**changes):
    return CNN(**{"channels": 32, "multipliers": (1, 1, 2), "latent": 32, **PLAIN, **changes})


# folder: (configuration, rename table, name of the codes that are decoded)
FIXTURES = {
    "maskbit": (
        VQGAN(variant(shortcut="output", latent=10), VQ(1024, 10, normalize=False), 32, quant_conv=0, range="unit"),
        [
            ("quantize.codebook", "quantizer.codebook", ""),
            *table(*RES, ("mid.res_blocks.0", "mid.res_blocks.1"), ("down_conv", "upsample_conv"), "pixel", levels=3),
        ],
        ("latents", "quant", "recon"),
    ),
    "open_magvit2": (
        VQGAN(
            variant(down="symmetric", up="depth_to_space", adaptive=True, latent=10),
            VQ(1024, 10, normalize=False),
            32,
            quant_conv=0,
        ),
        [
            *[
                (f"decoder.adaptive.{{i}}.{a}.{c}", f"decoder.adaptive.{{i}}.{b}.{d}", "linear" if c == "weight" else "")
                for a, b in (("gamma", "scale"), ("beta", "offset"))
                for c, d in (("weight", "kernel"), ("bias", "bias"))
            ],
            *table(DOWN, UP, ("mid_block.0", "mid_block.1"), ("downsample", "upsample.conv1"), "pixel"),
        ],
        ("latents", "quant", "recon"),
    ),
    "var_vqvae": (
        VQGAN(CNN(32, (1, 1, 1, 1, 2), fused_qkv=True, latent=16), VQ(256, 16, normalize=False), 64, quant_conv=3),
        table(*TAMING, extra=around("conv")),
        ("f", "fhat_stages", "recon_unclamped"),
    ),
}


@pytest.fixture(scope="module", params=FIXTURES)
def fixture(request, parity):
    """(configuration, parameters, latents, codes, pictures: theirs; the picture that goes in). Pictures in [-1, 1]."""
    folder = parity(request.param)
    config, names, keys = FIXTURES[request.param]
    (weights,) = folder.glob("*.safetensors")
    expected = {name: leaf.shape for name, leaf in flatten(shapes(config)).items()}
    state = read_checkpoint(weights)
    if request.param == "open_magvit2":  # its codebook is no tensor
        state["quantize.embedding.weight"] = np.zeros((1024, 10), np.float32)
    params = unflatten(rename(state, names, expected))  # names and shapes fit, nothing is left over
    with np.load(folder / "io.npz") as io:
        latents, codes, recon, image = (io[name] for name in (*keys, "image"))
    codes = codes[-1] if codes.ndim == 5 else codes
    if config.range == "unit":
        recon, image = recon * 2 - 1, image * 2 - 1
    return config, params, *(a.transpose(0, 2, 3, 1) for a in (latents, codes, recon, image))


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_network(fixture):
    config, params, latents, codes, recon, image = fixture

    @jax.jit
    def run(params):
        return vqgan.encode_latents(config, params, image), vqgan.decode_codes(config, params, codes)

    encoded, decoded = run(params)
    close(encoded, latents)
    close(decoded, recon)


FULL_SIZE = {
    "var_vqvae": VQGAN(CNN(160, fused_qkv=True, latent=32), VQ(4096, 32, normalize=False), quant_conv=3),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_has_the_published_names_and_shapes(parity, name):
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / f"{name}.json").read_text())
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in keys.items()}
    config = FULL_SIZE[name]
    rename(state, FIXTURES[name][1], {key: leaf.shape for key, leaf in flatten(shapes(config)).items()})


def test_a_decoder_without_attention_is_mar(parity):
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / "mar_kl16.json").read_text())
    ours = shapes(VQGAN(CNN(decoder_attention_levels=(), latent=16), VQ(4, 16)))
    attention = {key.split(".attn.")[0] for key in keys if ".attn." in key}
    assert attention == {"encoder.down.4"} and "attention" not in ours["decoder"]["levels"]["4"]
    decoder = [shape for key, shape in keys.items() if key.startswith("decoder.")]
    assert sum(np.prod(s) for s in decoder) == sum(leaf.size for leaf in jax.tree.leaves(ours["decoder"]))
