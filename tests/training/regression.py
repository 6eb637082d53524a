"""A task of one matrix for the tests of the loop, and a program that trains it: `regression.py RUN STEPS [PAUSE]`."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmgen.config import Data, Experiment, Optimizer, Schedule, TokenizerTask
from mmgen.parallel.rules import by_shape
from mmgen.training.loop import claim, fit
from mmgen.training.optimizer import adamw, has_matrix_axes

TRUTH = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


class Regression:
    """Finds TRUTH; its gradient depends on the step's key, so that a resumed run shows a wrong one."""

    unit = ("rows", 1)
    operations = (1000, 1500)
    frozen = {"scale": np.float32(1.0)}

    def __init__(self, noise: float = 0.01, broken_at: int = -1):
        self.noise, self.broken_at = noise, broken_at

    def init(self, key):
        return {"dense": {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.zeros(4)}}, {"seen": jnp.zeros((), jnp.int32)}

    def axes(self, params, mesh):
        return by_shape(params, mesh)

    def inherited(self):
        return {}

    def optimizer(self, experiment):
        return adamw(experiment.optimizer, experiment.steps, has_matrix_axes)

    def loss(self, params, frozen, batch, key):
        noise = self.noise * jax.random.normal(key, batch["x"].shape)
        predicted = (batch["x"] + noise) @ params["dense"]["kernel"] * frozen["scale"] + params["dense"]["bias"]
        return jnp.mean(jnp.square(predicted - batch["y"]))

    def gradients(self, params, extra, frozen, batch, key, step):
        loss, grads = jax.value_and_grad(self.loss)(params, frozen, batch, key)
        loss = jnp.where(step == self.broken_at, jnp.nan, loss)
        return grads, {"seen": extra["seen"] + batch["x"].shape[0]}, {"loss": loss}

    def after_update(self, params, extra, key):
        return params, extra

    def weights(self, params):
        return params

    def prepare(self, batch):
        return batch

    def validate(self, weights, extra, frozen, batch):
        return {"loss": self.loss(weights, frozen, batch, jax.random.key(0))}

    def export(self, weights, folder):
        folder.mkdir(exist_ok=True)
        np.savez(folder / "weights.npz", kernel=weights["dense"]["kernel"])

    def preview(self, weights, folder, step):
        folder.mkdir(exist_ok=True)
        (folder / f"{step}.txt").write_text(str(step))


def batch_at(step: int, rows: int = 16) -> dict[str, np.ndarray]:
    x = np.random.default_rng([7, step]).normal(size=(rows, 8)).astype(np.float32)
    return {"x": x, "y": x @ TRUTH}


def batches(start: int, pause: float = 0.0):
    while True:
        time.sleep(pause)
        yield batch_at(start)
        start += 1


def validation():
    return [batch_at(10**6), batch_at(10**6 + 1)]


def experiment(**fields) -> Experiment:
    defaults = dict(
        steps=20,
        batch=16,
        every_log=1,
        every_validate=10,
        every_preview=0,
        every_checkpoint=5,
        optimizer=Optimizer(schedule=Schedule("constant", peak=0.2), weight_decay=0.01),
    )
    return Experiment(task=TokenizerTask(), data=Data(), **{**defaults, **fields})


def run(folder, task=None, pause=0.0, **fields):
    folder = Path(folder)
    chosen = experiment(**fields)
    claim(folder, chosen)
    return fit(chosen, task or Regression(), folder, lambda start: batches(start, pause), validation)


if __name__ == "__main__":
    run(sys.argv[1], steps=int(sys.argv[2]), pause=float(sys.argv[3]))
