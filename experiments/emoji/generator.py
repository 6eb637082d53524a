"""Emoji: caption -> 64 tokens, next-token prediction.

    mmgen train experiments/emoji/generator.py --data.source.folder EMOJI/train --validation.source.folder EMOJI/test

after the tokenizer of this folder has been trained (runs/emoji_tokenizer, or --task.tokenizer RUN). The set is small: the model
draws the captions that it was trained on and mixes them for new ones.
"""

from mmgen_tokenizers import TokenLayout

from mmgen.config import Data, Experiment, GeneratorTask, ImageFolder, Optimizer, Schedule
from mmgen.model.config import BlockConfig, Dropout, GeneratorConfig, NextToken, Sampling, TextCondition


def experiment() -> Experiment:
    model = GeneratorConfig(
        plan=NextToken("diagonal"),
        layout=TokenLayout(height=8, width=8, codebook_size=1024),
        condition=TextCondition(vocabulary=1024, length=16),
        block=BlockConfig(width=192, heads=3, mlp=512, qk_norm=True),
        depth=4,
        dropout=Dropout(residual=0.05, mlp=0.05),
    )
    return Experiment(
        task=GeneratorTask(model, tokenizer="runs/emoji_tokenizer", sampling=Sampling(guidance=2.0, top_p=0.95)),
        data=Data(ImageFolder("data/emoji/train"), size=64),
        validation=Data(ImageFolder("data/emoji/test"), size=64),
        steps=2000,
        batch=16,
        optimizer=Optimizer(Schedule(peak=1.5e-3, warmup=100)),
        every_log=50,
        every_validate=500,
        every_preview=500,
        every_checkpoint=500,
    )
