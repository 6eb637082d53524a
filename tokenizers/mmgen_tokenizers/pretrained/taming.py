"""taming's VQGAN (arXiv 2012.09841): the last.ckpt of vqgan_imagenet_f16_1024 and _16384. Pictures in [-1, 1].

`config` of a conversion, all of it optional; ddconfig may stay a section:
  resolution (256)
  beta (0.25), legacy (true)   used if training goes on; legacy puts beta on the codebook's loss instead of the commitment
  ch, ch_mult, num_res_blocks, attn_resolutions, z_channels, n_embed, embed_dim, in_channels, out_ch, double_z   must be
  what the weights show
Ignored: lossconfig, dropout, monitor, image_key, ckpt_path, ignore_keys, colorize_nlabels, sane_index_shape. A codebook that
was pruned (quantize.used) is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..families.vqgan import VQGAN
from ..files import Row
from ..networks.cnn import CNN
from ..quantizers.vq import VQ
from .cnn_names import ATTENTION, BLOCK, Layer, at, levels, rows
from .from_weights import State, agree, converted, network, parameters, settings

FAMILY = "taming-vqgan"
PRESETS = {
    f"taming-f16-{size}": VQGAN(CNN(), VQ(size, 256, normalize=False, codebook=0.25, commitment=1.0)) for size in (1024, 16384)
}
DEFAULTS = {"resolution": 256, "beta": 0.25, "legacy": True}
CLAIMS = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels", "n_embed", "embed_dim", "in_channels", "out_ch",
          "double_z")  # fmt: skip
IGNORED = ("lossconfig", "dropout", "monitor", "image_key", "ckpt_path", "ignore_keys", "colorize_nlabels", "sane_index_shape")


def table() -> list[Row]:
    """Their names -> ours: also those of Chameleon and IBQ."""
    layers: list[Layer] = levels()
    for side in ("encoder", "decoder"):
        layers += at(f"{side}.mid.block_1", f"{side}.middle.blocks.0", BLOCK)
        layers += at(f"{side}.mid.attn_1", f"{side}.middle.attention", ATTENTION)
        layers += at(f"{side}.mid.block_2", f"{side}.middle.blocks.1", BLOCK)
    layers += [
        ("encoder.down.{i}.downsample.conv", "encoder.downs.{i}.conv", "conv"),
        ("decoder.up.{i}.upsample.conv", "decoder.ups.{i}.conv", "conv"),
        ("quant_conv", "quant_conv", "pixel"),
        ("post_quant_conv", "post_quant_conv", "pixel"),
    ]
    return [*rows(layers), ("quantize.embedding.weight", "quantizer.codebook", "")]


def shown(family: str, c: Mapping[str, Any], state: State) -> tuple[CNN, tuple[int, int]]:
    """The network and the codebook's shape; what the settings `c` claim of them is checked."""
    flat = parameters(family, state, table(), ("encoder.down.0.block.0.conv2.weight", "quantize.embedding.weight"))
    net, (size, dim) = network(flat, 1), flat["quantizer.codebook"].shape
    resolutions = {c["resolution"] >> level for level in net.attention_levels}
    agree(family, c, {"ch": net.channels, "ch_mult": net.multipliers, "num_res_blocks": net.encoder_blocks})
    agree(family, c, {"attn_resolutions": resolutions, "z_channels": net.latent, "n_embed": size, "embed_dim": dim})
    agree(family, c, {"in_channels": 3, "out_ch": 3, "double_z": False})
    return net, (size, dim)


def configure(config: Mapping[str, Any] | None, state: State, family: str = FAMILY, defaults=DEFAULTS) -> VQGAN:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(family, config, defaults, CLAIMS, IGNORED)
    net, (size, dim) = shown(family, c, state)
    beta = float(c["beta"])
    codebook, commitment = (beta, 1.0) if c["legacy"] else (1.0, beta)
    quantizer = VQ(size, dim, normalize=False, codebook=codebook, commitment=commitment)
    return VQGAN(net, quantizer, image_size=c["resolution"])


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    return converted(FAMILY, configure, table(), checkpoint, config)
