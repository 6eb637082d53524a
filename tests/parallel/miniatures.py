"""Trains miniatures on meshes of fake CPU devices; prints what happened as one line of JSON.

`miniatures.py meshes FOLDER` on four devices, `miniatures.py equal FOLDER KIND` one kind on all meshes of four;
`miniatures.py process FOLDER STEPS [ADDRESS COUNT INDEX]` as one of several processes, or as the only one.
"""

import functools
import json
import os
import re
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mmgen_tokenizers.errors import UserError
from models import generator_experiment, tokenizer_experiment, write_shards
from regression import TRUTH, Regression
from regression import experiment as regression_experiment

import mmgen
from mmgen.config import Data, Experiment, TokenShards
from mmgen.model.config import BlockConfig, NextNeighbor, NextScale, TokenLayout
from mmgen.parallel import distributed, hlo, mesh
from mmgen.parallel.mesh import feed, make_mesh, on_all, on_host, under
from mmgen.parallel.overhear import copied, overheard
from mmgen.parallel.rules import bytes_each
from mmgen.training import loop, tasks
from mmgen.training.checkpoint import Checkpoints
from mmgen.training.state import TrainState, abstract_state, initial_state, shardings
from mmgen.training.step import make_step

STEPS = 5
ONE = None  # the program without a mesh
MESHES = [ONE, (4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (1, 2, 2, 1), (1, 1, 1, 4)]
TOKENIZER = [ONE, (2, 2, 1, 1)]
SAVED = (1, 4, 1, 1)  # this mesh saves a checkpoint after two steps, and these restore it
RESTORED = [ONE, (1, 2, 2, 1)]
PATCHES = mt.PatchGAN(channels=4, layers=1, groups=2)
ADVERSARIAL = mt.TokenizerLosses(l1=1.0, adversarial=0.5, adversarial_start=1, adaptive=True, discriminator=PATCHES)


def generator(folder: Path, **fields) -> Experiment:
    """Four slots, four heads, all kinds of dropout."""
    data = Data(TokenShards(str(folder / "shards")))
    if not (folder / "shards").exists():
        write_shards(folder / "shards")
    made = generator_experiment(data, **{"batch": 8, "ema": 0.9, **fields})
    return replace(made, task=replace(made.task, model=replace(made.task.model, block=BlockConfig(width=16, heads=4, mlp=8))))


def neighbors(folder: Path) -> Experiment:
    """Two heads, behind two layers of three."""
    made = generator(folder)
    return replace(made, task=replace(made.task, model=replace(made.task.model, plan=NextNeighbor())))


def scales(folder: Path) -> Experiment:
    """VAR's layers; four scales in sixteen slots."""
    quantizer = mt.MultiScaleVQ(size=32, dim=4, scales=(1, 2, 3, 5), phis=2)
    layout = TokenLayout(height=2, width=5, codebook_size=32, kind="scales", scales=quantizer.grids(2, 5))
    block = BlockConfig(width=16, heads=4, mlp=8, mlp_kind="gelu", bias=True, l2_attention=True, position="learned",
                        modulation="block")  # fmt: skip
    made = generator_experiment(write_shards(folder / "scales", layout=layout), batch=8, ema=0.9)
    model = replace(made.task.model, plan=NextScale(quantizer), layout=layout, block=block)
    return replace(made, task=replace(made.task, model=model))


def tokenizer(folder: Path) -> Experiment:
    return tokenizer_experiment(ADVERSARIAL, batch=8, ema=0.9)


class Miniature:
    """An experiment on a mesh: compiled once, its figures, the bytes on one device."""

    def __init__(self, experiment: Experiment, folder: Path, shape: tuple[int, ...] | None):
        self.mesh = shape and make_mesh(shape, tuple(jax.devices()))
        self.task = tasks.make(experiment, folder)
        optimizer = self.task.optimizer(experiment)
        self.parts = self.task, optimizer, experiment.seed, True
        self.like = abstract_state(*self.parts, self.mesh)
        self.step = make_step(experiment, self.task, optimizer, self.mesh and shardings(self.like))
        self.batches = [self.batch(start) for start in range(STEPS)]
        self.frozen = on_all(self.mesh, self.task.frozen)

    @functools.cached_property
    def traced(self):
        return under(self.mesh, self.step.trace)(self.like, self.frozen, self.batches[0])

    @functools.cached_property
    def compiled(self):
        return under(self.mesh, lambda: self.traced.lower().compile())()

    def batch(self, start: int):
        return feed(self.mesh, self.task.prepare(next(self.task.training_batches(start))))

    def place(self, state: TrainState) -> TrainState:
        """The state of another mesh on this one."""
        return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), on_host(state), self.like)

    def run(self, state: TrainState, count: int) -> tuple[TrainState, list[dict]]:
        figures = []
        for batch in self.batches[int(state.step) :][:count]:
            state, metrics = under(self.mesh, self.compiled)(state, self.frozen, batch)
            figures.append({name: float(metrics[name]) for name in ("loss", "grad_norm")})
        return state, figures

    def start(self) -> TrainState:
        return initial_state(*self.parts, self.mesh)


def compared(experiment: Experiment, folder: Path, shapes: list, saves: bool = False) -> dict:
    """Per mesh: figures of a few steps from one initial state, the first gradient, the averaged weights at the end."""
    found, first = {}, None
    for shape in shapes:
        miniature = Miniature(experiment, folder, shape)
        state = miniature.start() if shape in (ONE, SAVED) else miniature.place(first)
        first = first or on_host(state)
        each = [bytes_each(part) for part in (state.params, state.opt_state, state.ema)]
        start = flat(state.params)
        state, figures = miniature.run(state, 1)
        found[str(shape)] = {"bytes": each, "start": start, "gradient": first_moments(state)}
        state, more = miniature.run(state, 1)
        if shape == SAVED and saves:
            with Checkpoints(folder / "saved", 1) as checkpoints:
                checkpoints.save(state, {}, None)
        state, last = miniature.run(state, STEPS - 2)
        found[str(shape)] |= {"figures": figures + more + last, "ema": flat(state.ema)}
        text = miniature.compiled.as_text()
        found[str(shape)] |= {"gathers": gathers(text), "collectives": hlo.collectives(text)}
        found[str(shape)]["operations"] = hlo.operations(miniature.traced.jaxpr.jaxpr)
        if shape in RESTORED and saves:
            RUNNING[shape] = miniature
    return found


RUNNING: dict = {}


class Heir(Regression):
    """Begins with the weights of another model."""

    def inherited(self):
        return {"dense": {"kernel": TRUTH}}


def inherited() -> dict:
    """The state of an heir on a mesh, and what became of the arrays that it was given."""
    given, real = [], jax.make_array_from_callback
    jax.make_array_from_callback = lambda *about: given.append(real(*about)) or given[-1]
    task, chosen = Heir(), regression_experiment()
    state = initial_state(task, task.optimizer(chosen), 0, False, make_mesh(SAVED, tuple(jax.devices())))
    jax.make_array_from_callback = real
    kernel, (array,) = state.params["dense"]["kernel"], given
    lies = array.sharding == kernel.sharding and array.sharding.shard_shape((8, 4)) == (2, 4)
    return {"lies": lies, "taken over": array.is_deleted(), "right": bool((on_host(kernel) == TRUTH).all())}


def restored(folder: Path) -> dict:
    """The step after the checkpoint, on other meshes than the one that saved it."""
    found = {}
    for shape, miniature in RUNNING.items():
        with Checkpoints(folder / "saved", 1) as checkpoints:
            state = checkpoints.restore_newest(miniature.like)
        lies = all(x.sharding == like.sharding for x, like in zip(*map(jax.tree.leaves, (state, miniature.like)), strict=True))
        found[str(shape)] = {"step": int(state.step), "lies": lies, "figures": miniature.run(state, STEPS - 2)[1]}
    return found


def first_moments(state: TrainState) -> list[float]:
    """After one step of AdamW they are the clipped gradient times 1 - b1."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return flat([x for path, x in leaves if any(getattr(entry, "name", "") == "mu" for entry in path)])


def flat(tree) -> list[float]:
    return np.concatenate([x.ravel() for x in jax.tree.leaves(on_host(tree))]).tolist()


def gathers(text: str) -> list[list[int]]:
    """Shapes of what all-gathers give in a compiled program."""
    found = re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(", text)
    return [[int(n) for n in shape.split(",") if n] for shape in found]


KINDS = {"generator": generator, "scales": scales, "neighbors": neighbors, "tokenizer": tokenizer}


def meshes(folder: Path) -> dict:
    made = {"inherited": inherited(), "generator": compared(generator(folder), folder, MESHES, saves=True)}
    made["restored"] = restored(folder)
    RUNNING.clear()
    made |= {"tokenizer": compared(tokenizer(folder), folder, TOKENIZER)}
    made |= {"lines": {depth: lines(folder, depth) for depth in (12, 48)}, "sums": [sums(folder, n) for n in (2, 5)]}
    return made | {"heard": heard()}


def deep(folder: Path, depth: int, shape: tuple[int, ...]) -> Miniature:
    made = generator(folder)
    made = replace(made, task=replace(made.task, model=replace(made.task.model, depth=depth)))
    return Miniature(made, folder, shape)


def lines(folder: Path, depth: int) -> int:
    """Of the program that the compiler is given for so many layers."""
    miniature = deep(folder, depth, SAVED)
    return under(miniature.mesh, miniature.traced.lower)().as_text().count("\n")


def sums(folder: Path, depth: int) -> int:
    """All-reduces of a forward of so many layers, whose heads and MLP units are split."""
    it = deep(folder, depth, (1, 1, 4, 1))
    forward = under(it.mesh, jax.jit(it.task.validate).lower)(it.like.params, it.like.extra, it.frozen, it.batches[0])
    return hlo.collectives(under(it.mesh, forward.compile)().as_text())["all-reduce"].count


def heard() -> list[str]:
    """Of what XLA warns where an array moves between two shardings that have no axis in common. (The number is another one each
    time: of what is read from the cache nobody is warned.)"""
    mesh = make_mesh((1, 2, 2, 1), tuple(jax.devices()))
    there, back = (NamedSharding(mesh, spec) for spec in (P(None, ("tensor", "fsdp")), P("fsdp", None, "tensor")))
    x, number = jax.ShapeDtypeStruct((8, 8, 16), jnp.float32, sharding=there), time.time_ns() % 2**24
    with overheard() as lines:
        under(mesh, lambda: jax.jit(lambda x: jnp.sin(x) * number, out_shardings=back).lower(x).compile())()
    return copied(lines)


def equal(folder: Path, kind: str) -> dict:
    return {kind: compared(KINDS[kind](folder), folder, MESHES)}


def interrupted(function, *inputs):
    loop.feed = function
    os.kill(os.getpid(), signal.SIGTERM)
    return function(*inputs)


def mistakes() -> None:
    """Each process makes one in its turn; what it hears is told."""
    for index in range(jax.process_count()):
        try:
            with distributed.in_turn():
                if jax.process_index() == index:
                    raise UserError(f"mistake {index}")
        except UserError as error:
            print(error, file=sys.stderr)


def process(folder: Path, steps: str, address: str | None = None, *which: str) -> dict:
    """Trains; of several processes the second gets a SIGTERM before its first step."""
    if address:
        distributed.initialize(address, *map(int, which), timeout=60)
        check_gathering()
        mistakes()
    if jax.process_index() == 1:
        given, loop.feed = loop.feed, lambda *inputs: interrupted(given, *inputs)
    experiment = generator(folder, steps=int(steps))
    mmgen.train(replace(experiment, validation=experiment.data), folder / "run")
    return {}


def check_gathering() -> None:
    """Five layers in the pieces of all processes come to the host, two at a time."""
    mesh.GATHERED = 100
    truth = np.arange(60.0, dtype=np.float32).reshape(5, 3, 4)
    spread = make_mesh((1, jax.device_count(), 1, 1), tuple(jax.devices()))
    x = jax.make_array_from_callback(truth.shape, NamedSharding(spread, P(None, None, "fsdp")), truth.__getitem__)
    assert (under(spread, on_host)(x) == truth).all()


if __name__ == "__main__":
    kind, folder, *rest = sys.argv[1:]
    print(json.dumps({"meshes": meshes, "equal": equal, "process": process}[kind](Path(folder), *rest)))
