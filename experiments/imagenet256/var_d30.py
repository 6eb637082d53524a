"""ImageNet at 256 x 256 pixels: VAR-d30 (arXiv 2404.02905), class -> 680 tokens of ten scales, on a pod.

    mmgen convert var-vqvae vae_ch160v4096z32.pth --out models/var_vqvae
    mmgen tokenize models/var_vqvae --data imagenet/train --crops random:10:1.125 --out tokens/var256
    mmgen preflight experiments/imagenet256/var_d30.py --topology v6e:8x8
    mmgen train experiments/imagenet256/var_d30.py

The paper's batch, learning rate (8e-5 for each 256 pictures), clipping and 350 epochs. Crops are made before, where their code
draws a new one at each visit; the weight decay stays what it is, where theirs rises to 0.08. The mesh is for multiples of eight
chips: pieces of the width, 1920 / 8, are a multiple of 16, the rows of bfloat16 that TPUs lay out together.

Expected, as published, with 50,000 samples: FID 1.97 (1.80 with rejection).
Result: this has not been run. What preflight printed, by jax 0.10.2 and libtpu 0.0.42.1 on one core of a CPU:

    v5p:4x4x4: 64 devices, mesh replica 8 x fsdp 8 x tensor 1 x sequence 1
    batch 1024
    2010.2M parameters; each device holds
      parameters             0.938 GiB
      optimizer              1.876 GiB
      other                  0.000 GiB
      activations            1.167 GiB
      other temporaries      5.472 GiB
      together               9.452 GiB of 95.74
    a step
      hardware                7868 TFLOP
      model, causal           5784 TFLOP
      model, full             5909 TFLOP
      all-gather             7.343 GiB received by a device, in 636
      all-reduce             2.354 GiB received by a device, in 155
      all-to-all             0.000 GiB received by a device, in 1
      reduce-scatter         2.523 GiB received by a device, in 90
      roofline: products 0.268 s, memory 0.00734 s, links 0.0219 s; 0.268 s at best, 0.297 s without overlap
      MFU at most 74% (causal) or 75% (full); 66% (causal) or 68% (full) without overlap
      at most 225G tokens, 330M pictures a day
    compiled in 63.5 s, with little optimization (--optimize: as a run is compiled)

    v6e:8x8: 64 devices, mesh replica 8 x fsdp 8 x tensor 1 x sequence 1
    batch 1024
    2010.2M parameters; each device holds
      parameters             0.938 GiB
      optimizer              1.876 GiB
      other                  0.000 GiB
      activations            1.167 GiB
      other temporaries      4.915 GiB
      together               8.896 GiB of 31.25
    a step
      hardware                7868 TFLOP
      model, causal           5784 TFLOP
      model, full             5909 TFLOP
      all-gather             7.343 GiB received by a device, in 636
      all-reduce             2.354 GiB received by a device, in 155
      all-to-all             0.000 GiB received by a device, in 1
      reduce-scatter         2.523 GiB received by a device, in 90
      roofline: products 0.134 s, memory 0.0116 s, links 0.0328 s; 0.134 s at best, 0.178 s without overlap
      MFU at most 74% (causal) or 75% (full); 55% (causal) or 56% (full) without overlap
      at most 449G tokens, 661M pictures a day
    compiled in 84.5 s, with little optimization (--optimize: as a run is compiled)

Drawing 128 pictures at once takes 19.0 of the 31.25 GiB of each of four v6e chips (--topology v6e:2x2 --sample 128).
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
