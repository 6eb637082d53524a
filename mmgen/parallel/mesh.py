"""The mesh of a run, and what passes between it and the host: batches, weights, the programs that run on it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from mmgen_tokenizers.errors import UserError

from mmgen.config import Experiment, MeshSizes
from mmgen.parallel.rules import BATCH, bytes_each, named, specs

Tree = Any
AXES = ("replica", "fsdp", "tensor", "sequence")
GATHERED = 1 << 30  # bytes


def resolve(sizes: MeshSizes, devices: int) -> tuple[int, ...]:
    """The four sizes, with -1 replaced by what is left. Raises UserError where they do not multiply to the devices."""
    given = [getattr(sizes, axis) for axis in AXES]
    if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
        raise UserError(f"mesh sizes are 1 or more, and one of them may be -1, the rest of the devices: not {_text(given)}")
    fixed = math.prod(size for size in given if size != -1)
    found = [devices // fixed if size == -1 else size for size in given]
    if math.prod(found) != devices:
        fits = ", ".join(str(n) for n in range(1, min(devices, 4096) + 1) if devices % n == 0)
        raise UserError(
            f"a mesh of {_text(given)} does not use {devices} devices: set one size to -1 (the rest) and choose the others so "
            f"that their product is one of {fits}"
        )
    return tuple(found)


def _text(sizes) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))


def mesh_of(experiment: Experiment) -> Mesh | None:
    """The mesh over all devices; None where there is one, whose program needs none. Raises UserError where sizes do not fit."""
    shape = resolve(experiment.mesh, jax.device_count())
    check_batch(experiment, shape)
    return None if jax.device_count() == 1 else make_mesh(shape, tuple(jax.devices()))


def local_mesh(tensor: int) -> Mesh | None:
    """All devices of this process, of which `tensor` share the heads of a sample; None where there is one. Raises UserError
    where these do not divide them."""
    devices = tuple(jax.local_devices())
    if tensor < 1 or len(devices) % tensor:
        fits = ", ".join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise UserError(f"--mesh.tensor {tensor} does not divide the {len(devices)} devices of this process: one of {fits}")
    return None if len(devices) == 1 else make_mesh((len(devices) // tensor, 1, tensor, 1), devices)


@functools.cache
def make_mesh(shape: tuple[int, ...], devices: tuple) -> Mesh:
    # An axis of the mesh may be a part of an axis of a TPU's torus: tensor 4 of 8 x 8 x 8, which jax.make_mesh refuses.
    placed = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(experiment: Experiment, shape: tuple[int, ...]) -> None:
    parts = shape[0] * shape[1]
    if experiment.batch % (experiment.accumulate * parts):
        rows = experiment.batch // experiment.accumulate
        fits = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UserError(
            f"{rows} rows of a batch at a time (batch {experiment.batch}, accumulate {experiment.accumulate}) cannot be split "
            f"over {parts} devices (mesh: {_text(shape)}): choose a multiple of {experiment.accumulate * parts} as the batch, "
            f"or replica x fsdp out of {fits}, with the other devices in --mesh.tensor or --mesh.sequence"
        )


def parts_of(mesh: Mesh | None) -> int:
    """In how many parts a batch is split."""
    return 1 if mesh is None else mesh.shape["replica"] * mesh.shape["fsdp"]


def host_rows(mesh: Mesh | None, batch: int) -> list[int]:
    """Which rows of a batch this process feeds: those of its devices, wherever they stand in the mesh."""
    if mesh is None:
        return list(range(batch))
    indices = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch,)).values()
    return sorted({row for (part,) in indices for row in range(*part.indices(batch))})


def feed(mesh: Mesh | None, batch: dict[str, np.ndarray]) -> Tree:
    """A batch of this host's rows -> the whole batch on the mesh."""
    if mesh is None:
        return batch
    sharding, parts = NamedSharding(mesh, BATCH), parts_of(mesh)
    share = len(host_rows(mesh, parts))

    def place(x: np.ndarray) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (len(x) // share * parts, *x.shape[1:]))

    return jax.tree.map(place, batch)


def placed(mesh: Mesh | None, axes: Tree, tree: Tree) -> Tree:
    """Arrays with these logical axes in the pieces that the table says. Raises UserError where a size does not divide."""
    return tree if mesh is None else jax.device_put(tree, named(specs(axes, tree, mesh), mesh))


def on_all(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays of the host, whole on every device."""
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, P()))


def under(mesh: Mesh | None, function: Callable) -> Callable:
    """A jitted function that is traced and run on the mesh.

    CPU devices are waited for: programs that run side by side there can deadlock in each other's collectives.
    """
    if mesh is None:
        return function
    waits = mesh.devices.flat[0].platform == "cpu"

    def call(*arguments):
        with jax.set_mesh(mesh):
            done = function(*arguments)
        return jax.block_until_ready(done) if waits else done

    return call


def on_host(tree: Tree) -> Tree:
    """Whole copies in the memory of the host, one array at a time; every process of a mesh must call it. Of stacked layers a
    device gathers GATHERED bytes at a time, for it may not have room for all."""
    return jax.tree.map(_whole, tree)


def _whole(x: jax.Array | np.ndarray) -> np.ndarray:
    if not isinstance(x, jax.Array):
        return x
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.array(x)  # np.asarray may be a view of memory that the next step takes over
    size = len(x) if x.ndim < 3 else min(len(x), max(1, len(x) * GATHERED // x.nbytes))
    gather, found = _gather(NamedSharding(x.sharding.mesh, P()), size), np.empty(x.shape, x.dtype)
    for start in range(0, len(x), size):
        start = min(start, len(x) - size)
        found[start : start + size] = gather(x, start)
    return found


@functools.cache
def _gather(place: NamedSharding, size: int) -> Callable[[jax.Array, int], jax.Array]:
    return jax.jit(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, size), out_shardings=place)


def describe_mesh(mesh: Mesh) -> str:
    return f"{mesh.size} devices ({mesh.devices.flat[0].device_kind}), mesh {_text(mesh.shape.values())}"


def table(mesh: Mesh, parts: dict[str, Tree]) -> str:
    """Processes, devices, mesh, and the bytes of each part of the state on one device."""
    lines = [
        f"  {jax.process_count()} processes, {describe_mesh(mesh)}",
        *(f"  {name:<12}{bytes_each(tree) / 2**20:>12.2f} MiB on each device" for name, tree in parts.items()),
    ]
    return "\n".join(lines)
