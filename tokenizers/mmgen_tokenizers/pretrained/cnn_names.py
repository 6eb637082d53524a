"""Names of the layers of VQGAN networks in PyTorch checkpoints: what the rename tables of the families are made of.

A layer is (published name, our name, kind); names below a place are put behind it. "{x}" stands for any one piece between dots.
A user's own fork is a table like llamagen.py's, of places.
"""

from collections.abc import Iterable

from ..files import Row

Layer = tuple[str, str, str]

ENDS: tuple[Layer, ...] = (
    ("conv_in", "conv_in", "conv"),
    ("norm_out", "norm_out", "norm"),
    ("conv_out", "conv_out", "conv"),
)
BLOCK: tuple[Layer, ...] = (
    ("norm1", "norm1", "norm"),
    ("conv1", "conv1", "conv"),
    ("norm2", "norm2", "norm"),
    ("conv2", "conv2", "conv"),
    ("nin_shortcut", "shortcut", "pixel"),
)
ATTENTION: tuple[Layer, ...] = (
    ("norm", "norm", "norm"),
    ("q", "query", "pixel"),
    ("k", "key", "pixel"),
    ("v", "value", "pixel"),
    ("qkv", "qkv", "pixel"),
    ("proj_out", "out", "pixel"),
)


def at(theirs: str, ours: str, layers: Iterable[Layer]) -> list[Layer]:
    """The layers below a place: at("mid.0", "middle.blocks.0", BLOCK)."""
    return [(f"{theirs}.{a}", f"{ours}.{b}", kind) for a, b, kind in layers]


def levels() -> list[Layer]:
    """What taming's code and its descendants name alike: the ends, and the blocks and attentions of levels.

    Level 0 is the highest resolution in encoder.down and in decoder.up, as it is here.
    """
    layers: list[Layer] = []
    for side, level in (("encoder", "down"), ("decoder", "up")):
        layers += at(side, side, ENDS)
        layers += at(f"{side}.{level}.{{i}}.block.{{b}}", f"{side}.levels.{{i}}.blocks.{{b}}", BLOCK)
        layers += at(f"{side}.{level}.{{i}}.attn.{{b}}", f"{side}.levels.{{i}}.attention.{{b}}", ATTENTION)
    return layers


def rows(layers: Iterable[Layer]) -> list[Row]:
    """The rename table (files.rename) of these layers: a norm has weight -> scale, a convolution weight -> kernel."""
    table: list[Row] = []
    for theirs, ours, kind in layers:
        table.append(
            (f"{theirs}.weight", f"{ours}.scale", "") if kind == "norm" else (f"{theirs}.weight", f"{ours}.kernel", kind)
        )
        table.append((f"{theirs}.bias", f"{ours}.bias", ""))
    return table
