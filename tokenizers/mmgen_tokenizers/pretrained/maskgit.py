"""MaskGIT's VQGAN (arXiv 2202.04200) in its PyTorch form, as TiTok and RAR use it: maskgit-vqgan-imagenet-f16-256.bin.

Pictures in [0, 1]. No attention, no biases in the blocks, averages of 2 x 2 pixels instead of strides; where channels change, a
block adds a projection of its own output and drops its input.

`config` of a conversion, all of it optional:
  resolution (256)
  commitment_cost (0.25)   used if training goes on; that code puts it on the codebook's loss
  hidden_channels, channel_mult, num_resolutions, num_res_blocks, num_channels, z_channels, num_embeddings,
  embedding_dim   must be what the weights show
Ignored: dropout.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..families.titok import MASKGIT
from ..families.vqgan import VQGAN
from ..files import Row
from ..quantizers.vq import VQ
from .cnn_names import BLOCK, Layer, at, levels, rows
from .from_weights import State, agree, converted, network, parameters, settings

FAMILY = "maskgit-vqgan"
PRESETS = {
    "maskgit-f16-256": VQGAN(MASKGIT, VQ(1024, 256, normalize=False, codebook=0.25, commitment=1.0), quant_conv=0, range="unit")
}
DEFAULTS = {"resolution": 256, "commitment_cost": 0.25}
CLAIMS = ("hidden_channels", "channel_mult", "num_resolutions", "num_res_blocks", "num_channels", "z_channels",
          "num_embeddings", "embedding_dim")  # fmt: skip
IGNORED = ("dropout",)


def table() -> list[Row]:
    """Their names -> ours."""
    layers: list[Layer] = [("encoder.conv_out", "encoder.conv_out", "pixel"), *levels()]  # 1x1: the first row that fits counts
    for side in ("encoder", "decoder"):
        layers += at(f"{side}.mid.{{b}}", f"{side}.middle.blocks.{{b}}", BLOCK)
    layers.append(("decoder.up.{i}.upsample_conv", "decoder.ups.{i}.conv", "conv"))
    return [*rows(layers), ("quantize.embedding.weight", "quantizer.codebook", "")]


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, CLAIMS, IGNORED)
    flat = parameters(FAMILY, state, table(), ("encoder.mid.0.conv1.weight", "quantize.embedding.weight"))
    net = network(flat, 0, shortcut="output", down="average")
    size, dim = flat["quantizer.codebook"].shape
    agree(FAMILY, c, {"hidden_channels": net.channels, "channel_mult": net.multipliers, "num_channels": 3})
    agree(FAMILY, c, {"num_resolutions": len(net.multipliers), "num_res_blocks": net.encoder_blocks, "z_channels": net.latent})
    agree(FAMILY, c, {"num_embeddings": size, "embedding_dim": dim})
    quantizer = VQ(size, dim, normalize=False, codebook=float(c["commitment_cost"]), commitment=1.0)
    return VQGAN(net, quantizer, image_size=c["resolution"], quant_conv=0, range="unit")


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    return converted(FAMILY, configure, table(), checkpoint, config)
