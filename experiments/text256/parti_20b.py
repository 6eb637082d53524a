"""Text to pictures of 256 x 256 pixels at the scale of Parti (arXiv 2206.10789): 20.5B parameters, decoder alone, 1024 tokens.

    mmgen tokenize models/vq8 --data captioned/train --out tokens/captioned256
    mmgen preflight experiments/text256/parti_20b.py --topology v5p:8x8x8
    mmgen train experiments/text256/parti_20b.py

models/vq8 is a tokenizer of 32 x 32 tokens and 8192 codes; captioned/train has a metadata.jsonl with captions. Parti itself
reads its prompts by an encoder of their own; here they stand in front of the picture's tokens. Its learning rate and warm-up.
The mesh is for 128 chips and multiples of that. Its pieces of the width, 5120 / 32, are a multiple of 16, the rows of bfloat16
that TPUs lay out together: others run, but compile for several times as long.

Expected: nothing is published of a model like this one; Parti-20B has a zero-shot FID of 7.23 on MS-COCO.
Result: this has not been run. What preflight printed, by jax 0.10.2 and libtpu 0.0.42.1 on one core of a CPU:

    v5p:8x8x8: 512 devices, mesh replica 4 x fsdp 32 x tensor 4 x sequence 1
    batch 1024
    20468.9M parameters; each device holds
      parameters             0.596 GiB
      optimizer              1.192 GiB
      other                  0.000 GiB
      activations            5.625 GiB
      other temporaries      3.828 GiB
      together              11.240 GiB of 95.74
    a step
      hardware           1.883e+05 TFLOP
      model, causal      1.466e+05 TFLOP
      model, full        1.493e+05 TFLOP
      all-gather            21.494 GiB received by a device, in 1157
      all-reduce            43.097 GiB received by a device, in 590
      reduce-scatter         9.158 GiB received by a device, in 448
      roofline: products 0.801 s, memory 0.00873 s, links 0.132 s; 0.801 s at best, 0.942 s without overlap
      MFU at most 78% (causal) or 79% (full); 66% (causal) or 67% (full) without overlap
      at most 113G tokens, 110M pictures a day
    compiled in 48.6 s, with little optimization (--optimize: as a run is compiled)

    v6e:16x16: 256 devices, mesh replica 2 x fsdp 32 x tensor 4 x sequence 1
    batch 1024
    20468.9M parameters; each device holds
      parameters             0.596 GiB
      optimizer              1.192 GiB
      other                  0.000 GiB
      activations           11.250 GiB
      other temporaries      5.370 GiB
      together              18.407 GiB of 31.25
    a step
      hardware           1.883e+05 TFLOP
      model, causal      1.466e+05 TFLOP
      model, full        1.493e+05 TFLOP
      all-gather            21.495 GiB received by a device, in 1157
      all-reduce            85.399 GiB received by a device, in 592
      collective-permute     0.079 GiB received by a device, in 64
      reduce-scatter         7.356 GiB received by a device, in 192
      roofline: products 0.801 s, memory 0.0241 s, links 0.307 s; 0.801 s at best, 1.13 s without overlap
      MFU at most 78% (causal) or 79% (full); 55% (causal) or 56% (full) without overlap
      at most 113G tokens, 110M pictures a day
    compiled in 75.4 s, with little optimization (--optimize: as a run is compiled)

With --task.model.attention splash the same step has 3.496 GiB of other temporaries (v5p) and 1.91e+05 TFLOP: no reason to
leave plain products, until a pod has timed both.

Drawing 32 pictures at once takes 54.4 of the 95.74 GiB of each of four v5p chips (--topology v5p:2x2x1 --sample 32).
"""

from mmgen.config import Data, Experiment, GeneratorTask, MeshSizes, Optimizer, Schedule, TokenShards
from mmgen.model.config import BlockConfig, GeneratorConfig, Sampling, TextCondition, TokenLayout


def experiment() -> Experiment:
    model = GeneratorConfig(
        layout=TokenLayout(height=32, width=32, codebook_size=8192),
        condition=TextCondition(vocabulary=16384, length=129),  # with 1023 tokens that are read 1152 slots: 9 x 128
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
        mesh=MeshSizes(replica=-1, fsdp=32, tensor=4),
    )
