"""Emoji: 64 tokens of 1024 codes for a picture of 64 x 64, learned from a folder of 1,731 pictures with captions.

    mmgen train experiments/emoji/tokenizer.py --data.source.folder EMOJI/train --validation.source.folder EMOJI/test

EMOJI/train and EMOJI/test are folders in the Hugging Face imagefolder convention (metadata.jsonl with file_name and text).
"""

from mmgen_tokenizers import CNN, VQ, VQGAN, TokenizerLosses

from mmgen.config import Data, Experiment, ImageFolder, Optimizer, Schedule, TokenizerTask


def experiment() -> Experiment:
    network = CNN(
        channels=128, multipliers=(1,), encoder_blocks=1, decoder_blocks=2, attention_levels=(), middle_attention=False,
        latent=8, stem=8, groups=16,
    )  # fmt: skip
    return Experiment(
        task=TokenizerTask(
            model=VQGAN(network=network, quantizer=VQ(size=1024, dim=8), image_size=64, quant_conv=0),
            losses=TokenizerLosses(l2=5.0),
            revive_after=100,
        ),
        data=Data(ImageFolder("data/emoji/train"), size=64),
        validation=Data(ImageFolder("data/emoji/test"), size=64),
        steps=1200,
        batch=16,
        optimizer=Optimizer(Schedule(peak=2e-3, warmup=50), weight_decay=1e-4),
        every_log=50,
        every_validate=400,
        every_preview=400,
        every_checkpoint=400,
    )
