"""Open-MAGVIT2's tokenizers (arXiv 2409.04410): imagenet_256_L.ckpt, imagenet_128_L.ckpt and the pretrained ones.

Pictures in [-1, 1]. Of the weights the moving average is taken, as the reference does in its evaluation. At 256 pixels the
model for 128 gives 1024 ids.

`config` of a conversion, all of it optional; ddconfig may stay a section:
  resolution (16 cells a side: 256 or 128)
  groups (1)   sub-tokens a site: 2 for ids of 9 bits. The weights do not change
  codebook_weight (0.1), commit_weight (0.25), batch_maximization_weight (1)   used if training goes on
  sample_minimization_weight   must be 1
  ch, ch_mult, num_res_blocks, z_channels, n_embed, embed_dim, in_channels, out_ch, double_z   must be what the weights show
Ignored: lossconfig (whose weights are those above), token_factorization, factorized_bits (its unequal groups serve its
generator only), stage, use_ema, learning_rate, resume_lr, lr_drop_epoch, scheduler_type, image_key, monitor, ckpt_path,
ignore_keys, colorize_nlabels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..families.vqgan import VQGAN
from ..files import Row
from ..networks.cnn import CNN
from ..quantizers.binary import LFQ
from .cnn_names import BLOCK, Layer, at, levels, rows
from .from_weights import State, agree, converted, network, parameters, settings

FAMILY = "open-magvit2"
SWITCHES = {"down": "symmetric", "up": "depth_to_space", "adaptive": True}


def _network(bits: int, *multipliers: int) -> CNN:
    return CNN(multipliers=multipliers, encoder_blocks=4, decoder_blocks=4, attention_levels=(), middle_blocks=4,
               middle_attention=False, bias=False, latent=bits, latent_kernel=1, **SWITCHES)  # fmt: skip


PRESETS = {
    "Open-MAGVIT2-256": VQGAN(_network(18, 1, 1, 2, 2, 4), LFQ(18), quant_conv=0),
    "Open-MAGVIT2-128": VQGAN(_network(18, 1, 2, 2, 4), LFQ(18), 128, quant_conv=0),
    "Open-MAGVIT2-16384-pretrain": VQGAN(_network(14, 1, 1, 2, 2, 4), LFQ(14), quant_conv=0),
}
DEFAULTS = {"resolution": None, "groups": 1, "codebook_weight": 0.1, "commit_weight": 0.25, "batch_maximization_weight": 1.0}
FIXED = {"sample_minimization_weight": 1.0, "in_channels": 3, "out_ch": 3, "double_z": False}
CLAIMS = ("ch", "ch_mult", "num_res_blocks", "z_channels", "n_embed", "embed_dim", *FIXED)
IGNORED = ("lossconfig", "token_factorization", "factorized_bits", "learning_rate", "scheduler_type", "use_ema", "resume_lr",
           "lr_drop_epoch", "image_key", "monitor", "ckpt_path", "ignore_keys", "colorize_nlabels", "stage")  # fmt: skip


def table() -> list[Row]:
    """Their names -> ours."""
    layers: list[Layer] = [("encoder.conv_out", "encoder.conv_out", "pixel"), *levels()]  # 1x1: the first row that fits counts
    for side in ("encoder", "decoder"):
        layers += at(f"{side}.mid_block.{{b}}", f"{side}.middle.blocks.{{b}}", BLOCK)
    layers += [
        ("encoder.down.{i}.downsample", "encoder.downs.{i}.conv", "conv"),
        ("decoder.up.{i}.upsample.conv1", "decoder.ups.{i}.conv", "conv"),
        ("decoder.adaptive.{i}.gamma", "decoder.adaptive.{i}.scale", "linear"),
        ("decoder.adaptive.{i}.beta", "decoder.adaptive.{i}.offset", "linear"),
    ]
    return rows(layers)


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, CLAIMS, IGNORED)
    agree(FAMILY, c, FIXED)
    flat = parameters(FAMILY, state, table(), ("encoder.mid_block.0.conv1.weight", "decoder.adaptive.0.gamma.weight"))
    net = network(flat, 0, **SWITCHES)
    agree(FAMILY, c, {"ch": net.channels, "ch_mult": net.multipliers, "num_res_blocks": net.encoder_blocks})
    agree(FAMILY, c, {"z_channels": net.latent, "embed_dim": net.latent, "n_embed": 2**net.latent})
    entropy, commitment = float(c["codebook_weight"]), float(c["commit_weight"])
    diversity = float(c["batch_maximization_weight"])
    quantizer = LFQ(net.latent, c["groups"], commitment=commitment, entropy=entropy, diversity=diversity)
    return VQGAN(net, quantizer, image_size=c["resolution"] or 16 * net.factor, quant_conv=0)


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    return converted(FAMILY, configure, table(), checkpoint, config)
