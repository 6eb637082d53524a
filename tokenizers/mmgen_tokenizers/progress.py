"""A line that tells how far a long job is."""

import sys
import time


class Counter:
    """`640/50000 pictures, 12.3/s, 67 min left` on stderr: a line rewritten on a terminal, else one every ten seconds."""

    def __init__(self, total: int, unit: str):
        self._total, self._unit, self._done = total, unit, 0
        self._start = self._shown = time.perf_counter()
        self._terminal = sys.stderr.isatty()

    def __enter__(self) -> "Counter":
        return self

    def __exit__(self, *exception) -> None:
        if self._terminal and self._shown > self._start:
            print(file=sys.stderr)

    def add(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        now = time.perf_counter()
        if now - self._shown < (0.5 if self._terminal else 10) or (self._done >= self._total and self._shown == self._start):
            return
        self._shown = now
        rate = self._done / (now - self._start)
        line = f"{self._done}/{self._total} {self._unit}, {rate:.1f}/s, {duration((self._total - self._done) / rate)} left"
        print(f"\r{line:<70}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: "48 s", "12 min", "3 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 99:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
