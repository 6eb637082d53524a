"""What a run tells: reads the figures of finished steps, stops at one that is not finite, writes and shows the rest.

Of several processes only the first writes and shows.
"""

import time
from pathlib import Path

import jax
import numpy as np
from mmgen_tokenizers.errors import UserError

from mmgen.config import Experiment
from mmgen.parallel.chips import chip_of
from mmgen.parallel.distributed import first_process
from mmgen.training import collapse
from mmgen.training.checkpoint import Checkpoints
from mmgen.training.clock import Clock
from mmgen.training.metrics import MetricsLog, Progress


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after `step` steps."""
    return every > 0 and step % every == 0


class Report:
    """Figures of a run; `say` adds a line for the reader."""

    def __init__(self, experiment: Experiment, task, folder: Path, checkpoints: Checkpoints, start: int, clock: Clock):
        self._experiment, self._checkpoints = experiment, checkpoints
        self._unit, per_row = task.unit
        self._per_step, self._clock = experiment.batch * per_row, clock
        self._peaks = _share_of_peak(experiment, task)
        self._log = MetricsLog(folder, start, clock) if first_process() else None
        self._progress = Progress(experiment.steps, self._unit, silent=not first_process())
        self.say = self._progress.say
        self.pace = Pace()
        self._warned = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._progress.end()
        if self._log:
            self._log.close()

    def read(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Waits for the figures of a step that was dispatched earlier; logs them when it is time."""
        metrics = jax.device_get(metrics)
        self.pace.tick()
        if not metrics.pop("finite"):
            self._stop_not_finite(step, metrics)
        if step == 1 or due(step, self._experiment.every_log) or step == self._experiment.steps:
            seconds = self.pace.seconds_a_step()
            figures = {name: float(value) for name, value in metrics.items()}
            if seconds:
                figures[f"{self._unit}_per_second"] = self._per_step / seconds
                figures |= {name: share / seconds for name, share in self._peaks.items()}
            self._write(step, figures | self._clock.figures())
            self._progress.show(step, figures["loss"], self._per_step / seconds if seconds else 0.0, seconds)
            self._warn(step, figures)

    def _warn(self, step: int, figures: dict[str, float]) -> None:
        """Says what goes wrong when it begins to, not at each step."""
        text = collapse.warning(self._experiment, step, figures)
        if text and not self._warned:
            self.say(text)
        self._warned = bool(text)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Figures that were not made by a step: validation."""
        self._write(step, figures)
        self.say(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def _write(self, step: int, figures: dict[str, float]) -> None:
        if self._log:
            self._log.write(step, figures)

    def _stop_not_finite(self, step: int, metrics: dict[str, np.ndarray]) -> None:
        self._checkpoints.wait()
        good = self._checkpoints.latest()
        kept = f"the last good checkpoint is {self._checkpoints.folder / str(good)}" if good else "there is no checkpoint yet"
        raise UserError(
            f"step {step} is not finite (loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); {kept}. "
            "Start a new run with a lower learning rate (--optimizer.schedule.peak), a longer warm-up or a smaller clip"
        )


def _share_of_peak(experiment: Experiment, task) -> dict[str, float]:
    """Seconds that the operations of a step would take at the devices' peak for bfloat16, by accounting: a second of them in a
    step of two is an MFU of 1/2. Empty where the device or the model has no figures."""
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is None or task.operations is None or getattr(experiment.task, "frozen", ()):  # frozen parts cost less
        return {}
    peak = jax.device_count() * chip.peak * 1e12
    causal, full = (experiment.batch * operations / peak for operations in task.operations)
    return {"mfu": causal, "mfu_full": full}


class Pace:
    """Seconds a step, without compilation and what happens between steps."""

    def __init__(self):
        self._last: float | None = None
        self._total, self._count, self._known = 0.0, 0, 0.0

    def tick(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        if self._last is not None:
            self._total, self._count = self._total + now - self._last, self._count + 1
        self._last = now

    def rest(self) -> None:
        """Steps go on from now: what was done since the last tick does not count. Those in flight are read later, so windows
        may be off by these, but no time is lost: a mean over few steps that end before they are read stays a mean."""
        self._last = time.perf_counter()

    def seconds_a_step(self) -> float:
        """Mean since the last call; 0 when nothing is known yet."""
        if self._count:
            self._known = self._total / self._count
        self._total, self._count = 0.0, 0
        return self._known
