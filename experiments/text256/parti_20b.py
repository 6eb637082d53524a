"""Text to pictures of 256 x 256 pixels at the scale of Parti (arXiv 2206.10789): 20.5B parameters, decoder alone, 1024 tokens.

    mmgen tokenize models/vq8 --data captioned/train --out tokens/captioned256
    mmgen preflight experiments/text256/parti_20b.py --topology v5p:8x8x8
    mmgen train experiments/text256/parti_20b.py

models/vq8 is a tokenizer of 32 x 32 tokens and 8192 codes; captioned/train has a metadata.jsonl with captions. Parti itself
reads its prompts by an encoder of their own; here they stand in front of the picture's tokens. Its learning rate and warm-up.
The mesh is for 512 chips and more: --mesh.tensor 1 where a device has room for a layer and four times the rows.

Expected: nothing is published of a model like this one; Parti-20B has a zero-shot FID of 7.23 on MS-COCO.
Result: this has not been run.
"""

from mmgen.config import Data, Experiment, GeneratorTask, MeshSizes, Optimizer, Schedule, TokenShards
from mmgen.model.config import BlockConfig, GeneratorConfig, Sampling, TextCondition, TokenLayout


def experiment() -> Experiment:
    model = GeneratorConfig(
        layout=TokenLayout(height=32, width=32, codebook_size=8192),
        condition=TextCondition(vocabulary=16384, length=128),
        block=BlockConfig(width=5120, heads=40, mlp=13824),
        depth=64,
        remat=True,
    )
    schedule = Schedule("cosine", peak=4.5e-5, warmup=5000, end=0.1)
    return Experiment(
        task=GeneratorTask(model, tokenizer="models/vq8", condition_dropout=0.1, sampling=Sampling(guidance=4.0)),
        data=Data(TokenShards("tokens/captioned256", cache="disk"), size=256),
        steps=450_000,
        batch=1024,
        optimizer=Optimizer(schedule, b1=0.9, b2=0.96, weight_decay=0.045, clip=4.0),
        every_log=100,
        every_validate=5000,
        every_preview=5000,
        every_checkpoint=5000,
        mesh=MeshSizes(fsdp=-1, tensor=4),
    )
