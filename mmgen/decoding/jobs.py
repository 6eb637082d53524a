"""A call of `generate` as programs: rows in pieces that fit in memory, and each program compiled once."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from mmgen.decoding.autoregressive import Autoregressive, Request, Settings
from mmgen.decoding.jacobi import Jacobi, Start
from mmgen.decoding.masked import MaskedRounds
from mmgen.decoding.target import Filter

ROWS = 256  # pictures decoded at once, at most


class Job(NamedTuple):
    """All rows of a call."""

    machine: Autoregressive | MaskedRounds
    models: tuple  # the generator and its draft, whose `fused` are decode_params
    batches: list[dict]  # the condition, as each of these reads it
    nulls: list[dict]  # with guidance: no condition, as each of these reads it
    index: Int[np.ndarray, "b"]
    key: jax.Array
    settings: Settings
    which: Filter
    start: Start

    def given(self, rows: Int[np.ndarray, "r"]) -> tuple:
        """The arguments of a program for some rows, which are filled up to a power of two: few sizes are ever compiled."""
        fill = rows[np.minimum(np.arange(1 << (len(rows) - 1).bit_length()), len(rows) - 1)]
        batches = [{name: value[fill] for name, value in batch.items()} for batch in self.batches]
        if self.which.guided:
            batches = [
                {name: np.concatenate([value, null.get(name, batch[name])[fill]]) for name, value in some.items()}
                for some, batch, null in zip(batches, self.batches, self.nulls, strict=True)
            ]
        extra = (self.start._replace(tokens=self.start.tokens[fill]),) if isinstance(self.machine, Jacobi) else ()
        params = [model.fused for model in self.models]
        return list(zip(params, batches, strict=True)), self.index[fill], self.key, self.settings, extra

    def pieces(self, most: int) -> list[Int[np.ndarray, "r"]]:
        """Row numbers of pieces that fit in memory, of `most` rows at most."""
        most = min(most, fitting(self.machine))
        return np.split(np.arange(len(self.index)), np.arange(most, len(self.index), most))


def fitting(machine: Autoregressive | MaskedRounds) -> int:
    """A power of two, so that caches and logits take about a quarter of an accelerator's memory, or 2 GiB of a CPU's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    budget = stats["bytes_limit"] // 4 if "bytes_limit" in stats else 2 << 30
    return min(ROWS, 1 << max(0, int(np.log2(max(1, budget // machine.row_bytes())))))


def matmul_precision(dtype: jnp.dtype):
    """float32 means float32: accelerators multiply it in fewer bits unless told otherwise."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else None)


class Programs:
    """Of one generator and its copies, which may be used from several threads."""

    def __init__(self, dtype: jnp.dtype):
        self.dtype = dtype
        self.machines: dict = {}
        self.compiled: dict = {}
        self._lock = threading.Lock()

    def once(self, held: dict, name: Any, make: Callable) -> Any:
        """What `make` gives: made once, whichever thread asks first."""
        with self._lock:
            if name not in held:
                held[name] = make()
            return held[name]

    def decode(self, job: Job, rows: Int[np.ndarray, "r"]) -> tuple[Int[np.ndarray, "r n ..."], int]:
        """Tokens and forwards."""
        machine, which = job.machine, job.which  # a program that is kept must not keep the job, with its weights

        def run(*given):
            with matmul_precision(self.dtype):
                return machine.decode(*_requests(which, *given))

        program = self.once(self.compiled, (machine, which), lambda: jax.jit(run))
        tokens, forwards = program(*job.given(rows))
        return np.asarray(tokens)[: len(rows)], int(forwards)

    def stream(
        self, job: Job, rows: Int[np.ndarray, "r"], every: int
    ) -> Iterator[tuple[Int[np.ndarray, "r n ..."], Bool[np.ndarray, "r n"]]]:
        """Tokens and which of them are final, until all are."""
        looks, waiting, ahead, done = self.looks(job, rows, every), [], 1, np.zeros(1, bool)
        while not done.all():
            waiting += itertools.islice(looks, ahead - len(waiting))
            tokens, done = (np.asarray(array)[: len(rows)] for array in waiting.pop(0))
            yield tokens, done
            ahead = 2  # whoever asks again goes on: the device does not wait for it from then on

    def looks(self, job: Job, rows: Int[np.ndarray, "r"], every: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Tokens and which are final after each `every` forwards, without end; none of them is waited for."""
        given = job.given(rows)
        opened, grown, continued = self._stream_programs(job.machine, job.which)
        carry, at, look = opened(*given), 0, None
        for time in itertools.count(0, every):
            for stage, steps in job.machine.stages(time, every):
                carry, at = carry if stage == at else grown(carry, stage), stage
                carry, look = continued(stage, carry, np.int32(steps), *given)
            yield look

    def _stream_programs(self, machine: Autoregressive, which: Filter) -> tuple:
        """What begins, what makes room for the next stage, and what goes on for some forwards and shows the tokens."""

        def opened(*given):
            with matmul_precision(self.dtype):
                return machine.opened(_requests(which, *given))

        def continued(stage, carry, steps, *given):
            with matmul_precision(self.dtype):
                carry = machine.continued(_requests(which, *given), carry, steps, stage)
            return carry, machine.seen(carry)

        def made() -> tuple:
            grown = jax.jit(lambda carry, stage: machine.grown(carry, stage), static_argnums=1)
            return jax.jit(opened), grown, jax.jit(continued, static_argnums=0, donate_argnums=1)

        return self.once(self.compiled, (machine, which, "stream"), made)


def _requests(which: Filter, models: list[tuple[dict, dict]], index, key, settings: Settings, extra: tuple) -> tuple:
    """What a decoder takes, from the arguments of its program."""
    return *(Request(params, batch, index, key, settings, which) for params, batch in models), *extra
