"""The real training step of an experiment, compiled for devices that are not there: what it needs of each of them. Sampling
(sampling.py) goes the same way."""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from mmgen_tokenizers.errors import UserError

from mmgen.config import Experiment, GeneratorTask
from mmgen.parallel import hlo
from mmgen.parallel.chips import Topology
from mmgen.parallel.mesh import check_batch, make_mesh, resolve, under
from mmgen.parallel.overhear import copied, overheard
from mmgen.parallel.rules import BATCH, bytes_each

QUICK = "O0"  # of XLA's levels of optimization
QUICK_IS_OFF = 0.2  # by at most 10 percent of the bytes of the presets in experiments/; small programs by more


@dataclass(frozen=True)
class Needs:
    """Of one device, in bytes, but for what is said."""

    about: dict[str, int]  # Step.about
    mesh: tuple[int, ...]
    parameters: int  # numbers, on all devices together
    parts: dict[str, int]  # what is there when a step begins
    kept: tuple[str, int]  # of the temporaries: activations for the way back (an upper bound where tensor > 1), or the cache
    temporaries: int
    moved: int  # read from memory and written to it in a step, at least
    operations: int  # of a step, on all devices together: products and convolutions, with those that remat repeats
    formula: tuple[int, int] | None  # the task's count of them for a row of the batch, causal and full
    unit: tuple[str, int]  # what a row of the batch has how many of
    traffic: dict[str, hlo.Traffic] | None  # None where the program does not fit, or cannot be read
    copied: list[str]  # operations whose results are made whole on every device: XLA knows no other way between two shardings
    optimized: bool  # as what a run compiles
    seconds: float  # of tracing and compiling

    @property
    def total(self) -> int:
        return sum(self.parts.values()) + self.temporaries


@dataclass(frozen=True)
class Step:
    """A step that is ready to be compiled."""

    about: dict[str, int]  # "rows", and what else is to be told
    mesh: Mesh
    given: dict[str, object]  # what it takes, by kind: shapes, types and places
    traced: object
    kept: tuple[str, int]
    moved: Callable[[int], int]  # Needs.moved, of the temporaries
    formula: tuple[int, int] | None
    unit: tuple[str, int]

    @property
    def parts(self) -> dict[str, int]:
        return {name: bytes_each(tree) for name, tree in self.given.items()}


def prepared(experiment: Experiment, topology: Topology) -> Step:
    """The step that `mmgen train` would run there, traced. Raises UserError where experiment and mesh do not fit."""
    from mmgen.training import tasks
    from mmgen.training.state import abstract_state, shardings
    from mmgen.training.step import make_step

    experiment = replace(experiment, compute_dtype=computes_in(experiment, topology))
    shape = resolve(experiment.mesh, len(topology.devices))
    check_batch(experiment, shape)
    mesh = make_mesh(shape, topology.devices)
    task = tasks.make(experiment, None)
    optimizer = task.optimizer(experiment)
    state = abstract_state(task, optimizer, experiment.seed, experiment.ema > 0, mesh)
    frozen, batch = _placed(task.frozen, mesh, P()), _placed(task.inputs(), mesh, BATCH)
    traced = under(mesh, make_step(experiment, task, optimizer, shardings(state)).trace)(state, frozen, batch)
    other = state.step, state.extra, frozen, batch
    given = {"parameters": state.params, "optimizer": state.opt_state, "averaged": state.ema, "other": other}
    replica, fsdp, _, sequence = shape
    kept = "activations", hlo.activations(traced.jaxpr.jaxpr) // (replica * fsdp * sequence)
    held = sum(map(bytes_each, given.values()))

    def moved(temporaries: int) -> int:
        """All of it written and read once, what is made on the way for each part of the batch."""
        return 2 * (held + experiment.accumulate * temporaries)

    about = {"rows": experiment.batch, "accumulate": experiment.accumulate}
    return Step(about, mesh, given, traced, kept, moved, task.operations, task.unit)


def computes_in(experiment: Experiment, topology: Topology) -> str:
    """The compute_dtype that it has there."""
    auto = topology.chip is not None and experiment.compute_dtype == "auto"
    return "bfloat16" if auto else experiment.compute_dtype


def _placed(tree, mesh: Mesh, spec: P):
    place = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def measured(step: Step, topology: Topology, optimize: bool = False) -> Needs:
    """Its needs, by a quick compilation for TPUs: as a run compiles it where that is asked for, or where it might not fit."""
    tpu = topology.chip is not None and topology.exact
    needs = compiled(step, optimize or not tpu)
    doubtful = not needs.optimized and needs.total > (1 - QUICK_IS_OFF) * topology.chip.bytes
    return compiled(step, True) if doubtful else needs


def compiled(step: Step, optimize: bool) -> Needs:
    """Compiles it; where libtpu finds that it does not fit, its needs are those that libtpu names."""
    start = time.perf_counter()
    try:
        with overheard() as warnings, _level("UNKNOWN" if optimize else QUICK):
            program = under(step.mesh, lambda: step.traced.lower().compile())()
        memory = program.memory_analysis()
        temporaries = memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
        traffic = _traffic(program)
    except jax.errors.JaxRuntimeError as error:
        temporaries, traffic = _refused(error, sum(step.parts.values())), None
    return Needs(
        about=step.about,
        mesh=tuple(step.mesh.shape.values()),
        parameters=sum(x.size for x in jax.tree.leaves(step.given["parameters"])),
        parts=step.parts,
        kept=(step.kept[0], min(step.kept[1], temporaries)),
        temporaries=temporaries,
        moved=step.moved(temporaries),
        operations=hlo.operations(step.traced.jaxpr.jaxpr),
        formula=step.formula,
        unit=step.unit,
        traffic=traffic,
        copied=copied(warnings),
        optimized=optimize,
        seconds=time.perf_counter() - start,
    )


@contextlib.contextmanager
def _level(name: str) -> Iterator[None]:
    """One of XLA's levels of optimization for what is compiled within."""
    before = jax.config.jax_optimization_level
    jax.clear_caches()  # JAX would take the same program, compiled at another level, for this one
    jax.config.update("jax_optimization_level", name)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _traffic(program) -> dict[str, hlo.Traffic] | None:
    try:
        return hlo.collectives(program.as_text())
    except jax.errors.JaxRuntimeError:  # some pairs of jax and libtpu cannot read a compiled program back
        return None


def _refused(error: jax.errors.JaxRuntimeError, held: int) -> int:
    """Bytes of temporaries that a program would take of each device, which holds `held` besides, by libtpu's refusal: it names
    both together or, where temporaries alone are too large, these. Raises other errors again."""
    for told, besides in ((r"Used ([\d.]+)([KMGT]) of [\d.]+\w hbm", held), (r"temporaries \(([\d.]+)([KMGT])\) exceeds", 0)):
        if "RESOURCE_EXHAUSTED" in str(error) and (match := re.search(told, str(error))):
            return int(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2]))) - besides
    raise error


def fits(needs: Needs, topology: Topology) -> bool:
    return topology.chip is None or needs.total <= topology.chip.bytes


def nearest(
    prepare: Callable[[list[str]], Step], tried: Iterable[list[str]], topology: Topology
) -> Iterator[tuple[list[str], Needs]]:
    """Changes (of the command line) as they are tried, with what each needs, up to the first that fits. `prepare`: the step
    with such a change. What does not divide the model, and meshes on which the state alone is too large, are passed over."""
    for flags in tried:
        try:
            step = prepare(flags)
        except UserError:
            continue
        if sum(step.parts.values()) > topology.chip.bytes:
            continue
        needs = measured(step, topology)
        yield flags, needs
        if fits(needs, topology):
            return


def changes(experiment: Experiment, devices: int) -> Iterator[list[str]]:
    """What may make an experiment fit, as fields of the command line, the smallest changes first. A batch is halved, cut in
    eight, then in single rows, for each try is a compilation."""
    replica, fsdp, tensor, _ = resolve(experiment.mesh, devices)
    remat = []
    if isinstance(experiment.task, GeneratorTask) and not experiment.task.model.remat:
        remat = ["--task.model.remat", "true"]
        yield remat
    flags = remat
    if replica > 1:
        flags = [*remat, "--mesh.replica", "1", "--mesh.fsdp", str(replica * fsdp)]
        yield flags
    rows = experiment.batch // (replica * fsdp)
    parts = sorted({2, 8, rows})
    yield from ([*flags, "--accumulate", str(n)] for n in parts if n > experiment.accumulate and rows % n == 0)
    for size in (2, 4, 8):
        yield [*remat, "--mesh.replica", "1", "--mesh.fsdp", str(replica * fsdp // size), "--mesh.tensor", str(tensor * size)]
    yield from ([*flags, "--batch", str(experiment.batch // n)] for n in (2, 4, 8))
