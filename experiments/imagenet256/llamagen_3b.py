"""ImageNet at 256 x 256 pixels: LlamaGen's GPT-3B (arXiv 2406.06525) on a pod; data and commands as in llamagen_b.py.

    mmgen preflight experiments/imagenet256/llamagen_3b.py --topology v5e:16x16
    mmgen train experiments/imagenet256/llamagen_3b.py

The learning rate is the paper's for each 256 pictures. The mesh is for multiples of eight chips. Its pieces of the width
have 400 rows, a multiple of the 16 of bfloat16 that TPUs lay out together: with pieces of 25 (fsdp 128, tensor 2) libtpu
needed more than 400 s on one core for this step.

Expected, as published, with 50,000 samples and guidance 1.65: FID 3.05 (with averaged weights).
Result: this has not been run. What preflight printed, by jax 0.10.2 and libtpu 0.0.42.1 on one core of a CPU:

    v5e:16x16: 256 devices, mesh replica 32 x fsdp 8 x tensor 1 x sequence 1
    batch 1024
    3096.7M parameters; each device holds
      parameters             1.442 GiB
      optimizer              2.884 GiB
      averaged               1.442 GiB
      other                  0.000 GiB
      activations            0.146 GiB
      other temporaries      2.292 GiB
      together               8.206 GiB of 15.75
    a step
      hardware                6082 TFLOP
      model, causal           4814 TFLOP
      model, full             4845 TFLOP
      all-gather            11.696 GiB received by a device, in 435
      all-reduce             1.945 GiB received by a device, in 102
      collective-permute     0.044 GiB received by a device, in 24
      reduce-scatter         5.001 GiB received by a device, in 168
      roofline: products 0.121 s, memory 0.0215 s, links 0.1 s; 0.121 s at best, 0.242 s without overlap
      MFU at most 79% (causal) or 80% (full); 39% (causal) or 40% (full) without overlap
      at most 188G tokens, 734M pictures a day
    compiled in 28.8 s, with little optimization (--optimize: as a run is compiled)

    v5p:4x4x8: 128 devices, mesh replica 16 x fsdp 8 x tensor 1 x sequence 1
    batch 1024
    3096.7M parameters; each device holds
      parameters             1.442 GiB
      optimizer              2.884 GiB
      averaged               1.442 GiB
      other                  0.000 GiB
      activations            0.293 GiB
      other temporaries      2.709 GiB
      together               8.770 GiB of 95.74
    a step
      hardware                6082 TFLOP
      model, causal           4814 TFLOP
      model, full             4845 TFLOP
      all-gather            11.696 GiB received by a device, in 435
      all-reduce             1.900 GiB received by a device, in 102
      collective-permute     0.044 GiB received by a device, in 24
      reduce-scatter         5.001 GiB received by a device, in 168
      roofline: products 0.104 s, memory 0.00681 s, links 0.0334 s; 0.104 s at best, 0.144 s without overlap
      MFU at most 79% (causal) or 80% (full); 57% (causal) or 57% (full) without overlap
      at most 219G tokens, 855M pictures a day
    compiled in 47.2 s, with little optimization (--optimize: as a run is compiled)

    v6e:16x16: 256 devices, mesh replica 32 x fsdp 8 x tensor 1 x sequence 1
    batch 1024
    3096.7M parameters; each device holds
      parameters             1.442 GiB
      optimizer              2.884 GiB
      averaged               1.442 GiB
      other                  0.000 GiB
      activations            0.146 GiB
      other temporaries      2.197 GiB
      together               8.112 GiB of 31.25
    a step
      hardware                6082 TFLOP
      model, causal           4814 TFLOP
      model, full             4845 TFLOP
      all-gather            11.696 GiB received by a device, in 435
      all-reduce             1.945 GiB received by a device, in 102
      collective-permute     0.087 GiB received by a device, in 24
      reduce-scatter         5.132 GiB received by a device, in 168
      roofline: products 0.0259 s, memory 0.0106 s, links 0.0506 s; 0.0506 s at best, 0.0871 s without overlap
      MFU at most 40% (causal) or 41% (full); 24% (causal) or 24% (full) without overlap
      at most 447G tokens, 1.75G pictures a day
    compiled in 40.8 s, with little optimization (--optimize: as a run is compiled)

Drawing 64 pictures at once takes 9.6 of the 15.75 GiB of each of four v5e chips (--topology v5e:2x2 --sample 64).
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
