"""ImageNet at 256 x 256 pixels: LlamaGen's GPT-B (arXiv 2406.06525), class -> 256 tokens, with the recipe of its code.

    mmgen convert llamagen-vq vq_ds16_c2i.pt --out models/vq16
    mmgen tokenize models/vq16 --data imagenet/train --crops ten:1.1,1.05 --out tokens/imagenet256
    mmgen train experiments/imagenet256/llamagen_b.py
    mmgen sample runs/imagenet256_llamagen_b --num 50000 --npz samples.npz

imagenet/train has one folder a class. Twenty crops of 1,281,167 pictures are 13 GB of tokens, which are read into memory;
--data.source.cache disk reads them from a local copy instead. 300 epochs; the learning rate stays what it is; every picture
is another of its crops at each visit. Their code can average the weights, which is --ema 0.9999 here. --accumulate 4 computes
a batch in four parts, for less memory.

The other sizes: "GPT-L", "GPT-XL", "GPT-XXL" or "GPT-3B" for SIZE. --task.model.plan.kind NextNeighbor predicts neighbors.

Cost by 6 x parameters x tokens a picture x pictures: 53 hours of one H200 at 35% of its 989 TFLOP/s.
Expected, as published, with 50,000 samples and guidance 2: FID 5.46 (L 3.80; XL 3.39, XXL 3.09, 3B 3.05 with theirs).
Result: this has not been run.
"""

from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, TokenShards
from mmgen.model.config import Sampling
from mmgen.pretrained.llamagen import SIZES, preset

SIZE = "GPT-B"
PICTURES, EPOCHS, BATCH = 1_281_167, 300, 256


def experiment() -> Experiment:
    *_, guidance = SIZES[SIZE]
    return Experiment(
        task=GeneratorTask(preset(SIZE), tokenizer="models/vq16", condition_dropout=0.1, sampling=Sampling(guidance)),
        data=Data(TokenShards("tokens/imagenet256"), size=256),
        steps=EPOCHS * PICTURES // BATCH,
        batch=BATCH,
        optimizer=Optimizer(Schedule("constant", peak=1e-4), b1=0.9, b2=0.95, weight_decay=0.05, clip=1.0),
        every_log=100,
        every_preview=5000,
        every_checkpoint=5000,
    )
