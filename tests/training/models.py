"""Models as small as they go, and data for them."""

import mmgen_tokenizers as mt
import numpy as np
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.shards import ShardWriter

from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, Shapes, TokenizerTask, TokenShards
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig

OPTIMIZER = Optimizer(schedule=Schedule("constant", peak=3e-3))
LAYOUT = TokenLayout(height=2, width=2, codebook_size=32)
EVERY = dict(every_log=1, every_validate=0, every_preview=0, every_checkpoint=0)

VQGAN = mt.VQGAN(
    network=mt.CNN(channels=4, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, attention_levels=(), middle_blocks=0,
                   middle_attention=False, latent=4, groups=2, stem=16),
    quantizer=mt.VQ(size=32, dim=4),
    image_size=32,
)  # fmt: skip


def tokenizer_experiment(losses=mt.TokenizerLosses(), revive_after: int | None = 2, **fields) -> Experiment:
    task = TokenizerTask(model=VQGAN, losses=losses, discriminator_peak=1e-3, revive_after=revive_after)
    data = Data(Shapes("train", 64), size=32)
    return Experiment(task, data, **{**EVERY, "optimizer": OPTIMIZER, "steps": 4, "batch": 4, **fields})


def generator_experiment(data: Data, condition=ClassCondition(3), tokenizer=None, dropout=0.1, **fields) -> Experiment:
    model = GeneratorConfig(
        layout=LAYOUT,
        condition=condition,
        block=BlockConfig(width=8, heads=1, mlp=8),
        depth=2,
        dropout=Dropout(token=0.1, residual=0.1, mlp=0.1, path=0.1),
    )
    task = GeneratorTask(model, tokenizer=tokenizer, condition_dropout=dropout)
    return Experiment(task, data, **{**EVERY, "optimizer": OPTIMIZER, "steps": 4, "batch": 4, **fields})


def write_shards(folder, tokenizer="somebody", layout: TokenLayout = LAYOUT, labels=("cat", "dog", "eel"), captions=()) -> Data:
    """Sixteen pictures with labels, whose ids go by the label; the first ones with captions."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, tokenizer, layout, labels=labels) as writer:
        for i in range(16):
            caption = captions[i] if i < len(captions) else None
            writer.add(10 * (i % 3) + rng.integers(0, 3, (2, layout.sites)), label=i % 3, caption=caption)
    return Data(TokenShards(str(folder)))
