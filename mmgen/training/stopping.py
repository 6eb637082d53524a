"""SIGINT and SIGTERM as a wish that the loop grants between two steps; of several processes, all between the same two."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmgen.parallel.mesh import AXES, under


class Stop:
    """Within `with Stop() as stop`, the first signal is noted in `stop.signal`; a second one acts as it always does.

    Where a mesh spans processes, each dispatches `tell` with every step and passes the answer to `hear` when that step is
    read: then `wanted` is the same in all of them, whoever got the signal.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, mesh: Mesh | None = None):
        self.signal: signal.Signals | None = None
        self._previous: dict = {}
        self._heard: signal.Signals | None = None
        self._mesh = mesh if jax.process_count() > 1 else None
        self._largest = under(self._mesh, jax.jit(jnp.max))

    @property
    def wanted(self) -> signal.Signals | None:
        """The signal that stops the run now."""
        return self._heard if self._mesh else self.signal

    def tell(self) -> jax.Array | None:
        """The largest signal that a process got, 0 for none; None where one process decides."""
        if not self._mesh:
            return None
        mine = np.full(len(self._mesh.local_devices), self.signal or 0, np.int32)
        return self._largest(jax.make_array_from_process_local_data(NamedSharding(self._mesh, P(AXES)), mine))

    def hear(self, answer: jax.Array | None) -> None:
        if answer is not None and int(answer):
            self._heard = signal.Signals(int(answer))

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
