"""What is trained. The loop knows a task by this interface; `make` gives the one that an experiment names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import jax
import optax
from jax.sharding import Mesh
from mmgen_tokenizers.errors import UserError

from mmgen.config import Data, Experiment, TokenizerTask
from mmgen.data import Source, batches, open_source
from mmgen.parallel.mesh import host_rows, mesh_of, parts_of
from mmgen.training.state import Tree

VALIDATION_PICTURES = 2048  # at most; the same ones every time


class Task(Protocol):
    """Methods with jax.Array arguments are pure and run under jit; the others run on the host."""

    unit: tuple[str, int]  # what is counted per second, and how many of them a row of the batch has
    operations: tuple[int, int] | None  # of a step for one row, causal and full (model/flops.py); None: there is no formula
    frozen: Tree  # networks that are used but not trained: arguments of the step, not part of the state

    def check(self) -> None:
        """Opens the data; raises UserError where task and data do not fit."""

    def optimizer(self, experiment: Experiment) -> optax.GradientTransformation: ...

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """params and extra."""

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What `prepare` gives, for the whole batch; no data are opened."""

    def axes(self, params: Tree, mesh: Mesh) -> Tree:
        """Logical axes (parallel/rules.py) of every parameter: a tree of tuples of names."""

    def inherited(self) -> Tree:
        """Arrays on the host that take the place of some of init's params: a nested dict like them, {} for none."""

    def gradients(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array, step: jax.Array
    ) -> tuple[Tree, Tree, dict[str, jax.Array]]:
        """Gradients like params, new extra, scalar metrics with "loss"; means over the rows of the batch."""

    def after_update(self, params: Tree, extra: Tree, key: jax.Array) -> tuple[Tree, Tree]:
        """What changes besides the gradient, once a step."""

    def weights(self, params: Tree) -> Tree:
        """The part that is averaged, validated, shown and exported."""

    def validate(self, weights: Tree, extra: Tree, frozen: Tree, batch: Tree) -> dict[str, jax.Array]: ...

    def training_batches(self, start: int) -> Iterator[dict]: ...

    def validation_batches(self) -> Iterator[dict]: ...  # or None

    def prepare(self, batch: dict) -> Tree:
        """A batch of the data as the dict of arrays that the step takes."""

    def preview(self, weights: Tree, folder: Path, step: int) -> None: ...

    def export(self, weights: Tree, folder: Path) -> None:
        """Writes the form that is loaded; runs in another thread while training goes on, so `weights` are on the host."""


def settled(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with what it leaves to the files that it names."""
    if isinstance(experiment.task, TokenizerTask):
        return experiment
    from mmgen.training import generator_task

    return generator_task.settled(experiment, folder)


def make(experiment: Experiment, folder: Path | None) -> Task:
    """The task of an experiment whose run folder is `folder`; its data are opened when they are first needed. None: to compile
    its step, which takes no data."""
    if isinstance(experiment.task, TokenizerTask):
        from mmgen.training.tokenizer_task import TokenizerTraining

        return TokenizerTraining(experiment)
    from mmgen.training.generator_task import GeneratorTraining

    return GeneratorTraining(experiment, folder)


def opened(experiment: Experiment, name: Literal["data", "validation"], captioned: bool = False) -> Source:
    """The source of that field of the experiment. Where its folder is missing, the UserError names the option that sets it."""
    data: Data = getattr(experiment, name)
    try:
        return open_source(data, captioned)
    except UserError as error:
        for place in ("folder", "data_dir"):
            if (path := getattr(data.source, place, None)) and not Path(path).is_dir():
                raise UserError(f"{error} (set --{name}.source.{place})") from None
        raise


def training_batches(experiment: Experiment, source: Source, start: int) -> Iterator[dict]:
    """Batches `start`, `start` + 1, ... of the experiment's data: of each the rows of this host."""
    rows = host_rows(mesh_of(experiment), experiment.batch)
    return batches(experiment.data, experiment.batch, experiment.seed, start, source=source, rows=rows)


def validation_batches(experiment: Experiment, source: Source) -> Iterator[dict]:
    """A fixed random part of the held-out data, in batches as large as those that a step computes at once."""
    mesh = mesh_of(experiment)
    size, parts = min(experiment.batch // experiment.accumulate, len(source)), parts_of(mesh)
    size = size // parts * parts  # every device gets as many rows
    if not size:
        raise UserError(f"{len(source)} validation pictures for {parts} devices: give more, or set --validation none")
    rows = host_rows(mesh, size)
    found = batches(experiment.validation, size, seed=0, shuffle=True, repeat=False, source=source, rows=rows)
    return (batch for _, batch in zip(range(max(1, VALIDATION_PICTURES // size)), found, strict=False))
