"""ImageNet at 256 x 256 pixels: VAR-d30 (arXiv 2404.02905), class -> 680 tokens of ten scales, on a pod.

    mmgen convert var-vqvae vae_ch160v4096z32.pth --out models/var_vqvae
    mmgen tokenize models/var_vqvae --data imagenet/train --crops random:10:1.125 --out tokens/var256
    mmgen preflight experiments/imagenet256/var_d30.py --topology v6e:8x8
    mmgen train experiments/imagenet256/var_d30.py

The paper's batch, learning rate (8e-5 for each 256 pictures), clipping and 350 epochs. Crops are made before, where their code
draws a new one at each visit; the weight decay stays what it is, where theirs rises to 0.08. The mesh is for multiples of eight
chips: pieces of the width, 1920 / 8, are a multiple of 16, the rows of bfloat16 that TPUs lay out together.

Expected, as published, with 50,000 samples: FID 1.97 (1.80 with rejection).
Result: this has not been run.
"""

from dataclasses import replace

from mmgen_tokenizers.families.multiscale import MultiScale

from mmgen.config import Data, Experiment, GeneratorTask, MeshSizes, Optimizer, Schedule, TokenShards
from mmgen.pretrained.var import RECOMMENDED, preset

PICTURES, EPOCHS, BATCH = 1_281_167, 350, 1024


def experiment() -> Experiment:
    model = replace(preset("d30", MultiScale()), remat=True)
    steps = EPOCHS * PICTURES // BATCH
    schedule = Schedule("linear", peak=8e-5 * BATCH / 256, warmup=steps // 50, end=0.01)
    return Experiment(
        task=GeneratorTask(model, tokenizer="models/var_vqvae", condition_dropout=0.1, sampling=RECOMMENDED),
        data=Data(TokenShards("tokens/var256"), size=256),
        steps=steps,
        batch=BATCH,
        optimizer=Optimizer(schedule, b1=0.9, b2=0.95, weight_decay=0.05, clip=2.0),
        every_log=100,
        every_preview=5000,
        every_checkpoint=5000,
        mesh=MeshSizes(replica=-1, fsdp=8),
    )
