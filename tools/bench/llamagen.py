"""mmgen beside LlamaGen's own PyTorch code: the same model, the same machine, one run.

    python tools/bench/llamagen.py --peer PATH/TO/LlamaGen --out tools/bench/results/llamagen_cpu.json

PATH is a checkout of the public repository; torch must be importable. Without --peer only mmgen is measured. Weights are
random: what is measured is time. Sampling: 256 tokens with guidance 2, the best of `--repeats` after a warm-up that compiles,
in tokens a second over the batch. Training: forward, backward and AdamW, no dropout. Both in float32 on a CPU, bfloat16
elsewhere; the rate of one large matrix product, measured in the same run, says what the machine could give.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from common import best_of, matmul_rate, report, write
from mmgen_tokenizers.shards import ShardWriter

from mmgen.config import Data, Experiment, GeneratorTask, TokenShards
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import Dropout
from mmgen.pretrained import llamagen
from mmgen.training.generator_task import GeneratorTraining
from mmgen.training.state import initial_state
from mmgen.training.step import make_step

TOKENS, GUIDANCE = 256, 2.0


def our_sampling(config, batch: int, repeats: int) -> float:
    gen = Generator(config, transformer.init(config, jax.random.key(0)))
    labels = [i % 1000 for i in range(batch)]
    return batch * TOKENS / best_of(lambda: gen.generate(labels=labels, guidance=GUIDANCE), repeats)


def our_training(config, batch: int, repeats: int) -> float:
    """The step of `mmgen train`, on token shards."""
    ids = np.random.default_rng(0).integers(0, config.layout.codebook_size, (batch, 1, TOKENS))
    with tempfile.TemporaryDirectory() as scratch:
        with ShardWriter(Path(scratch) / "shards", "any", config.layout) as writer:
            for label, rows in enumerate(ids):
                writer.add(rows, label=label)
        plain = replace(config, dropout=Dropout())
        data = Data(TokenShards(str(Path(scratch) / "shards")))
        experiment = Experiment(GeneratorTask(plain, condition_dropout=0.0), data, steps=1000, batch=batch)
        task = GeneratorTraining(experiment, Path(scratch))
        optimizer = task.optimizer(experiment)
        step, rows = make_step(experiment, task, optimizer), task.prepare(next(task.training_batches(0)))
        state = [initial_state(task, optimizer, 0, False)]

    def run():
        state[0] = jax.block_until_ready(step(state[0], {}, rows))[0]

    return batch * TOKENS / best_of(run, repeats)


def peer_model(size: str):
    import torch
    from autoregressive.models.gpt import GPT_models

    torch.manual_seed(0)
    options = {
        "attn_dropout_p": 0.0,
        "resid_dropout_p": 0.0,
        "ffn_dropout_p": 0.0,
        "token_dropout_p": 0.0,
        "class_dropout_prob": 0.1,  # without any there would be no null class, and no guidance
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT_models[size](vocab_size=16384, block_size=TOKENS, num_classes=1000, cls_token_num=1, **options)
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32), device


def peer_sampling(size: str, batch: int, repeats: int) -> float:
    import torch
    from autoregressive.models.generate import generate

    model, device = peer_model(size)
    model.eval()
    labels = torch.arange(batch, device=device) % 1000

    def run():
        with contextlib.redirect_stderr(io.StringIO()):
            generate(
                model,
                labels,
                TOKENS,
                cfg_scale=GUIDANCE,
                cfg_interval=-1,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                sample_logits=True,
            )
        if device == "cuda":
            torch.cuda.synchronize()

    return batch * TOKENS / best_of(run, repeats)


def peer_training(size: str, batch: int, repeats: int) -> float:
    import torch

    model, device = peer_model(size)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    ids, labels = (
        torch.zeros(batch, TOKENS, dtype=torch.long, device=device),
        torch.zeros(batch, dtype=torch.long, device=device),
    )

    def run():
        _, loss = model(cond_idx=labels, idx=ids[:, :-1], targets=ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return batch * TOKENS / best_of(run, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--size", default="GPT-B", choices=llamagen.SIZES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--train-batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = llamagen.preset(arguments.size)
    peer, repeats = arguments.peer, arguments.repeats
    if peer:
        sys.path.insert(0, peer)

    figures = {"matmul_gflops_before": matmul_rate()}
    for batch in arguments.batches:
        figures[f"sample_{batch}_mmgen"] = our_sampling(config, batch, repeats)
        print(json.dumps(figures), flush=True)
        if peer:
            figures[f"sample_{batch}_peer"] = peer_sampling(arguments.size, batch, repeats)
    figures[f"train_{arguments.train_batch}_mmgen"] = ours = our_training(config, arguments.train_batch, repeats)
    if peer:
        figures[f"train_{arguments.train_batch}_peer"] = peer_training(arguments.size, arguments.train_batch, repeats)
    figures["matmul_gflops_after"] = matmul_rate()
    weights = sum(
        p.size for p in jax.tree.leaves(jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))["blocks"])
    )
    weights += config.block.width * config.layout.codebook_size  # the head; embeddings are looked up, not multiplied
    figures["train_mmgen_gflops"] = 6 * weights * ours / 1e9
    figures = {name: round(value, 2) for name, value in figures.items()}
    what = f"LlamaGen {arguments.size}, {TOKENS} tokens; tokens a second, more is better"
    write(report(what, figures, peer, "LlamaGen"), arguments.out)


if __name__ == "__main__":
    main()
