"""SIGINT and SIGTERM as a wish that the loop grants between two steps."""

import os
import signal
import threading


class Stop:
    """Within `with Stop() as stop`, the first signal is noted in `stop.signal`; a second one acts as it always does."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._previous: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception):
        self._restore()

    def _note(self, number, frame):
        self.signal = signal.Signals(number)
        self._restore()
        # Not print: a handler may have interrupted one.
        os.write(2, b"\nfinishing this step, then saving (once more to quit without saving)\n")

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
