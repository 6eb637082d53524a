"""Emoji in many tokens: 1,024 of 128 codes for 64 x 64 pixels, so that sequences are as long as those of large models.

    mmgen train experiments/emoji_1024/tokenizer.py

The folder is that of experiments/emoji.
"""

import os
from pathlib import Path

from mmgen_tokenizers import CNN, VQ, VQGAN, TokenizerLosses

from mmgen.config import Data, Experiment, ImageFolder, Optimizer, Schedule, TokenizerTask

DATA = Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "emoji"


def experiment() -> Experiment:
    network = CNN(
        channels=32,
        multipliers=(1,),
        encoder_blocks=1,
        decoder_blocks=1,
        attention_levels=(),
        middle_blocks=0,
        middle_attention=False,
        latent=8,
        stem=2,
        groups=8,
    )
    return Experiment(
        task=TokenizerTask(
            model=VQGAN(network, VQ(size=128, dim=8), image_size=64, quant_conv=0),
            losses=TokenizerLosses(l2=5.0),
            revive_after=100,
        ),
        data=Data(ImageFolder(str(DATA / "train")), size=64, flip=True),
        validation=Data(ImageFolder(str(DATA / "test")), size=64),
        steps=1500,
        batch=16,
        optimizer=Optimizer(Schedule(peak=2e-3, warmup=50, end=0.02), weight_decay=1e-4),
        every_validate=1500,
    )
