"""Emoji in many tokens: a name -> 1,024 tokens, next-token prediction. A small model of long sequences, to time decoders with.

    mmgen train experiments/emoji_1024/tokenizer.py
    mmgen train experiments/emoji_1024/generator.py
    python tools/bench/forwards.py runs/emoji_1024_generator --out forwards.json

0.96M parameters, 2,000 pictures seen: enough to learn how patches go on (validation loss 1.55 nats a token), hardly what a
name means.

Result on one core of a 2.5 GHz Xeon, 6 + 15 minutes: reconstructions of test pictures 26.0 dB; Jacobi windows of 8, 16 and 32
draw the same tokens in 33, 24 and 23% of the forwards (tools/bench/results/forwards_emoji_1024.json).
"""

import os
from pathlib import Path

from mmgen_tokenizers import TokenLayout

from mmgen.config import Data, Experiment, GeneratorTask, ImageFolder, Optimizer, Schedule
from mmgen.model.config import BlockConfig, GeneratorConfig, Sampling, TextCondition

DATA = Path(os.environ.get("MMGEN_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "emoji"


def experiment() -> Experiment:
    return Experiment(
        task=GeneratorTask(
            model=GeneratorConfig(
                layout=TokenLayout(height=32, width=32, codebook_size=128),
                condition=TextCondition(vocabulary=1024, length=16),
                block=BlockConfig(width=128, heads=2, mlp=344, qk_norm=True),
                depth=4,
            ),
            tokenizer="runs/emoji_1024_tokenizer",
            sampling=Sampling(guidance=2.0, top_p=0.95),
        ),
        data=Data(ImageFolder(str(DATA / "train")), size=64),
        validation=Data(ImageFolder(str(DATA / "test")), size=64),
        steps=1000,
        batch=2,
        optimizer=Optimizer(Schedule(peak=1.5e-3, warmup=50, end=0.02)),
        every_validate=1000,
    )
