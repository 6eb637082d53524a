"""Several processes as one program (jax.distributed): who starts it, and what only the first of them does."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from mmgen_tokenizers.errors import UserError

TIMEOUT = 300  # seconds that processes wait for each other at the start
PATIENCE = 5  # until they say so
REASON = 1000  # bytes of an error that the other processes are told

# What schedulers tell each process, and jax.distributed reads by itself. A count of 1 is a job of one process.
COUNTS = {
    "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}


def detected(environment: Mapping[str, str] = os.environ) -> str | None:
    """What started several processes of this program, by the environment: SLURM, Open MPI, TPU pods of GKE; or None.

    TPU VMs tell their hosts of each other elsewhere (their metadata server, which JAX asks): there MMGEN_DISTRIBUTED=1 says so.
    """
    if environment.get("MMGEN_DISTRIBUTED", "") not in ("", "0"):
        return "this machine"
    for name, (count, index) in COUNTS.items():
        if environment.get(count, "1") != "1" and index in environment:
            return name
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    return "TPU pod" if len(workers) > 1 or slices != "1" else None


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, timeout: int = TIMEOUT
) -> None:
    """Joins the other processes: by the three arguments, or as the scheduler says where one is detected; else does nothing.

    Must run before JAX is first used. Raises UserError where the arguments are incomplete; where the others are not met within
    `timeout` seconds the process says so and exits with 75: another try may be luckier.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    found = detected()
    if len(missing) == len(given):
        if found is None:
            return
    elif missing:
        there = ", ".join(flag for flag in given if flag not in missing)
        raise UserError(f"{there} without {', '.join(missing)}: several processes need all three")
    elif not 0 <= process < processes or not coordinator.rpartition(":")[2].isdigit():
        raise UserError(
            f"--coordinator {coordinator} --processes {processes} --process {process}: the first is HOST:PORT of process 0, "
            f"and processes count from 0 to {processes - 1}"
        )
    with _deadline(coordinator or f"the coordinator that {found} names", timeout):
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout + 60)


@contextlib.contextmanager
def _deadline(where: str, seconds: int) -> Iterator[None]:
    """Ends this process, with the reason, where the body takes longer: JAX would abort it with a stack trace of C++."""

    def end() -> None:
        os.write(
            2,
            f"error: this process did not meet the others at {where} within {seconds} s: start all processes together, and let "
            "the address be that of process 0 and reachable from all\n".encode(),
        )
        os._exit(75)  # EX_TEMPFAIL; 2 is a mistake of the user's

    def wait() -> None:
        os.write(2, f"waiting for the other processes at {where}, {seconds} s at most\n".encode())

    timers = [threading.Timer(seconds, end), threading.Timer(PATIENCE, wait)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def first_process() -> bool:
    """Whether this process writes logs, pictures and exports."""
    return jax.process_index() == 0


class Elsewhere(RuntimeError):
    """An error of another process, and no mistake of the user's: that process tells it in full."""


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """The body runs in the first process, then in the others, which find what it wrote (all see the same disk).

    An error of one process reaches all, in the others as a UserError where it is one, else as Elsewhere: none waits for one
    that has ended.
    """
    if not first_process():
        _meet()
    try:
        yield
    except Exception as error:
        _meet(error)
        raise
    _meet()
    if first_process():
        _meet()


def all_say(ok: bool) -> bool:
    """Whether every process says so; all of them must ask."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental.multihost_utils import process_allgather

    return bool(process_allgather(ok).all())


def _meet(mistake: Exception | None = None) -> None:
    """Returns when all processes are here. Raises UserError or Elsewhere in those without a mistake where another has one."""
    if jax.process_count() == 1:
        return
    from jax.experimental.multihost_utils import process_allgather

    mine = b""
    if mistake is not None:  # whose, then the reason
        mine = (b"u" if isinstance(mistake, UserError) else b"e") + (str(mistake) or type(mistake).__name__).encode()
    reasons = process_allgather(np.frombuffer(mine[:REASON].ljust(REASON, b"\0"), np.uint8))
    for process, told in enumerate(map(bytes, reasons)):
        if mistake is None and told.strip(b"\0"):
            kind = UserError if told[:1] == b"u" else Elsewhere
            raise kind(f"process {process} ended: {told[1:].rstrip(bytes(1)).decode(errors='replace')}")
