"""ImageNet at 256 x 256 pixels: LlamaGen's GPT-3B (arXiv 2406.06525) on a pod; data and commands as in llamagen_b.py.

    mmgen preflight experiments/imagenet256/llamagen_3b.py --topology v5e:16x16
    mmgen train experiments/imagenet256/llamagen_3b.py

The learning rate is the paper's for each 256 pictures. The mesh is for multiples of eight chips. Its pieces of the width
have 400 rows, a multiple of the 16 of bfloat16 that TPUs lay out together: with pieces of 25 (fsdp 128, tensor 2) libtpu
needed more than 400 s on one core for this step.

Expected, as published, with 50,000 samples and guidance 1.65: FID 3.05 (with averaged weights).
Result: this has not been run.
"""

from dataclasses import replace

from mmgen.config import Data, Experiment, GeneratorTask, MeshSizes, Optimizer, Schedule, TokenShards
from mmgen.model.config import Sampling
from mmgen.pretrained.llamagen import SIZES, preset

SIZE = "GPT-3B"
PICTURES, EPOCHS, BATCH = 1_281_167, 300, 1024


def experiment() -> Experiment:
    *_, guidance = SIZES[SIZE]
    model = replace(preset(SIZE), remat=True)
    return Experiment(
        task=GeneratorTask(model, tokenizer="models/vq16", condition_dropout=0.1, sampling=Sampling(guidance)),
        data=Data(TokenShards("tokens/imagenet256"), size=256),
        steps=EPOCHS * PICTURES // BATCH,
        batch=BATCH,
        optimizer=Optimizer(Schedule("constant", peak=1e-4 * BATCH / 256), b1=0.9, b2=0.95, weight_decay=0.05, clip=1.0),
        ema=0.9999,
        every_log=100,
        every_preview=5000,
        every_checkpoint=5000,
        mesh=MeshSizes(replica=-1, fsdp=8),
    )
