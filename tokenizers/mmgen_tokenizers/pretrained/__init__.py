"""Published checkpoints <-> tokenizers: one file a family, each little more than a rename table."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..files import save_arrays, unflatten
from . import bsq_vit, chameleon, ibq, llamagen, maskbit, maskgit, open_magvit2, taming, titok, var

if TYPE_CHECKING:
    from ..api import Tokenizer

_ALL = (llamagen, taming, chameleon, maskgit, ibq, open_magvit2, maskbit, var, titok, bsq_vit)
FAMILIES = {family.FAMILY: family for family in _ALL}
FORMATS = {"llamagen": llamagen}

_SHAPES = "names and shapes at full size"
_NUMBERS = f"numbers of the reference code on a small model; {_SHAPES}"
_MASKBIT = "numbers of the reference code on a small model of 10 bits"

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
    "Open-MAGVIT2-256": ("open-magvit2", "Apache-2.0", 256, 2**18, 1.17, _NUMBERS),
    "Open-MAGVIT2-128": ("open-magvit2", "Apache-2.0", 1024, 2**18, 0.34, f"{_SHAPES}; same code as Open-MAGVIT2-256"),
    "Open-MAGVIT2-16384-pretrain": ("open-magvit2", "Apache-2.0", 256, 2**14, 2.55, f"{_SHAPES}; same code"),
    "MaskBit-10bit": ("maskbit", "Apache-2.0", 256, 2**10, 1.76, _MASKBIT),
    "MaskBit-12bit": ("maskbit", "Apache-2.0", 256, 2**12, 1.52, _MASKBIT),
    "MaskBit-14bit": ("maskbit", "Apache-2.0", 256, 2**14, 1.37, _MASKBIT),
    "MaskBit-16bit": ("maskbit", "Apache-2.0", 256, 2**16, 1.29, _MASKBIT),
    "MaskBit-18bit": ("maskbit", "Apache-2.0", 256, 2**18, 1.16, _MASKBIT),
    "VAR": ("var-vqvae", "MIT", 680, 4096, 0.90, _NUMBERS),
    "BSQ-ViT-18": ("bsq-vit", "MIT", 1024, 2**18, 1.34, _NUMBERS),
    "BSQ-ViT-36": ("bsq-vit", "MIT", 2048, 2**18, 0.41, _NUMBERS),
    "TiTok-L-32": ("titok", "Apache-2.0", 32, 4096, 2.21, _NUMBERS),
    "TiTok-B-64": ("titok", "Apache-2.0", 64, 4096, 1.70, _NUMBERS),
    "TiTok-S-128": ("titok", "Apache-2.0", 128, 4096, 1.71, _NUMBERS),
    "TiTok-BL-64-VQ": ("titok", "Apache-2.0", 64, 8192, 2.06, _NUMBERS),
    "TiTok-BL-128-VQ": ("titok", "Apache-2.0", 128, 8192, 1.49, _NUMBERS),
    "TiTok-SL-256-VQ": ("titok", "Apache-2.0", 256, 8192, 1.03, _NUMBERS),
}


def export(tokenizer: "Tokenizer", out: str | Path, format: str = "llamagen") -> None:
    """Write OUT/model.safetensors with the reference's own names, to the bit what was converted.

    Raises UserError where that format cannot hold the tokenizer.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}; there are {', '.join(FORMATS)}.{nearest(format, FORMATS)}")
    save_arrays(out, unflatten(FORMATS[format].to_reference(tokenizer.params, tokenizer.config, tokenizer.buffers)))
