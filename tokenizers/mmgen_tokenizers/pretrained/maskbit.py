"""MaskBit's tokenizers (arXiv 2409.16211): maskbit_tokenizer_{10,12,14,16,18}bit.bin. Pictures in [0, 1].

MaskGIT's network with convolutions for strides, and binary codes.

`config` of a conversion, all of it optional; vq_model may stay a section:
  resolution (256)
  groups (1)   sub-tokens a site: 2 for ids of half the bits. The weights do not change
  commitment_cost (0.25), entropy_loss_weight (0.02), entropy_loss_temperature (0.01), entropy_gamma (1)   used if training
  goes on
  token_size, hidden_channels, channel_mult, num_resolutions, num_res_blocks, num_channels, sample_with_conv, quantizer_type,
  model_class   must be what the weights show
Ignored: codebook_size, which is 2^token_size whatever their files say (4096 for 18 bits).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..families.vqgan import VQGAN
from ..files import Row, read_checkpoint
from ..networks.cnn import CNN
from ..quantizers.binary import LFQ
from .cnn_names import BLOCK, ENDS, Layer, at, rows
from .from_weights import State, agree, count, fitted, network, parameters, settings

FAMILY = "maskbit"
PRESETS = {
    f"MaskBit-{bits}bit": VQGAN(
        CNN(decoder_blocks=2, attention_levels=(), middle_attention=False, bias=False, shortcut="output", latent=bits,
            latent_kernel=1),
        LFQ(bits, entropy=0.02),
        quant_conv=0,
        range="unit",
    )
    for bits in (10, 12, 14, 16, 18)
}  # fmt: skip
DEFAULTS = {"resolution": 256, "groups": 1, "commitment_cost": 0.25, "entropy_loss_weight": 0.02,
            "entropy_loss_temperature": 0.01, "entropy_gamma": 1.0}  # fmt: skip
FIXED = {"num_channels": 3, "sample_with_conv": True, "quantizer_type": "lookup-free", "model_class": "vqgan+"}
CLAIMS = ("token_size", "hidden_channels", "channel_mult", "num_resolutions", "num_res_blocks", *FIXED)
IGNORED = ("codebook_size",)
STAGES = "encoder.down."


def table(levels: int) -> list[Row]:
    """Their names -> ours. Level 0 of their decoder is the lowest resolution, of ours the highest."""
    layers: list[Layer] = [("encoder.conv_out", "encoder.conv_out", "pixel")]  # 1x1: the first row that fits counts
    for side, level in (("encoder", "down"), ("decoder", "up")):
        layers += at(side, side, ENDS)
        layers += at(f"{side}.mid.res_blocks.{{b}}", f"{side}.middle.blocks.{{b}}", BLOCK)
        for i in range(levels):
            theirs = f"{side}.{level}.{i if side == 'encoder' else levels - 1 - i}"
            layers += at(f"{theirs}.res_blocks.{{b}}", f"{side}.levels.{i}.blocks.{{b}}", BLOCK)
            layers.append((f"{theirs}.down_conv", f"{side}.downs.{i}.conv", "conv"))
            layers.append((f"{theirs}.upsample_conv", f"{side}.ups.{i}.conv", "conv"))
    return [*rows(layers), ("quantize.bits_to_indices", "", ""), ("quantize.codebook", "", "")]


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, CLAIMS, IGNORED)
    agree(FAMILY, c, FIXED)
    needed = ("encoder.mid.res_blocks.0.conv1.weight", f"{STAGES}0.down_conv.weight")
    flat = parameters(FAMILY, state, table(count(state, STAGES)), needed)
    net = network(flat, 0, shortcut="output")
    agree(FAMILY, c, {"hidden_channels": net.channels, "channel_mult": net.multipliers, "token_size": net.latent})
    agree(FAMILY, c, {"num_resolutions": len(net.multipliers), "num_res_blocks": net.encoder_blocks})
    quantizer = LFQ(
        net.latent,
        c["groups"],
        commitment=float(c["commitment_cost"]),
        entropy=float(c["entropy_loss_weight"]),
        diversity=float(c["entropy_gamma"]),
        temperature=float(c["entropy_loss_temperature"]),
    )
    return VQGAN(net, quantizer, image_size=c["resolution"], quant_conv=0, range="unit")


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    state = read_checkpoint(checkpoint)
    ours = configure(config, state)
    return Tokenizer(ours, fitted(ours, state, table(len(ours.network.multipliers))), FAMILY)
