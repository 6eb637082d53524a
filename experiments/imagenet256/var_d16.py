"""ImageNet at 256 x 256 pixels: VAR-d16 (arXiv 2404.02905), class -> 680 tokens of ten scales, with the recipe of its code.

    mmgen convert var-vqvae vae_ch160v4096z32.pth --out models/var_vqvae
    mmgen tokenize models/var_vqvae --data imagenet/train --crops random:10:1.125 --out tokens/var256
    mmgen train experiments/imagenet256/var_d16.py
    mmgen sample runs/imagenet256_var_d16 --num 50000 --npz samples.npz

The shards hold the ids of all scales: 17 GB. Their code encodes another such crop at each visit. 200 epochs. The gates of adaLN
are about 0.02 at first, theirs nearer to zero. The other sizes: "d20" (250 epochs), or "d24" and "d30" (350; peak 8e-5 x BATCH
/ 256, end 0.01; d30 with batch 1024 and a weight decay that rises to 0.08, which is not here).

Cost by 6 x parameters x tokens a picture x pictures: 260 hours of one H200 at 35% of its 989 TFLOP/s; a third of the parameters
are adaLN's, which multiply once a picture. Theirs took 2.5 days of 16 A100.
Expected, as published, with 50,000 samples and the guidance below: FID 3.55 (d20 2.95, d24 2.33, d30 1.97).
Result: this has not been run.
"""

from mmgen_tokenizers.pretrained.var import PRESETS

from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, TokenShards
from mmgen.pretrained.var import RECOMMENDED, preset

SIZE = "d16"
PICTURES, EPOCHS, BATCH = 1_281_167, 200, 768


def experiment() -> Experiment:
    steps, warmup = EPOCHS * PICTURES // BATCH, EPOCHS // 50 * PICTURES // BATCH
    schedule = Schedule("linear", peak=1e-4 * BATCH / 256, warmup=warmup, hold=(steps - warmup) // 20, end=0.1)
    return Experiment(
        task=GeneratorTask(preset(SIZE, PRESETS["VAR"]), "models/var_vqvae", condition_dropout=0.1, sampling=RECOMMENDED),
        data=Data(TokenShards("tokens/var256"), size=256),
        steps=steps,
        batch=BATCH,
        optimizer=Optimizer(schedule, b1=0.9, b2=0.95, weight_decay=0.05, clip=2.0),
        every_log=100,
        every_preview=5000,
        every_checkpoint=5000,
    )
