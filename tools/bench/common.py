"""What the benchmarks of this folder share: time, the machine's rate, training for a time, and the file of the figures."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import read_json, write_json

import mmgen
from mmgen import config
from mmgen.config import Experiment
from mmgen.training import tasks
from mmgen.training.metrics import read_metrics
from mmgen.training.state import initial_state
from mmgen.training.step import make_step

LONG = 100_000  # steps of a schedule that a pace is measured with
LEAST = 10  # steps whose median is a pace, the first two not counted: they wait for the compiler and for the data


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call, after one that is not counted."""
    return best_of_each({"": run}, repeats)[""]


def best_of_each(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The same of several, which take turns: where the machine is slower for a while, it is so for all of them."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in times.items()}


def matmul_rate(size: int = 2048, dtype: jnp.dtype = jnp.float32) -> float:
    """GFLOP/s of a square product."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    f = jax.jit(lambda a: jnp.matmul(a, a, precision="highest" if a.dtype == jnp.float32 else None))
    return 2 * size**3 / best_of(lambda: f(a).block_until_ready(), 10) / 1e9


def read_rate() -> float:
    """GB/s of a sum over more than any cache holds."""
    size = 1 << (26 if jax.default_backend() == "cpu" else 29)
    x, f = jnp.ones((size // 1024, 1024)), jax.jit(lambda x: jnp.sum(x, axis=1))
    return 4 * size / best_of(lambda: f(x).block_until_ready(), 10) / 1e9


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# Long comparisons -----------------------------------------------------------------------------------------------------


class Stages:
    """Results by name, in a file: what is there is not made again."""

    def __init__(self, path: Path):
        self.path, self._done = path, read_json(path) if path.is_file() else {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._done:
            print(f"--- {name}", flush=True)
            self._done[name] = make()
            write_json(self.path, self._done)
        return self._done[name]

    def settle(self, given: Mapping[str, Any]) -> None:
        """Raises UserError where the stages were begun with other settings."""
        if (before := self.once("settings", lambda: given)) != given:
            raise UserError(f"{self.path.parent} was begun with {before}: choose another folder, or the same settings")


def train_for(minutes: float, experiment: Experiment, folder: Path, stages: Stages, name: str) -> dict[str, float]:
    """Trains for so many minutes, as far as that can be foreseen: its last figures, steps, pictures, seconds and cores."""
    least = 2 * experiment.optimizer.schedule.warmup
    steps = stages.once(f"{name}: steps", lambda: max(least, round(60 * minutes / seconds_a_step(experiment, folder))))
    every = {"every_log": max(1, steps // 50), "every_checkpoint": steps // 3 + 1, "every_validate": 0, "every_preview": 0}

    def trained() -> dict[str, float]:
        found = mmgen.train(replace(experiment, steps=steps, **every), folder).metrics
        return found | {"steps": steps, "pictures": steps * experiment.batch, "cores": cores()}

    return stages.once(f"{name}: training", trained) | {"seconds": seconds_of(folder)}


def seconds_a_step(experiment: Experiment, folder: Path, seconds: float = 4.0) -> float:
    """Of the real step on real batches, measured for so long, compiling apart; the median, in which no pause counts."""
    experiment = replace(experiment, steps=LONG)
    task = tasks.make(experiment, folder)
    folder.mkdir(parents=True, exist_ok=True)
    task.check()
    optimizer = task.optimizer(experiment)
    state, step = initial_state(task, optimizer, 0, False), make_step(experiment, task, optimizer)
    times = []
    for batch in task.training_batches(0):
        state, _ = jax.block_until_ready(step(state, task.frozen, task.prepare(batch)))
        times.append(time.perf_counter())
        if len(times) >= LEAST and times[-1] - times[1] > seconds:
            return float(np.median(np.diff(times[1:])))
    raise AssertionError("batches have no end")


def seconds_of(folder: Path) -> float:
    """What the steps of a run took, without compiling, validating and saving: as many times the median pace of its metrics.

    The median, so that a machine that stood still for a while makes no difference.
    """
    experiment = config.load(folder / "experiment.json")
    unit, per_row = tasks.make(experiment, folder).unit
    entries = [entry for entry in read_metrics(folder) if f"{unit}_per_second" in entry]
    steps = np.diff([0, *(entry["step"] for entry in entries)])
    paces = [experiment.batch * per_row / entry[f"{unit}_per_second"] for entry in entries]
    return float(steps.sum() * np.median(np.repeat(paces, steps)))


# What comes of it -----------------------------------------------------------------------------------------------------


def report(
    what: str, figures: Mapping[str, Any] | Sequence[Mapping], peer: str | None = None, name: str = ""
) -> dict[str, Any]:
    """`figures` with the machine, the versions, the date and the command, in which absolute paths are their last names and
    `peer`, a path, is called by its `name`."""
    words = [name if word == peer else Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    packages = ("jax", "flax", "optax", *(["torch"] if "torch" in sys.modules else []))
    return {
        "what": what,
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {len(jax.devices())} device(s), {cores()} core(s)",
        "versions": {package: version(package) for package in packages},
        "date": date.today().isoformat(),
        "command": " ".join([f"python tools/bench/{Path(sys.argv[0]).name}", *words]),
        "figures": figures,
    }


def write(found: Mapping[str, Any], out: Path | None) -> None:
    """Prints a report, and writes it where it is asked for."""
    text = json.dumps(found, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")


def run(main: Callable[[], None]) -> None:
    """A mistake of the user's is one line on the terminal."""
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
