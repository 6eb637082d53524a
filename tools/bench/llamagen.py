"""A training step of mmgen beside LlamaGen's own PyTorch code: the same model, the same machine, in turns.

    python tools/bench/llamagen.py --peer PATH/TO/LlamaGen --out tools/bench/results/llamagen_training_cpu.json

PATH is a checkout of the public repository; torch must be importable. Without --peer only mmgen is measured. Forward, backward
and AdamW on 256 tokens, no dropout; the best of `--repeats` steps after one that compiles. In float32 on a CPU, bfloat16
elsewhere; the rate of a large matrix product, measured in the same run, says what the machine could give. decode.py measures
sampling.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import peers
from common import best_of_each, matmul_rate, report, write
from mmgen_tokenizers.shards import ShardWriter

from mmgen.config import Data, Experiment, GeneratorTask, TokenShards
from mmgen.model import transformer
from mmgen.model.config import Dropout, GeneratorConfig
from mmgen.pretrained import llamagen
from mmgen.training.generator_task import GeneratorTraining
from mmgen.training.state import initial_state
from mmgen.training.step import make_step

TOKENS = 256


def our_step(config: GeneratorConfig, batch: int) -> Callable[[], None]:
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

    return run


def peer_step(path: str, size: str, batch: int) -> Callable[[], None]:
    import torch

    model, device = peers.llamagen(path, size, TOKENS)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    ids, labels = (torch.zeros(*shape, dtype=torch.long, device=device) for shape in ((batch, TOKENS), (batch,)))

    def run():
        _, loss = model(cond_idx=labels, idx=ids[:, :-1], targets=ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        peers.synchronize(device)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--size", default="GPT-B", choices=llamagen.SIZES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config, batch = llamagen.preset(arguments.size), arguments.batch
    runs = {"mmgen": our_step(config, batch)}
    runs |= {"peer": peer_step(arguments.peer, arguments.size, batch)} if arguments.peer else {}
    seconds = best_of_each(runs, arguments.repeats)
    speeds = {name: batch * TOKENS / each for name, each in seconds.items()}
    shapes = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    weights = sum(p.size for p in jax.tree.leaves(shapes["blocks"]))
    weights += config.block.width * config.layout.codebook_size  # the head; embeddings are looked up, not multiplied
    figures = {f"train_{batch}_{name}": round(speed, 2) for name, speed in speeds.items()}
    figures |= {"train_mmgen_gflops": round(6 * weights * speeds["mmgen"] / 1e9, 2)}
    figures |= {"matmul_gflops": round(matmul_rate(), 2)}
    what = f"training LlamaGen {arguments.size}, {TOKENS} tokens; tokens a second, more is better"
    write(report(what, figures, arguments.peer, "LlamaGen"), arguments.out)


if __name__ == "__main__":
    main()
