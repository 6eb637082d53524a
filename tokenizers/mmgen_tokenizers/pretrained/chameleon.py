"""Chameleon's VQGAN (arXiv 2405.09818): vqgan.ckpt, also of Anole and Lumina-mGPT. taming's, its levels without attention.

Pictures in [-1, 1]: 512 pixels a side, scaled with Lanczos, transparency on white. Ids are of the codebook: Chameleon's own
vocabulary numbers them otherwise.

`config` of a conversion: taming's (see taming.py), with resolution (512).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..families.vqgan import VQGAN
from ..networks.cnn import CNN
from ..quantizers.vq import VQ
from . import taming
from .from_weights import State, converted

FAMILY = "chameleon-vqgan"
PRESETS = {
    "chameleon": VQGAN(CNN(attention_levels=()), VQ(8192, 256, normalize=False, codebook=0.25, commitment=1.0), image_size=512)
}


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    return taming.configure(config, state, FAMILY, taming.DEFAULTS | {"resolution": 512})


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    return converted(FAMILY, configure, taming.table(), checkpoint, config)
