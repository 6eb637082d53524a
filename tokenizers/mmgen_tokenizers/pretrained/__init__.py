"""Published checkpoints <-> tokenizers: one file a family, each little more than a rename table."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..files import save_arrays, unflatten
from . import llamagen

if TYPE_CHECKING:
    from ..api import Tokenizer

FAMILIES = {llamagen.FAMILY: llamagen}
FORMATS = {"llamagen": llamagen}

# name: (family, licence, ids of a 256 x 256 picture, codes, rFID as published, how the conversion was verified)
PUBLISHED = {
    "VQ-16": (
        "llamagen-vq",
        "MIT",
        256,
        16384,
        2.19,
        "numbers of the reference code on a small model; names and shapes at full size",
    ),
    "VQ-8": ("llamagen-vq", "MIT", 1024, 16384, 0.59, "names and shapes at full size; same code as VQ-16"),
}


def export(tokenizer: "Tokenizer", out: str | Path, format: str = "llamagen") -> None:
    """Write OUT/model.safetensors with the reference's own names, to the bit what was converted.

    Raises UserError where that format cannot hold the tokenizer.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; there are {', '.join(FORMATS)}.{nearest(format, FORMATS)}")
    save_arrays(out, unflatten(FORMATS[format].to_reference(tokenizer.params, tokenizer.config, tokenizer.buffers)))
