"""Fashion-MNIST (arXiv 1708.07747): 64 tokens of 512 codes for a picture of 32 x 32 (the originals of 28 x 28, enlarged).

    mmgen train experiments/fashion_mnist/tokenizer.py

The data set must lie prepared by TFDS as array_record in $TFDS_DATA_DIR, or else in $MMGEN_DATA/tfds or ../shared/data/tfds
beside the repository; another place: --data.source.data_dir DIR --validation.source.data_dir DIR. Nothing is downloaded.

Result: see generator.py.
"""

import os
from pathlib import Path

from mmgen_tokenizers import CNN, VQ, VQGAN, TokenizerLosses

from mmgen.config import TFDS, Data, Experiment, Optimizer, Schedule, TokenizerTask

SHARED = Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
DATA = os.environ.get("TFDS_DATA_DIR") or str(SHARED / "tfds")


def experiment() -> Experiment:
    network = CNN(
        channels=64,
        multipliers=(1,),
        encoder_blocks=1,
        decoder_blocks=2,
        attention_levels=(),
        middle_attention=False,
        latent=8,
        stem=4,
        groups=16,
    )
    return Experiment(
        task=TokenizerTask(
            model=VQGAN(network, VQ(size=512, dim=8), image_size=32, quant_conv=0),
            losses=TokenizerLosses(l2=5.0),
            revive_after=100,
        ),
        data=Data(TFDS("fashion_mnist", "train", DATA), flip=True),
        validation=Data(TFDS("fashion_mnist", "test", DATA)),
        steps=1500,
        batch=32,
        optimizer=Optimizer(Schedule(peak=2e-3, warmup=50, end=0.02), weight_decay=1e-4),
    )
