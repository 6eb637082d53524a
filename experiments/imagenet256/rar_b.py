"""ImageNet at 256 x 256 pixels: RAR-B (arXiv 2411.00776), class -> 256 tokens, with the recipe of its code.

    mmgen convert maskgit-vqgan maskgit-vqgan-imagenet-f16-256.bin --out models/maskgit_vqgan
    mmgen tokenize models/maskgit_vqgan --data imagenet/train --crops ten --out tokens/maskgit256
    mmgen train experiments/imagenet256/rar_b.py
    mmgen sample runs/imagenet256_rar_b --num 50000 --npz samples.npz

400 epochs: all samples in random orders for the first half, all in raster order from three quarters on. No averaged weights.
Two of their dropouts are not here, those of attention's weights and between the MLP's products, and their weight decay spares
the table of tokens and classes. The other sizes: "L", "XL" or "XXL" for SIZE.

Cost by 6 x parameters x tokens a picture x pictures: 164 hours of one H200 at 35% of its 989 TFLOP/s.
Expected, as published, with 50,000 samples and the guidance below: FID 1.95 (L 1.70, XL 1.50, XXL 1.48 with theirs). In their
ablation of L, with other sampling, raster order alone gives 3.08 and this annealing 2.18.
Result: this has not been run.
"""

from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, TokenShards
from mmgen.model.config import Sampling
from mmgen.pretrained.rar import SIZES, preset

SIZE = "B"


def experiment() -> Experiment:
    *_, (guidance, power, temperature) = SIZES[SIZE]
    sampling = Sampling(guidance, ("power_cosine", power), temperature)
    return Experiment(
        task=GeneratorTask(preset(SIZE), tokenizer="models/maskgit_vqgan", condition_dropout=0.1, sampling=sampling),
        data=Data(TokenShards("tokens/maskgit256"), size=256),
        steps=250_000,
        batch=2048,
        optimizer=Optimizer(
            Schedule("cosine", peak=4e-4, warmup=62_500, end=1 / 40), b1=0.9, b2=0.96, weight_decay=0.03, clip=1.0
        ),
        every_log=100,
        every_preview=5000,
        every_checkpoint=5000,
    )
