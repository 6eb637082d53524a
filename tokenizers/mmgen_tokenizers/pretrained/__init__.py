"""Published checkpoints <-> tokenizers: one file a family, each little more than a rename table."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..files import save_arrays, unflatten
from . import chameleon, ibq, llamagen, maskgit, taming, var

if TYPE_CHECKING:
    from ..api import Tokenizer

FAMILIES = {family.FAMILY: family for family in (llamagen, taming, chameleon, maskgit, ibq, var)}
FORMATS = {"llamagen": llamagen}

_SHAPES = "names and shapes at full size"
_NUMBERS = f"numbers of the reference code on a small model; {_SHAPES}"

# name: (family, licence, ids of a 256 x 256 picture, codes, rFID as published or None, how the conversion was verified)
PUBLISHED = {
    "VQ-16": ("llamagen-vq", "MIT", 256, 16384, 2.19, _NUMBERS),
    "VQ-8": ("llamagen-vq", "MIT", 1024, 16384, 0.59, f"{_SHAPES}; same code as VQ-16"),
    "taming-f16-1024": ("taming-vqgan", "MIT", 256, 1024, 7.94, _NUMBERS),
    "taming-f16-16384": ("taming-vqgan", "MIT", 256, 16384, 4.98, _NUMBERS),
    "chameleon": ("chameleon-vqgan", "research only", 256, 8192, None, f"{_SHAPES}; same code as taming-f16"),
    "maskgit-f16-256": ("maskgit-vqgan", "Apache-2.0", 256, 1024, 2.28, _NUMBERS),
    "IBQ-1024": ("ibq", "Apache-2.0", 256, 1024, 2.24, _NUMBERS),
    "IBQ-8192": ("ibq", "Apache-2.0", 256, 8192, 1.87, "differs from IBQ-1024 in the number of codes only"),
    "IBQ-16384": ("ibq", "Apache-2.0", 256, 16384, 1.37, _NUMBERS),
    "IBQ-262144": ("ibq", "Apache-2.0", 256, 262144, 1.00, _NUMBERS),
    "VAR": ("var-vqvae", "MIT", 680, 4096, 0.90, _NUMBERS),
}


def export(tokenizer: "Tokenizer", out: str | Path, format: str = "llamagen") -> None:
    """Write OUT/model.safetensors with the reference's own names, to the bit what was converted.

    Raises UserError where that format cannot hold the tokenizer.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; there are {', '.join(FORMATS)}.{nearest(format, FORMATS)}")
    save_arrays(out, unflatten(FORMATS[format].to_reference(tokenizer.params, tokenizer.config, tokenizer.buffers)))
