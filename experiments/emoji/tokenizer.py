"""A folder of pictures in Hugging Face's imagefolder convention, here emoji: 64 tokens of 1024 codes for 64 x 64 pixels.

    mmgen train experiments/emoji/tokenizer.py

The folder is $MMGEN_DATA/emoji, or else ../shared/data/emoji beside the repository. Your own pictures:
--data.source.folder FOLDER --validation none (or --validation.source.folder OTHER).

Result: see generator.py.
"""

import os
from pathlib import Path

from mmgen_tokenizers import CNN, VQ, VQGAN, TokenizerLosses

from mmgen.config import Data, Experiment, ImageFolder, Optimizer, Schedule, TokenizerTask

DATA = Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "emoji"


def experiment() -> Experiment:
    network = CNN(
        channels=128,
        multipliers=(1,),
        encoder_blocks=1,
        decoder_blocks=2,
        attention_levels=(),
        middle_attention=False,
        latent=8,
        stem=8,
        groups=16,
    )
    return Experiment(
        task=TokenizerTask(
            model=VQGAN(network, VQ(size=1024, dim=8), image_size=64, quant_conv=0),
            losses=TokenizerLosses(l2=5.0),
            revive_after=100,
        ),
        data=Data(ImageFolder(str(DATA / "train")), size=64, flip=True),
        validation=Data(ImageFolder(str(DATA / "test")), size=64),
        steps=2000,
        batch=16,
        optimizer=Optimizer(Schedule(peak=2e-3, warmup=50, end=0.02), weight_decay=1e-4),
    )
