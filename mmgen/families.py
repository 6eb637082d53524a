"""A small tokenizer of each family for pictures of 64 x 64, with the same bits a picture: experiments/tokenizers trains them,
tools/bench/compare_tokenizers.py compares them.

Convolutions work on 8 x 8 places of a picture, transformers on few and narrow slots: made for a CPU.
How they compare: tokenizers/README.md.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

from mmgen_tokenizers.api import family_of
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families.flexible import Flexible
from mmgen_tokenizers.families.multiscale import MultiScale
from mmgen_tokenizers.families.titok import TiTok
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.losses import TokenizerLosses
from mmgen_tokenizers.networks.cnn import CNN
from mmgen_tokenizers.networks.vit import Trunk
from mmgen_tokenizers.quantizers import Quantizer
from mmgen_tokenizers.quantizers.binary import BSQ, LFQ
from mmgen_tokenizers.quantizers.fsq import FSQ
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ
from mmgen_tokenizers.quantizers.vq import VQ

from mmgen.config import Data, Experiment, ImageFolder, Optimizer, Schedule, TokenizerTask

SIZE = 64
CELL = 8  # pixels a token on a side, in a grid
BITS = (256, 512, 640, 1024)  # a picture; 640 are 64 tokens of 10 bits
Model = VQGAN | MultiScale | TiTok | Flexible
TRUNK = Trunk(width=64, layers=2, heads=2, mlp=2)
PATCH = 16


def network(latent: int, cell: int = CELL) -> CNN:
    """Squares of cell x cell pixels become channels first, so that all convolutions run on few positions."""
    return CNN(
        channels=64 if cell == CELL else 32,
        multipliers=(1,),
        encoder_blocks=1,
        decoder_blocks=2,
        attention_levels=(),
        middle_blocks=0,
        middle_attention=False,
        latent=latent,
        groups=16,
        stem=cell,
    )


def _grid(quantizer: Quantizer, cell: int = CELL) -> VQGAN:
    return VQGAN(network(quantizer.dim, cell), quantizer, SIZE, quant_conv=0)


def _vq(bits: int, **options) -> VQGAN:
    return _grid(VQ(16, 8, **options), CELL // 2) if bits == 1024 else _grid(VQ(2 ** (bits // 64), 8, **options))


def _ibq(bits: int) -> VQGAN:
    return _vq(bits, backpropagation="index", entropy=0.05, temperature=0.1)


def _binary(kind: type[LFQ], bits: int) -> VQGAN:
    return _grid(kind(bits // 64, groups=2 if bits == 1024 else 1))


def _fsq(bits: int) -> VQGAN:
    levels = {256: (5, 3), 512: (8, 6, 5), 640: (8, 5, 5, 5), 1024: (5, 3)}[bits]
    return _grid(FSQ(levels), CELL // 2 if bits == 1024 else CELL)


def _multiscale(bits: int) -> MultiScale:
    codes = {256: 8, 512: 64, 640: 184, 1024: 4096}[bits]
    quantizer = MultiScaleVQ(codes, 16, scales=(1, 2, 4, 8))  # 85 tokens in all
    return MultiScale(network(quantizer.dim), quantizer, SIZE, quant_conv=0)


def _titok(bits: int) -> TiTok:
    quantizer = VQ(256, 8, entropy=0.1, temperature=0.1)  # wider trunks and higher rates let all tokens share one code
    return TiTok(TRUNK, TRUNK, quantizer, tokens=bits // 8, image_size=SIZE, patch=PATCH)


def _flexible(bits: int) -> Flexible:
    return Flexible(TRUNK, TRUNK, FSQ((8, 6, 5)), tokens=bits // 8, image_size=SIZE, patch=PATCH)


FAMILIES: dict[str, Callable[[int], Model]] = {
    "vq": _vq,
    "ibq": _ibq,
    "lfq": lambda bits: _binary(LFQ, bits),
    "bsq": lambda bits: _binary(BSQ, bits),
    "fsq": _fsq,
    "multiscale": _multiscale,
    "titok": _titok,
    "flexible": _flexible,
}


def model(family: str, bits: int = 512) -> Model:
    """The tokenizer of a family whose ids hold `bits` a picture, or up to 5% less or more."""
    if family not in FAMILIES or bits not in BITS:
        raise UserError(f"there are the families {', '.join(FAMILIES)} at {', '.join(map(str, BITS))} bits a picture")
    return FAMILIES[family](bits)


def bits_of(tokenizer: Model) -> float:
    """Bits that the ids of a picture hold."""
    layout = family_of(tokenizer)[1].layout(tokenizer, SIZE, SIZE)
    return layout.sites * layout.groups * math.log2(layout.codebook_size)


def experiment(family: str, bits: int = 512) -> Experiment:
    """Training on emoji: the folder is $MMGEN_DATA/emoji, or else ../shared/data/emoji beside the repository."""
    data = Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data") / "emoji"
    batch, peak = (8, 1.5e-3) if family in ("titok", "flexible") else (16, 4e-3)  # transformers need many steps to begin with
    return Experiment(
        task=TokenizerTask(model(family, bits), TokenizerLosses(l2=5.0), revive_after=100),
        data=Data(ImageFolder(str(data / "train")), size=SIZE, flip=True),
        validation=Data(ImageFolder(str(data / "test")), size=SIZE),
        steps=2000,
        batch=batch,
        optimizer=Optimizer(Schedule(peak=peak, warmup=50, end=0.02), weight_decay=1e-4),
    )
