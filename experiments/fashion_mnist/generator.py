"""Fashion-MNIST: class -> 64 tokens, next-token prediction, guidance.

    mmgen train experiments/fashion_mnist/generator.py --data.source.data_dir TFDS --validation.source.data_dir TFDS

after the tokenizer of this folder has been trained (runs/fashion_mnist_tokenizer, or --task.tokenizer RUN).
"""

from mmgen_tokenizers import TokenLayout

from mmgen.config import TFDS, Data, Experiment, GeneratorTask, Optimizer, Schedule
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, Sampling


def experiment() -> Experiment:
    return Experiment(
        task=GeneratorTask(
            model=GeneratorConfig(
                layout=TokenLayout(height=8, width=8, codebook_size=512),
                condition=ClassCondition(10),
                block=BlockConfig(width=192, heads=3, mlp=512),
                depth=5,
                dropout=Dropout(residual=0.05, mlp=0.05),
            ),
            tokenizer="runs/fashion_mnist_tokenizer",
            sampling=Sampling(guidance=2.0),
        ),
        data=Data(source=TFDS("fashion_mnist"), size=32, flip=True),
        validation=Data(source=TFDS("fashion_mnist", split="test[:512]"), size=32),
        steps=2000,
        batch=32,
        optimizer=Optimizer(schedule=Schedule(peak=1.5e-3, warmup=100), weight_decay=0.05),
        ema=0.99,
        every_log=50,
        every_validate=500,
        every_preview=500,
        every_checkpoint=500,
    )
