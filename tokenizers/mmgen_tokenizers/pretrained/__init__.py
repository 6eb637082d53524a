"""Published checkpoints <-> tokenizers: one file a family, each little more than a rename table."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..files import save_arrays, unflatten
from . import bsq_vit, chameleon, ibq, llamagen, maskbit, maskgit, open_magvit2, taming, titok, var
from .published import PUBLISHED

if TYPE_CHECKING:
    from ..api import Tokenizer

__all__ = ["FAMILIES", "PUBLISHED", "export"]

_ALL = (llamagen, taming, chameleon, maskgit, ibq, open_magvit2, maskbit, var, titok, bsq_vit)
FAMILIES = {family.FAMILY: family for family in _ALL}
FORMATS = {"llamagen": llamagen}


def export(tokenizer: "Tokenizer", out: str | Path, format: str = "llamagen") -> None:
    """Write OUT/model.safetensors with the reference's own names, to the bit what was converted.

    Raises UserError where that format cannot hold the tokenizer.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; there are {', '.join(FORMATS)}.{nearest(format, FORMATS)}")
    save_arrays(out, unflatten(FORMATS[format].to_reference(tokenizer.params, tokenizer.config, tokenizer.buffers)))
