"""Where the figures of a run go: metrics.jsonl, TensorBoard if it is there, and a line on the terminal."""

import json
import sys
from pathlib import Path
from typing import TextIO

from mmgen_tokenizers.errors import is_full_disk
from mmgen_tokenizers.files import write_atomically
from mmgen_tokenizers.progress import duration

from mmgen.training.clock import Clock


class MetricsLog:
    """Writes figures under a run folder; entries after `step`, left by a run that was killed, are dropped first."""

    def __init__(self, folder: Path, step: int, clock: Clock):
        self._path = folder / "metrics.jsonl"
        kept = [entry for entry in read_metrics(folder) if entry["step"] <= step]
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._before = max((entry.get("seconds", 0.0) for entry in kept), default=0.0)
        self._clock = clock
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", step)

    @property
    def seconds(self) -> float:
        """Time that the run has taken, earlier starts included."""
        return self._before + self._clock.seconds

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One line: {"step": ..., the figures, "seconds": ...}; on the disk when this returns, if there is room."""
        self._file.write(json.dumps({"step": step, **figures, "seconds": round(self.seconds, 3)}) + "\n")
        try:
            self._file.flush()
        except OSError as error:  # what a full disk did not take is written with a later line
            if not is_full_disk(error):
                raise
        if self._board:
            for name, value in figures.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def read_metrics(folder: str | Path) -> list[dict]:
    """The entries of RUN/metrics.jsonl; a last line that was cut by a kill is left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _tensorboard(folder: Path, step: int):
    """A writer, or None without tensorboardX, which is said once a run."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        if step == 0:
            print("no TensorBoard files: install tensorboardX for them (metrics.jsonl has the figures)", file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)  # what a killed run wrote behind its checkpoint


class Progress:
    """A line on stderr: rewritten in place on a terminal, one line an entry elsewhere."""

    def __init__(self, steps: int, unit: str, stream: TextIO | None = None, silent: bool = False):
        self._steps, self._unit, self._stream, self._silent = steps, unit, stream or sys.stderr, silent
        self._open = False  # whether the cursor stands behind a line that will be rewritten

    def show(self, step: int, loss: float, rate: float, seconds_a_step: float) -> None:
        speed = f"  {short(rate)} {self._unit}/s  {duration((self._steps - step) * seconds_a_step)} left" if rate else ""
        self._write(f"step {step}/{self._steps}  loss {loss:.4f}{speed}", lasting=False)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._write(text, lasting=True)

    def end(self) -> None:
        """Leaves the last figures standing."""
        if self._open:
            self._stream.write("\n")
            self._open = False

    def _write(self, text: str, lasting: bool) -> None:
        if self._silent:
            return
        if self._stream.isatty():
            self._stream.write("\r\x1b[K" + text + ("\n" if lasting else ""))
            self._open = not lasting
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def short(number: float) -> str:
    """12345.6 -> "12.3k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
