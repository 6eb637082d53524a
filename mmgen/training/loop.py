"""The training loop: steps, and what happens between them. Started again in the same folder, it continues by itself.

RUN/ experiment.json  metrics.jsonl  tensorboard/  checkpoints/  previews/  export/  profile/  .lock
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.configs import to_json
from mmgen_tokenizers.errors import UserError, full_disk, is_full_disk
from mmgen_tokenizers.files import place

from mmgen import config
from mmgen.config import Experiment
from mmgen.parallel.distributed import first_process, in_turn
from mmgen.parallel.mesh import feed, mesh_of, on_all, on_host, table, under
from mmgen.parallel.watch import Watch
from mmgen.training.checkpoint import Checkpoints
from mmgen.training.clock import Clock, Profile
from mmgen.training.exports import STEP, Exports, write_export
from mmgen.training.lock import locked
from mmgen.training.metrics import read_metrics
from mmgen.training.report import Report, due
from mmgen.training.state import TrainState, Tree, abstract_state, initial_state, shardings
from mmgen.training.step import make_step
from mmgen.training.stopping import Stop

AHEAD = 2  # steps dispatched before the figures of the first are read: the device has work while the host reads
MAY_CHANGE = "steps every_log every_validate every_preview every_checkpoint keep keep_every mesh compute_dtype".split()


@dataclass(frozen=True)
class Result:
    """A finished run: its folder (`mmgen.load` and `mt.load` open it), the steps done, the last figures by name."""

    folder: Path
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


def train(experiment: Experiment, out: str | Path | None = None, profile: tuple[int, int] | None = None) -> Result:
    """Trains until `experiment.steps`; `out` is the run folder (None: runs/tokenizer or runs/generator). `profile`: the first
    and the last of the steps of which RUN/profile gets a trace for xprof.

    A run that was stopped or killed continues from its last complete checkpoint, with the losses of a run that was never
    stopped. SIGINT and SIGTERM save and raise SystemExit. A full disk ends it only where the last state cannot be saved.
    Raises UserError then, at a non-finite loss, and when the folder holds another experiment or another process uses it.
    """
    from mmgen.training import tasks  # the loop itself knows of no task

    use_compilation_cache()
    kind = type(experiment.task).__name__.removesuffix("Task").lower()
    folder = Path(out if out is not None else f"runs/{kind}").absolute()
    with Watch() as watch, ExitStack() as stack:
        with in_turn():
            experiment = tasks.settled(experiment, folder)
            if first_process():
                stack.enter_context(locked(folder))
                claim(folder, experiment)
            task = tasks.make(experiment, folder)
            task.check()
        return fit(experiment, task, folder, task.training_batches, task.validation_batches, profile, watch)


def claim(folder: Path, experiment: Experiment) -> None:
    """Writes RUN/experiment.json; UserError when an experiment lives there that differs in more than how long it runs.

    A run without any checkpoint or whole export has nothing to lose: another experiment takes its place.
    """
    path = folder / "experiment.json"
    if path.exists():
        before = config.load(path)
        names = differences(to_json(before), to_json(experiment))
        names = [name for name in names if name.split(".")[0] not in MAY_CHANGE]
        steps = (entry.name for entry in place(checkpoints_of(folder, before)).glob("*"))
        saved = (folder / "export" / STEP).is_file() or any(map(str.isdigit, steps))
        if names and saved:
            raise UserError(
                f"{folder} holds a run of another experiment (different: {', '.join(names)}): "
                "choose another --out, or start it with the settings in its experiment.json"
            )
        if names:
            shutil.rmtree(folder / "export", ignore_errors=True)
            (folder / "text.model").unlink(missing_ok=True)
    config.save(experiment, path)


def checkpoints_of(folder: Path, experiment: Experiment) -> str | Path:
    """Where the checkpoints of the run in `folder` are."""
    return experiment.checkpoints or folder / "checkpoints"


def open_checkpoints(folder: Path, experiment: Experiment) -> Checkpoints:
    return Checkpoints(checkpoints_of(folder, experiment), experiment.keep, experiment.keep_every)


def differences(old: object, new: object, name: str = "") -> list[str]:
    """Dotted names of the fields in which two JSON values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name]
    keys = {**old, **new}
    return [found for key in keys for found in differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))]


def fit(
    experiment: Experiment,
    task,
    folder: Path,
    training_batches: Callable[[int], Iterator[dict]],
    validation_batches: Callable[[], Iterable[dict]] | None = None,
    profile: tuple[int, int] | None = None,
    watch: Watch | None = None,
) -> Result:
    """The loop itself. `training_batches(k)` gives the batches k, k + 1, ...; what a task is stands in tasks.py."""
    run = Run(experiment, task, folder, profile, watch or Watch())
    start, steps = run.start, experiment.steps
    with full_disk(folder), run.stop, run.report, run.checkpoints, run.exports, run.trace:
        run.introduce()
        batches = training_batches(start) if start < steps else ()
        for done, batch in zip(range(start + 1, steps + 1), run.clock.waits("data", batches), strict=False):
            run.step(done, batch)
            stopped = run.stop.wanted  # read once: it can come at any moment
            run.between(done, stopped, validation_batches)
            if stopped:
                run.leave(done, stopped)

        if run.stop.signal:  # it came while the last step was saved: whoever asked to stop does not want what follows
            raise SystemExit(128 + run.stop.signal)
        if start >= steps:  # it may have been killed between its last checkpoint and the export
            run.exports.start(exported_weights(task, run.state), start)
    run.report.say(f"done: {folder / 'export'}; how to use it: mmgen info {folder}")
    figures = {name: value for entry in read_metrics(folder) for name, value in entry.items()}
    return Result(folder, max(start, steps), figures)


class Run:
    """What a run has at hand: its state and compiled steps, and all that writes."""

    def __init__(self, experiment: Experiment, task, folder: Path, profile: tuple[int, int] | None, watch: Watch):
        self.experiment, self.task, self.folder, self.watch, self.clock = experiment, task, folder, watch, Clock()
        optimizer, self.mesh = task.optimizer(experiment), mesh_of(experiment)
        self.checkpoints = open_checkpoints(folder, experiment)
        self.state = starting_state(experiment, task, optimizer, self.checkpoints, self.mesh)
        self.start = int(self.state.step)
        self.frozen = on_all(self.mesh, task.frozen)
        places = None if self.mesh is None else shardings(self.state)
        self.train_step = under(self.mesh, make_step(experiment, task, optimizer, places))
        self.validation_step = under(self.mesh, jax.jit(task.validate))
        self.in_flight = deque()
        self.draws = first_process()
        self.stop = Stop(self.mesh)
        self.exports = Exports(task, folder / "export")
        self.report = Report(experiment, task, folder, self.checkpoints, self.start, self.clock)
        self.trace = Profile(profile, folder / "profile", self.clock)

    def introduce(self) -> None:
        state, say = self.state, self.report.say
        say(f"{self.folder}: {describe(state)}, {beginning(self.start, self.experiment.steps)}")
        if self.mesh is not None:
            say(table(self.mesh, {"parameters": state.params, "optimizer": state.opt_state, "averaged": state.ema}))
        if missed := self.trace.missed(self.start, self.experiment.steps):
            say(missed)

    def step(self, done: int, batch: dict) -> None:
        """Dispatches a step, and reads the figures of an earlier one."""
        if self.trace.begins(done):
            self.settle(0)
            self.trace.start()
            self.report.pace.rest()
        with jax.profiler.StepTraceAnnotation("train", step_num=done):
            self.state, metrics = self.train_step(self.state, self.frozen, self.fed(batch))
        if done == self.start + 1:
            self.clock.began()
            self.report.pace.rest()
        self.in_flight.append((done, metrics, self.stop.tell()))
        ends = self.trace.ends(done)
        self.settle(0 if ends else AHEAD)
        if ends:
            self.trace.stop()
            self.report.pace.rest()

    def fed(self, batch: dict) -> dict:
        """The batch on the devices. What comes next, all processes do together."""
        placed = feed(self.mesh, self.task.prepare(batch))
        self.watch.goes_on()
        return placed

    def settle(self, ahead: int) -> None:
        """Reads the figures of all steps but the last `ahead` of those that were dispatched."""
        while len(self.in_flight) > ahead:
            number, metrics, answer = self.in_flight.popleft()
            self.report.read(number, metrics)
            self.stop.hear(answer)

    def between(self, done: int, stopped: Signals | None, validation_batches: Callable[[], Iterable[dict]] | None) -> None:
        """What is due after a step: validation, a checkpoint with its export, a preview."""
        experiment = self.experiment
        last = done == experiment.steps
        saves = last or stopped or due(done, experiment.every_checkpoint)
        validates = validation_batches and not stopped and (saves or due(done, experiment.every_validate))
        previews = not stopped and (last or due(done, experiment.every_preview))
        if not (saves or validates or previews):
            return
        self.settle(0)  # a state is saved only when every step up to it was finite
        weights = exported_weights(self.task, self.state)
        figures = self.validated(done, weights, validation_batches()) if validates else {}
        with self.clock.spend("checkpoint"):
            if self.mesh is not None and (saves or previews):
                weights = on_host(weights)
            if saves:
                self.save(weights, done, figures.get("validation/loss"), final=bool(last or stopped))
        with self.clock.spend("preview"), self.outlives_full_disk(), self.watch.alone():
            if previews and self.draws:
                self.preview(weights, done)
        self.report.pace.rest()

    def preview(self, weights: Tree, done: int) -> None:
        """Draws on the first process's devices, beside the state: where there is no room, that is no reason to end the run."""
        try:
            self.task.preview(weights, self.folder / "previews", done)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            self.draws = False
            self.report.say(
                f"step {done}: the device has no memory for a preview beside the training state: training goes on without them "
                f"(--every_preview 0 tries none before the end). Draw from the export instead: mmgen sample {self.folder}"
            )

    def save(self, weights: Tree, done: int, validation_loss: float | None, final: bool) -> None:
        """Starts to write a checkpoint and its export; what went wrong with those before comes up first."""
        with self.outlives_full_disk():
            self.checkpoints.wait()
        with self.outlives_full_disk(), self.watch.alone():
            self.exports.wait()
        self.watch.goes_on()
        with nullcontext() if final else self.outlives_full_disk():
            self.checkpoints.save(self.state, to_json(self.experiment), validation_loss)
            self.exports.start(weights, done)

    @contextmanager
    def outlives_full_disk(self) -> Iterator[None]:
        """No space left for what is written within: the run says so and goes on. Of several processes those that could write
        wait in orbax for the one that could not: they end, and start again from the last good checkpoint."""
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1 or not is_full_disk(error):
                raise
            self.checkpoints.reopen()
            good = self.checkpoints.latest()
            kept = f"the last good checkpoint is that of step {good}" if good else "there is no checkpoint yet"
            self.report.say(f"no space left on the disk of {self.folder}: training goes on; {kept}")

    def validated(self, done: int, weights: Tree, batches: Iterable[dict]) -> dict[str, float]:
        """Figures of the held-out data, written down."""
        with self.clock.spend("validation"):
            figures = validate(self.validation_step, weights, self.state.extra, self.frozen, map(self.fed, batches))
        self.report.write(done, figures)
        return figures

    def leave(self, done: int, stopped: Signals) -> None:
        """Ends the process when what was saved is on the disk."""
        self.checkpoints.wait()
        self.exports.wait()
        self.report.say(f"stopped by {stopped.name}: saved at step {done}; start it again to continue from there")
        raise SystemExit(128 + stopped)


def export(run: str | Path, out: str | Path, which: Literal["last", "best"] | int = "last") -> int:
    """Writes the weights of a checkpoint of a run to the folder `out`; returns its step.

    RUN/export/ has the last one; "best" is the one with the lowest validation loss. Raises UserError where there is none, and
    where another process has the run.
    """
    from mmgen.training import tasks

    run = Path(run).absolute()
    if not (run / "experiment.json").is_file():
        raise UserError(f"{run} is no run folder: only runs have checkpoints")
    experiment = config.load(run / "experiment.json")
    task = tasks.make(experiment, run)
    optimizer = task.optimizer(experiment)
    with locked(run), open_checkpoints(run, experiment) as checkpoints:
        step = {"last": checkpoints.latest, "best": checkpoints.best}.get(which, lambda: which)()
        if step not in checkpoints.all():
            reason = " (none of them was validated)" if which == "best" else ""
            raise UserError(f"{run} has no checkpoint {which!r}{reason}, it has those of step {checkpoints.all()}")
        like = abstract_state(task, optimizer, experiment.seed, experiment.ema > 0)
        write_export(task, exported_weights(task, checkpoints.restore(step, like)), Path(out), step)
    return step


def starting_state(experiment: Experiment, task, optimizer, checkpoints: Checkpoints, mesh: Mesh | None) -> TrainState:
    """The state of the last checkpoint that can be read, or a new one."""
    arguments = task, optimizer, experiment.seed, experiment.ema > 0, mesh
    return checkpoints.restore_newest(like=abstract_state(*arguments)) or initial_state(*arguments)


def exported_weights(task, state: TrainState) -> Tree:
    """What is shown, validated and exported: the averaged weights where there are any."""
    return state.ema or task.weights(state.params)


def validate(step: Callable, weights: Tree, extra: Tree, frozen: Tree, batches: Iterable[Tree]) -> dict[str, float]:
    """Means over the batches, each name with "validation/" before it."""
    metrics = [step(weights, extra, frozen, batch) for batch in batches]
    metrics = jax.device_get(metrics)
    return {f"validation/{name}": float(np.mean([m[name] for m in metrics])) for name in metrics[0]}


def beginning(start: int, steps: int) -> str:
    """What a run does when it is started, in words."""
    if start >= steps:
        return f"finished at step {start}"
    return (f"continues at step {start}" if start else "starts") + "; compiling the first step"


def describe(state: TrainState) -> str:
    """Parameters and devices in words."""
    count = sum(x.size for x in jax.tree.leaves(state.params))
    return f"{count / 1e6:.2f}M parameters on {jax.device_count()} {jax.devices()[0].device_kind}"
