"""Trains miniatures on meshes of fake CPU devices; prints what happened as one line of JSON.

`miniatures.py meshes FOLDER` on four devices, `miniatures.py process FOLDER ADDRESS COUNT INDEX` as one of several processes.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import jax
import mmgen_tokenizers as mt
import numpy as np
from models import generator_experiment, tokenizer_experiment, write_shards

import mmgen
from mmgen.config import Data, Experiment, MeshSizes, TokenShards
from mmgen.model.config import BlockConfig
from mmgen.parallel import distributed
from mmgen.parallel.mesh import AXES, feed, make_mesh, on_all, on_host, under
from mmgen.parallel.rules import bytes_each
from mmgen.training import tasks
from mmgen.training.state import initial_state, shardings
from mmgen.training.step import make_step

STEPS = 3
GENERATOR = [(4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (1, 2, 2, 1), (1, 1, 1, 4)]
TOKENIZER = [(1, 4, 1, 1), (2, 1, 2, 1)]
PATCHES = mt.PatchGAN(channels=4, layers=2, groups=2)
ADVERSARIAL = mt.TokenizerLosses(l1=1.0, adversarial=0.5, adversarial_start=1, adaptive=True, discriminator=PATCHES)


def generator(folder: Path, **fields) -> Experiment:
    """Four slots, four heads, all kinds of dropout."""
    data = write_shards(folder / "shards") if not (folder / "shards").exists() else None
    data = data or Data(TokenShards(str(folder / "shards")))
    made = generator_experiment(data, **{"batch": 8, "ema": 0.9, **fields})
    return replace(made, task=replace(made.task, model=replace(made.task.model, block=BlockConfig(width=16, heads=4, mlp=8))))


def tokenizer() -> Experiment:
    return tokenizer_experiment(ADVERSARIAL, batch=8, ema=0.9)


def steps(experiment: Experiment, folder: Path, shape: tuple[int, ...] | None) -> dict:
    """Losses and gradients of a few steps on a mesh of that shape, or on one device by the program without a mesh."""
    mesh = shape and make_mesh(shape, tuple(jax.devices()))
    task = tasks.make(experiment, folder)
    optimizer = task.optimizer(experiment)
    state = initial_state(task, optimizer, experiment.seed, True, mesh)
    each = bytes_each([state.params, state.opt_state, state.ema])
    frozen, stream = on_all(mesh, task.frozen), task.training_batches(0)
    step, text = make_step(experiment, task, optimizer, mesh and shardings(state)), None
    losses, gradient = [], None
    for batch, _ in zip(stream, range(STEPS), strict=False):
        batch = feed(mesh, task.prepare(batch))
        if text is None:
            step = under(mesh, lambda *inputs, step=step: step.lower(*inputs).compile())(state, frozen, batch)
            text = step.as_text()
        state, metrics = under(mesh, step)(state, frozen, batch)
        losses.append([float(metrics[name]) for name in ("loss", "grad_norm")])
        gradient = gradient or first_moments(state)
    return {"losses": losses, "bytes": each, "gradient": gradient, "ema": flat(state.ema), "gathers": gathers(text)}


def first_moments(state) -> list:
    """After one step of AdamW they are the clipped gradient times 1 - b1."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return flat([x for path, x in leaves if any(getattr(entry, "name", "") == "mu" for entry in path)])


def flat(tree) -> list[float]:
    return np.concatenate([x.ravel() for x in jax.tree.leaves(on_host(tree))]).tolist()


def gathers(text: str) -> list[list[int]]:
    """Shapes of what all-gathers give in a compiled program."""
    found = re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(", text)
    return [[int(n) for n in shape.split(",") if n] for shape in found]


def meshes(folder: Path) -> dict:
    """Everything on four devices; leaves runs of two steps in FOLDER/moved and FOLDER/fewer."""
    tasks = {"generator": (generator(folder), GENERATOR), "tokenizer": (tokenizer(), TOKENIZER)}
    found = {
        kind: {str(shape): steps(experiment, folder, shape) for shape in (None, *shapes)}
        for kind, (experiment, shapes) in tasks.items()
    }
    for name, second in (("moved", (2, 1, 2, 1)), ("fewer", None)):
        train(folder, name, 2, (1, 4, 1, 1))
        if second:
            train(folder, name, 4, second)
    return found


def train(folder: Path, name: str, last: int, shape: tuple[int, ...]) -> None:
    held_out = replace(generator(folder).data)
    sizes = MeshSizes(**dict(zip(AXES, shape, strict=True)))
    mmgen.train(generator(folder, steps=last, validation=held_out, every_checkpoint=2, mesh=sizes), folder / name)


def process(folder: Path, address: str, count: int, index: int) -> dict:
    distributed.initialize(address, count, index, timeout=60)
    train(folder, "together", 4, (1, jax.device_count(), 1, 1))
    return {"devices": jax.device_count(), "local": jax.local_device_count()}


if __name__ == "__main__":
    kind, folder, *rest = sys.argv[1:]
    made = meshes(Path(folder)) if kind == "meshes" else process(Path(folder), rest[0], int(rest[1]), int(rest[2]))
    print(json.dumps(made))
