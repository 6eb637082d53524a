"""Fashion-MNIST (arXiv 1708.07747): 64 tokens of 512 codes for a picture of 32 x 32 (the 28 x 28 originals, enlarged).

    mmgen train experiments/fashion_mnist/tokenizer.py --data.source.data_dir TFDS --validation.source.data_dir TFDS

TFDS is a folder of prepared TFDS datasets (array_record); without the options $TFDS_DATA_DIR is taken.
"""

from mmgen_tokenizers import CNN, VQ, VQGAN, TokenizerLosses

from mmgen.config import TFDS, Data, Experiment, Optimizer, Schedule, TokenizerTask


def experiment() -> Experiment:
    network = CNN(
        channels=64, multipliers=(1,), encoder_blocks=1, decoder_blocks=2, attention_levels=(), middle_attention=False,
        latent=64, stem=4, groups=16,
    )  # fmt: skip
    return Experiment(
        task=TokenizerTask(
            model=VQGAN(network=network, quantizer=VQ(size=512, dim=8), image_size=32),
            losses=TokenizerLosses(),
            revive_after=100,
        ),
        data=Data(source=TFDS("fashion_mnist"), size=32, flip=True),
        validation=Data(source=TFDS("fashion_mnist", split="test[:512]"), size=32),
        steps=1500,
        batch=32,
        optimizer=Optimizer(schedule=Schedule(peak=2e-3, warmup=50), weight_decay=0.0),
        ema=0.99,
        every_log=50,
        every_validate=500,
        every_preview=500,
        every_checkpoint=500,
    )
