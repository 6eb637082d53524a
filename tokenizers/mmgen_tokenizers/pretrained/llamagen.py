"""LlamaGen's tokenizers VQ-16 and VQ-8 (arXiv 2406.06525): vq_ds16_c2i.pt, vq_ds8_c2i.pt, vq_ds16_t2i.pt. Pictures in [-1, 1].

`config` of a conversion, all of it optional:
  codebook_l2_norm (true), group_norm_groups (32), group_norm_eps (1e-6), image_size (256)
  commit_loss_beta (0.25), entropy_loss_ratio (0)   used if training goes on
  ch, ch_mult (or encoder_ch_mult and decoder_ch_mult), num_res_blocks, z_channels, downsample, codebook_size,
  codebook_embed_dim   must be what the weights show
Ignored: codebook_show_usage, dropout_p. The buffer quantize.codebook_used plays no part in encoding or decoding; it is kept
beside the weights for export if it holds anything but zeros.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..api import Tokenizer
from ..errors import UserError
from ..families.vqgan import VQGAN
from ..files import Row, flatten, read_checkpoint, rename
from ..networks.cnn import CNN
from ..quantizers.vq import VQ
from .cnn_names import ATTENTION, BLOCK, ENDS, Layer, at, rows
from .from_weights import State, agree, count, fitted, network, parameters, settings

FAMILY = "llamagen-vq"
BUFFER, BUFFER_SHAPE = "quantize.codebook_used", (65536,)
PRESETS = {
    "VQ-16": VQGAN(CNN(multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))),
    "VQ-8": VQGAN(CNN(multipliers=(1, 2, 2, 4), attention_levels=(3,))),
}
DEFAULTS = {"codebook_l2_norm": True, "commit_loss_beta": 0.25, "entropy_loss_ratio": 0.0, "group_norm_groups": 32,
            "group_norm_eps": 1e-6, "image_size": 256}  # fmt: skip
CLAIMS = ("ch", "ch_mult", "encoder_ch_mult", "decoder_ch_mult", "num_res_blocks", "z_channels", "downsample",
          "codebook_size", "codebook_embed_dim")  # fmt: skip
IGNORED = ("codebook_show_usage", "dropout_p")
STAGES = "encoder.conv_blocks."


def table(levels: int) -> list[Row]:
    """Their names -> ours. Level 0 of their decoder is the lowest resolution, of ours the highest."""
    layers: list[Layer] = []
    for side in ("encoder", "decoder"):
        layers += at(side, side, ENDS)
        layers += at(f"{side}.mid.0", f"{side}.middle.blocks.0", BLOCK)
        layers += at(f"{side}.mid.1", f"{side}.middle.attention", ATTENTION)
        layers += at(f"{side}.mid.2", f"{side}.middle.blocks.1", BLOCK)
        for i in range(levels):
            theirs = f"{side}.conv_blocks.{i if side == 'encoder' else levels - 1 - i}"
            layers += at(f"{theirs}.res.{{b}}", f"{side}.levels.{i}.blocks.{{b}}", BLOCK)
            layers += at(f"{theirs}.attn.{{b}}", f"{side}.levels.{i}.attention.{{b}}", ATTENTION)
            layers.append((f"{theirs}.downsample.conv", f"{side}.downs.{i}.conv", "conv"))
            layers.append((f"{theirs}.upsample.conv", f"{side}.ups.{i}.conv", "conv"))
    layers += [("quant_conv", "quant_conv", "pixel"), ("post_quant_conv", "post_quant_conv", "pixel")]
    return [*rows(layers), ("quantize.embedding.weight", "quantizer.codebook", ""), (BUFFER, "", "")]


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, CLAIMS, IGNORED)
    needed = (f"{STAGES}0.res.0.conv2.weight", "quantize.embedding.weight")
    flat = parameters(FAMILY, state, table(count(state, STAGES)), needed)
    net = network(flat, 1, groups=c["group_norm_groups"], eps=float(c["group_norm_eps"]))
    size, dim = flat["quantizer.codebook"].shape
    agree(FAMILY, c, dict.fromkeys(("ch_mult", "encoder_ch_mult", "decoder_ch_mult"), net.multipliers))
    agree(FAMILY, c, {"ch": net.channels, "num_res_blocks": net.encoder_blocks, "z_channels": net.latent})
    agree(FAMILY, c, {"downsample": net.factor, "codebook_size": size, "codebook_embed_dim": dim})
    quantizer = VQ(
        size=size,
        dim=dim,
        normalize=c["codebook_l2_norm"],
        commitment=float(c["commit_loss_beta"]),
        entropy=float(c["entropy_loss_ratio"]),
    )
    return VQGAN(net, quantizer, image_size=c["image_size"])


def _network(channels: int, multipliers: tuple[int, ...], blocks: int, latent: int, groups: int) -> CNN:
    """What LlamaGen's network can be."""
    return CNN(
        channels=channels,
        multipliers=multipliers,
        encoder_blocks=blocks,
        decoder_blocks=blocks + 1,
        attention_levels=(len(multipliers) - 1,),
        latent=latent,
        groups=groups,
    )


def to_reference(
    params: Mapping[str, Any], config: VQGAN, buffers: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Our parameters -> LlamaGen's state_dict, to the bit. Raises UserError where LlamaGen's network has no such switch."""
    c = config.network
    same = _network(c.channels, c.multipliers, c.encoder_blocks, c.latent, c.groups)
    _refuse_differences(c, same)
    _refuse_differences(dataclasses.replace(config, network=same), VQGAN(same, config.quantizer, config.image_size))
    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    state = rename(flat, table(len(c.multipliers)), None, back=True)
    return {**state, BUFFER: np.zeros(BUFFER_SHAPE, np.float32), **(buffers or {})}


def _refuse_differences(ours: Any, theirs: Any) -> None:
    for field in dataclasses.fields(theirs):
        has, wants = getattr(ours, field.name), getattr(theirs, field.name)
        if has != wants:
            raise UserError(f"LlamaGen's format cannot hold this tokenizer: {field.name} is {has!r}, there it is {wants!r}")


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    state = read_checkpoint(checkpoint)
    ours = configure(config, state)
    buffers = {name: array for name, array in state.items() if name == BUFFER and array.any()}
    return Tokenizer(ours, fitted(ours, state, table(len(ours.network.multipliers))), FAMILY, buffers)
