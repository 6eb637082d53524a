"""LlamaGen's tokenizers VQ-16 and VQ-8 (arXiv 2406.06525): vq_ds16_c2i.pt, vq_ds8_c2i.pt, vq_ds16_t2i.pt. Pictures in [-1, 1].

`config` of a conversion; what is not given is read off the weights:
  ch, ch_mult (or encoder_ch_mult and decoder_ch_mult), num_res_blocks, z_channels   the network
  codebook_size, codebook_embed_dim, codebook_l2_norm (true)   the codebook
  commit_loss_beta (0.25), entropy_loss_ratio (0)   used if training goes on
  group_norm_groups (32), group_norm_eps (1e-6), downsample (checked), image_size (256)
Ignored: codebook_show_usage, dropout_p. The buffer quantize.codebook_used plays no part in encoding or decoding; it is kept beside the
weights for export if it holds anything but zeros.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax
import numpy as np

from ..api import Tokenizer, shapes
from ..errors import UserError, nearest
from ..families.vqgan import VQGAN
from ..files import Row, flatten, read_checkpoint, rename, unflatten
from ..networks.cnn import CNN
from ..quantizers.vq import VQ
from .cnn_names import ATTENTION, BLOCK, Layer, at, rows

FAMILY = "llamagen-vq"
BUFFER, BUFFER_SHAPE = "quantize.codebook_used", (65536,)
PRESETS = {
    "VQ-16": VQGAN(CNN(multipliers=(1, 1, 2, 2, 4), attention_levels=(4,))),
    "VQ-8": VQGAN(CNN(multipliers=(1, 2, 2, 4), attention_levels=(3,))),
}
IGNORED = ("codebook_show_usage", "dropout_p")
USED = (
    *("ch", "ch_mult", "encoder_ch_mult", "decoder_ch_mult", "num_res_blocks", "z_channels", "codebook_size", "codebook_embed_dim"),
    *("codebook_l2_norm", "commit_loss_beta", "entropy_loss_ratio", "group_norm_groups", "group_norm_eps", "downsample", "image_size"),
)


def table(levels: int) -> list[Row]:
    """Their names -> ours. Level 0 of their decoder is the lowest resolution, of ours the highest."""
    layers: list[Layer] = []
    for side in ("encoder", "decoder"):
        layers += at(side, side, (("conv_in", "conv_in", "conv"), ("norm_out", "norm_out", "norm"), ("conv_out", "conv_out", "conv")))
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
            raise UserError(f"{FAMILY}: unknown config key {key!r}.{nearest(key, USED + IGNORED)} Known: {', '.join(USED + IGNORED)}")
    found = _from_weights(state)
    up, down = (given.get(f"{side}_ch_mult") for side in ("decoder", "encoder"))
    if up is not None and down is not None and tuple(up) != tuple(down):
        raise UserError(f"{FAMILY}: encoder_ch_mult {down} and decoder_ch_mult {up} must be equal")
    multipliers = given.get("ch_mult") or down or up or found["ch_mult"]
    get = lambda key, default=None: given.get(key, found.get(key, default))
    blocks, lowest = get("num_res_blocks"), len(multipliers) - 1
    if given.get("downsample", 2**lowest) != 2**lowest:
        raise UserError(f"{FAMILY}: downsample {given['downsample']} does not match {lowest + 1} levels, which give {2**lowest}")
    network = CNN(
        channels=get("ch"), multipliers=tuple(multipliers), encoder_blocks=blocks, decoder_blocks=blocks + 1, latent=get("z_channels"),
        attention_levels=(lowest,), groups=get("group_norm_groups", 32), eps=float(get("group_norm_eps", 1e-6)),
    )  # fmt: skip
    quantizer = VQ(
        size=get("codebook_size"), dim=get("codebook_embed_dim"), normalize=get("codebook_l2_norm", True),
        commitment=float(get("commit_loss_beta", 0.25)), entropy=float(get("entropy_loss_ratio", 0.0)),
    )  # fmt: skip
    return VQGAN(network, quantizer, image_size=get("image_size", 256))


def _from_weights(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What shapes and names say."""
    needed = ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight", "encoder.conv_blocks.0.res.0.conv2.weight")
    absent = [name for name in needed if name not in state]
    if absent:
        raise UserError(f"{FAMILY}: the checkpoint has no {absent[0]}; is it a tokenizer of LlamaGen? It holds {', '.join(list(state)[:3])} ...")
    channels = state["encoder.conv_in.weight"].shape[0]
    count = lambda start: len({name[len(start) :].split(".")[0] for name in state if name.startswith(start)})
    size, dim = state["quantize.embedding.weight"].shape
    levels = range(count("encoder.conv_blocks."))
    widths = [state[f"encoder.conv_blocks.{i}.res.0.conv2.weight"].shape[0] for i in levels]
    return {
        "ch": channels,
        "ch_mult": [width // channels for width in widths],
        "num_res_blocks": count("encoder.conv_blocks.0.res."),
        "z_channels": state["encoder.conv_out.weight"].shape[0],
        "codebook_size": size,
        "codebook_embed_dim": dim,
    }


def from_reference(config: VQGAN, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A state_dict -> our parameters. Raises UserError listing tensors that are missing, extra or of another shape."""
    expected = {name: leaf.shape for name, leaf in flatten(shapes(config)).items()}
    return unflatten(rename(state, table(len(config.network.multipliers)), expected))


def to_reference(params: Mapping[str, Any], config: VQGAN, buffers: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Our parameters -> LlamaGen's state_dict, to the bit. Raises UserError where LlamaGen's network has no such switch."""
    lowest = len(config.network.multipliers) - 1
    net, plain = config.network, CNN()
    same = CNN(
        channels=net.channels, multipliers=net.multipliers, encoder_blocks=net.encoder_blocks, decoder_blocks=net.encoder_blocks + 1,
        attention_levels=(lowest,), latent=net.latent, groups=net.groups, eps=plain.eps,
    )  # fmt: skip
    for ours, theirs in ((net, same), (config, VQGAN(same, config.quantizer, config.image_size))):
        for field in dataclasses.fields(theirs):
            if field.name != "network" and getattr(ours, field.name) != getattr(theirs, field.name):
                has, wants = getattr(ours, field.name), getattr(theirs, field.name)
                raise UserError(f"this tokenizer cannot be written as LlamaGen's: {field.name} is {has!r}, there it is {wants!r}")
    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    state = rename(flat, table(lowest + 1), None, back=True)
    return {**state, BUFFER: np.zeros(BUFFER_SHAPE, np.float32), **(buffers or {})}


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    state = read_checkpoint(checkpoint)
    ours = configure(config, state)
    params = jax.tree.map(jnp.asarray, from_reference(ours, state))
    used = state.get(BUFFER)
    return Tokenizer(ours, params, source=FAMILY, buffers={BUFFER: used} if used is not None and used.any() else None)
