"""Names of the layers of vision transformers in PyTorch checkpoints (CLIP's names, with nn.MultiheadAttention)."""

from collections.abc import Mapping

import numpy as np

from ..files import Row
from ..networks.vit import Trunk
from .cnn_names import Layer, at, rows
from .from_weights import count

BLOCK: tuple[Layer, ...] = (
    ("ln_1", "norm1", "norm"),
    ("attn.out_proj", "attention.out", "linear"),
    ("ln_2", "norm2", "norm"),
    ("mlp.c_fc", "up", "linear"),
    ("mlp.c_proj", "down", "linear"),
)


def trunk(theirs: str, ours: str, blocks: str) -> list[Row]:
    """The rename table of one side: its two norms around `blocks`, the name of their list of blocks."""
    layers: list[Layer] = [
        (f"{theirs}.ln_pre", f"{ours}.norm_in", "norm"),
        *at(f"{theirs}.{blocks}.{{i}}", f"{ours}.blocks.{{i}}", BLOCK),
        (f"{theirs}.ln_post", f"{ours}.norm_out", "norm"),
    ]
    attention, packed = f"{theirs}.{blocks}.{{i}}.attn.in_proj", f"{ours}.blocks.{{i}}.attention.qkv"
    return [*rows(layers), (f"{attention}_weight", f"{packed}.kernel", "linear"), (f"{attention}_bias", f"{packed}.bias", "")]


def trunk_of(flat: Mapping[str, np.ndarray], side: str, heads: int | None) -> Trunk:
    """What the parameters of one side show. How many heads share the width they do not: 64 channels each unless given."""
    width, hidden = flat[f"{side}.transformer.blocks.0.up.kernel"].shape
    return Trunk(width, count(flat, f"{side}.transformer.blocks."), heads or max(1, width // 64), hidden // width)
