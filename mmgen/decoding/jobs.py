"""A call of `generate` as programs: rows in pieces that fit in memory, and each program compiled once."""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Int

from mmgen.decoding.autoregressive import Autoregressive, Request, Settings
from mmgen.decoding.jacobi import Jacobi, Start
from mmgen.decoding.masked import MaskedRounds
from mmgen.decoding.target import Filter
from mmgen.model.config import GeneratorConfig, Masked
from mmgen.parallel.mesh import parts_of, under

ROWS = 256  # pictures that a device decodes at once, at most
REPLICA = P("replica")


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

    def given(self, rows: Int[np.ndarray, "r"], replicas: int) -> tuple:
        """The arguments of a program for some rows. Each replica's are filled up to a power of two: few sizes are ever
        compiled. Conditions are [1, R, ...], or with guidance [2, R, ...]: rows, and the same ones without condition."""
        each = 1 << (-(-len(rows) // replicas) - 1).bit_length()
        fill = rows[np.minimum(np.arange(replicas * each), len(rows) - 1)]
        nulls = self.nulls or [None] * len(self.models)
        batches = [_paired(batch, null, fill) for batch, null in zip(self.batches, nulls, strict=True)]
        extra = (self.start._replace(tokens=self.start.tokens[fill]),) if isinstance(self.machine, Jacobi) else ()
        params = [model.fused for model in self.models]
        return list(zip(params, batches, strict=True)), self.index[fill], self.key, self.settings, extra

    def pieces(self, most: int, mesh: Mesh | None) -> list[Int[np.ndarray, "r"]]:
        """Row numbers of pieces that fit in memory, of `most` rows at most."""
        most = min(most, fitting(self.machine, mesh))
        return np.split(np.arange(len(self.index)), np.arange(most, len(self.index), most))


def _paired(batch: dict, null: dict | None, fill: Int[np.ndarray, "r"]) -> dict:
    ways = [batch] if null is None else [batch, batch | null]
    return {name: np.stack([way[name][fill] for way in ways]) for name in batch}


def decoder_of(c: GeneratorConfig, dtype: jnp.dtype) -> Autoregressive | MaskedRounds:
    """What draws plainly."""
    return (MaskedRounds if isinstance(c.plan, Masked) else Autoregressive)(c, dtype)


def fitting(machine: Autoregressive | MaskedRounds, mesh: Mesh | None, memory: float | None = None) -> int:
    """A power of two for each replica, so that caches and logits take about a quarter of an accelerator's `memory` (None: that
    of the devices here), or 2 GiB of a CPU's. Devices that split heads and vocabulary share that of a row."""
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit") if memory is None else memory
    budget = 2 << 30 if memory is None else memory / 4
    budget *= 1 if mesh is None else mesh.shape["tensor"]
    return parts_of(mesh) * min(ROWS, 1 << max(0, int(np.log2(max(1, budget // machine.row_bytes())))))


def matmul_precision(dtype: jnp.dtype):
    """float32 means float32: accelerators multiply it in fewer bits unless told otherwise."""
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else None)


class Programs:
    """Of one generator and its copies, which may be used from several threads.

    On a mesh every replica runs them by itself on its own rows (of which devices along `tensor` share heads and units), so they
    give what one device gives.
    """

    def __init__(self, dtype: jnp.dtype, mesh: Mesh | None):
        self.dtype, self.mesh = dtype, mesh
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
        """Tokens, and the forwards of the slowest replica."""
        given = job.given(rows, parts_of(self.mesh))
        tokens, forwards = under(self.mesh, self.decoding(job.machine, job.which, given))(*given)
        return _joined(tokens)[: len(rows)], int(np.max(forwards))

    def decoding(self, machine: Autoregressive | MaskedRounds, which: Filter, given: tuple) -> Callable:
        """The jitted program of plain calls, which takes what is `given`: arrays, or their shapes."""
        return self._program((machine, which), lambda *given: machine.decode(*_requests(which, *given)), _specs(given))

    def _program(self, name: tuple, function: Callable, specs: tuple, donate: tuple[int, ...] = ()) -> Callable:
        """function(*arguments) for the rows of one replica -> the jitted program of all: what it gives has a new first axis, an
        entry for each replica; so has its first argument where that is such a result (its spec is REPLICA)."""

        def run(*given):
            if specs[0] == REPLICA:
                given = jax.tree.map(lambda x: x[0], given[0]), *given[1:]
            with matmul_precision(self.dtype):
                return jax.tree.map(lambda x: jnp.asarray(x)[None], function(*given))

        def made() -> Callable:
            return jax.jit(run if self.mesh is None else self._everywhere(run, specs), donate_argnums=donate)

        return self.once(self.compiled, name, made)

    def _everywhere(self, run: Callable, specs: tuple) -> Callable:
        split = {"tensor"} if self.mesh.shape["tensor"] > 1 else set()  # what XLA divides
        alone = set(self.mesh.axis_names) - split
        return jax.shard_map(run, mesh=self.mesh, in_specs=specs, out_specs=REPLICA, axis_names=alone, check_vma=False)

    def stream(
        self, job: Job, rows: Int[np.ndarray, "r"], every: int
    ) -> Iterator[tuple[Int[np.ndarray, "r n ..."], Bool[np.ndarray, "r n"]]]:
        """Tokens and which of them are final, until all are."""
        looks, waiting, ahead, done = self.looks(job, rows, every), [], 1, np.zeros(1, bool)
        while not done.all():
            waiting += itertools.islice(looks, ahead - len(waiting))
            tokens, done = (_joined(array)[: len(rows)] for array in waiting.pop(0))
            yield tokens, done
            ahead = 2  # whoever asks again goes on: the device does not wait for it from then on

    def looks(self, job: Job, rows: Int[np.ndarray, "r"], every: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Tokens and which are final after each `every` forwards, of each replica, without end; none of them is waited for."""
        given = job.given(rows, parts_of(self.mesh))
        opened, grown, continued = self._stream_programs(job.machine, job.which, given)
        carry, at, look = under(self.mesh, opened)(*given), 0, None
        for time in itertools.count(0, every):
            for stage, steps in job.machine.stages(time, every):
                carry, at = carry if stage == at else under(self.mesh, grown(stage))(carry), stage
                carry, look = under(self.mesh, continued(stage))(carry, np.int32(steps), *given)
            yield look

    def _stream_programs(self, machine: Autoregressive, which: Filter, given: tuple) -> tuple:
        """What begins, what makes room for a stage, and what goes on for some forwards and shows the tokens."""
        own = machine, which

        def grown(stage: int) -> Callable:
            return self._program((*own, "grown", stage), lambda carry: machine.grown(carry, stage), (REPLICA,))

        def continued(stage: int) -> Callable:
            def run(carry, steps, *given):
                carry = machine.continued(_requests(which, *given), carry, steps, stage)
                return carry, machine.seen(carry)

            return self._program((*own, "continued", stage), run, (REPLICA, P(), *_specs(given)), donate=(0,))

        opened = self._program((*own, "opened"), lambda *given: machine.opened(_requests(which, *given)), _specs(given))
        return opened, grown, continued


def _joined(x: jax.Array) -> np.ndarray:
    """[P, R, ...] of all replicas -> [P R, ...]."""
    return np.asarray(x).reshape(-1, *x.shape[2:])


def _specs(given: tuple) -> tuple:
    """How the arguments of a program lie: weights whole or in pieces along `tensor`, rows by replica."""
    models, *_, extra = given
    return [(P(), P(None, "replica"))] * len(models), REPLICA, P(), P(), tuple(Start(P(), REPLICA) for _ in extra)


def _requests(which: Filter, models: list[tuple[dict, dict]], index, key, settings: Settings, extra: tuple) -> tuple:
    """What a decoder takes, from the arguments of its program."""
    batches = [{name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()} for _, batch in models]
    requests = [Request(params, batch, index, key, settings, which) for (params, _), batch in zip(models, batches, strict=True)]
    return *requests, *extra
