"""LlamaGen's tokenizers VQ-16 and VQ-8 (arXiv 2406.06525): vq_ds16_c2i.pt, vq_ds8_c2i.pt, vq_ds16_t2i.pt. Pictures in [-1, 1].

`config` of a conversion; what is not given is read off the weights:
  ch, ch_mult (or encoder_ch_mult and decoder_ch_mult), num_res_blocks, z_channels   the network
  codebook_size, codebook_embed_dim, codebook_l2_norm (true)   the codebook
  commit_loss_beta (0.25), entropy_loss_ratio (0)   used if training goes on
  group_norm_groups (32), group_norm_eps (1e-6), downsample (checked), image_size (256)
Ignored: codebook_show_usage, dropout_p. The buffer quantize.codebook_used plays no part in encoding or decoding; it is kept
beside the weights for export if it holds anything but zeros.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..api import Tokenizer, shapes
from ..errors import UserError, nearest
from ..families.vqgan import VQGAN
from ..files import Row, flatten, read_checkpoint, rename, unflatten
from ..networks.cnn import CNN
from ..quantizers.vq import VQ
from .cnn_names import ATTENTION, BLOCK, ENDS, Layer, at, rows

FAMILY = "llamagen-vq"
BUFFER, BUFFER_SHAPE = "quantize.codebook_used", (65536,)
PRESETS = {
    "VQ-16": VQGAN(CNN(multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))),
    "VQ-8": VQGAN(CNN(multipliers=(1, 2, 2, 4), attention_levels=(3,))),
}
DEFAULTS = {"codebook_l2_norm": True, "commit_loss_beta": 0.25, "entropy_loss_ratio": 0.0, "group_norm_groups": 32,
            "group_norm_eps": 1e-6, "image_size": 256}  # fmt: skip
IGNORED = ("codebook_show_usage", "dropout_p")
USED = ("ch", "ch_mult", "encoder_ch_mult", "decoder_ch_mult", "num_res_blocks", "z_channels", "downsample",
        "codebook_size", "codebook_embed_dim", *DEFAULTS)  # fmt: skip


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


def configure(config: Mapping[str, Any] | None, state: Mapping[str, np.ndarray]) -> VQGAN:
    """The configuration that `config` names, completed from the weights."""
    given = dict(config or {})
    for key in given:
        if key not in USED + IGNORED:
            raise UserError(
                f"{FAMILY}: unknown config key {key!r}.{nearest(key, USED + IGNORED)} Known: {', '.join(USED + IGNORED)}"
            )
    both = [tuple(given[key]) for key in ("encoder_ch_mult", "decoder_ch_mult", "ch_mult") if key in given]
    if len(set(both)) > 1:
        raise UserError(f"{FAMILY}: ch_mult, encoder_ch_mult and decoder_ch_mult must be equal, they are {both}")
    c = DEFAULTS | _from_weights(state) | given | ({"ch_mult": both[0]} if both else {})
    lowest = len(c["ch_mult"]) - 1
    if c.get("downsample", 2**lowest) != 2**lowest:
        raise UserError(f"{FAMILY}: downsample {c['downsample']} does not match {lowest + 1} levels, which give {2**lowest}")
    network = _network(c["ch"], tuple(c["ch_mult"]), c["num_res_blocks"], c["z_channels"], c["group_norm_groups"])
    network = dataclasses.replace(network, eps=float(c["group_norm_eps"]))
    quantizer = VQ(
        size=c["codebook_size"],
        dim=c["codebook_embed_dim"],
        normalize=c["codebook_l2_norm"],
        commitment=float(c["commit_loss_beta"]),
        entropy=float(c["entropy_loss_ratio"]),
    )
    return VQGAN(network, quantizer, image_size=c["image_size"])


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


def _from_weights(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What shapes and names say."""
    stages, first = "encoder.conv_blocks.", "encoder.conv_blocks.0.res."
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight", f"{first}0.conv2.weight")
    absent = [name for name in needed if name not in state]
    if absent:
        holds = ", ".join(list(state)[:3])
        raise UserError(f"{FAMILY}: the checkpoint has no {absent[0]}: is it a tokenizer of LlamaGen? It holds {holds} ...")
    channels = state["encoder.conv_in.weight"].shape[0]
    size, dim = state["quantize.embedding.weight"].shape
    widths = [state[f"{stages}{i}.res.0.conv2.weight"].shape[0] for i in range(_count(state, stages))]
    return {
        "ch": channels,
        "ch_mult": [width // channels for width in widths],
        "num_res_blocks": _count(state, first),
        "z_channels": state["encoder.conv_out.weight"].shape[0],
        "codebook_size": size,
        "codebook_embed_dim": dim,
    }


def _count(state: Mapping[str, np.ndarray], start: str) -> int:
    """How many different numbers follow `start` in the names."""
    return len({name[len(start) :].split(".")[0] for name in state if name.startswith(start)})


def from_reference(config: VQGAN, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A state_dict -> our parameters. Raises UserError listing tensors that are missing, extra or of another shape."""
    expected = {name: leaf.shape for name, leaf in flatten(shapes(config)).items()}
    return unflatten(rename(state, table(len(config.network.multipliers)), expected))


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
    return Tokenizer(ours, from_reference(ours, state), FAMILY, buffers)
