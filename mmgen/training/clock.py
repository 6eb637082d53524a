"""Where the time of a run goes, and the trace that shows it."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from mmgen.parallel.distributed import first_process


class Clock:
    """Seconds since the process began to train by what they went to; those that nothing is said of went to steps."""

    def __init__(self):
        self._start = time.perf_counter()
        self._spent: dict[str, float] = {}

    def began(self) -> None:
        """The first step has been compiled: all until now was the start."""
        self._spent = {"start": time.perf_counter() - self._start}

    @contextlib.contextmanager
    def spend(self, kind: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[kind] = self._spent.get(kind, 0.0) + time.perf_counter() - start

    def waits(self, kind: str, items: Iterable) -> Iterator:
        """The items; the time that each takes to come is spent on `kind`."""
        items, end = iter(items), object()
        while True:
            with self.spend(kind):
                item = next(items, end)
            if item is end:
                return
            yield item

    @property
    def seconds(self) -> float:
        """All of them."""
        return time.perf_counter() - self._start

    def figures(self) -> dict[str, float]:
        """ "goodput": the share of the time that went to steps; "seconds/KIND": what went to others."""
        goodput = 1 - sum(self._spent.values()) / self.seconds
        return {"goodput": goodput, **{f"seconds/{kind}": seconds for kind, seconds in self._spent.items()}}


class Profile:
    """Within `with Profile((10, 13), folder, clock)`, an xprof trace of steps 10 to 13 of the first process; None: no trace.

    The loop asks before and after each step, in every process alike, and finishes the steps in flight before it obeys.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, clock: Clock):
        self._steps, self._folder, self._clock, self._running = steps, folder, clock, False

    def begins(self, step: int) -> bool:
        return self._steps is not None and not self._running and self._steps[0] <= step <= self._steps[1]

    def ends(self, step: int) -> bool:
        return self._running and step == self._steps[1]

    def start(self) -> None:
        self._running = True
        if first_process():
            with self._clock.spend("profile"):
                jax.profiler.start_trace(str(self._folder))

    def stop(self) -> None:
        self._running = False
        if first_process():
            with self._clock.spend("profile"):
                jax.profiler.stop_trace()

    def missed(self, start: int, steps: int) -> str | None:
        """What to say where none of these steps will be done; None where some will."""
        if self._steps is None or (self._steps[1] > start and self._steps[0] <= steps):
            return None
        first, last = self._steps
        return f"no trace: steps {first} to {last} are not among those that are to be done, {start + 1} to {steps}"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._running:  # the run ended before the last of the steps
            self.stop()
