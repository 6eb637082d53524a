"""Fashion-MNIST: class -> 64 tokens, next-token prediction, guidance.

    mmgen train experiments/fashion_mnist/tokenizer.py
    mmgen train experiments/fashion_mnist/generator.py
    python experiments/fashion_mnist/evaluate.py runs/fashion_mnist_generator

tokenizer.py says where the data set must lie.

Result on two cores of a 2.5 GHz Xeon, 28 minutes in all (generator 18): test PSNR 24.9 dB; a CNN that is
right on 89.0% of the real test pictures recognises 86.8% of 500 samples as the class asked for. In its
features they are 6.8 from training pictures; as many test pictures 2.6, these blurred 28.6, noise 296.8
(tools/bench/results/fashion_mnist_cpu.json).
"""

import os
from pathlib import Path

from mmgen_tokenizers import TokenLayout

from mmgen.config import TFDS, Data, Experiment, GeneratorTask, Optimizer, Schedule
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, Sampling

SHARED = Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
DATA = os.environ.get("TFDS_DATA_DIR") or str(SHARED / "tfds")


def experiment() -> Experiment:
    return Experiment(
        task=GeneratorTask(
            model=GeneratorConfig(
                layout=TokenLayout(height=8, width=8, codebook_size=512),
                condition=ClassCondition(10),
                block=BlockConfig(width=192, heads=3, mlp=512, qk_norm=True),
                depth=4,
                dropout=Dropout(residual=0.05, mlp=0.05),
            ),
            tokenizer="runs/fashion_mnist_tokenizer",
            sampling=Sampling(guidance=2.0),
        ),
        data=Data(TFDS("fashion_mnist", "train", DATA), flip=True),
        validation=Data(TFDS("fashion_mnist", "test", DATA)),
        steps=1800,
        batch=32,
        optimizer=Optimizer(Schedule(peak=1.5e-3, warmup=100, end=0.02)),
        every_validate=1000,
    )
