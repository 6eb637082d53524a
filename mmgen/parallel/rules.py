"""Logical axes -> mesh axes: the one table, and what places arrays by it. Model code names axes; mesh sizes do the rest.

Everything here is a no-op, or one device's own program, where no mesh is set (mesh.py).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from mmgen_tokenizers.errors import UserError

Tree = Any
Names = tuple[str | None, ...]

# Logical axis: over which mesh axes it is split in parameters (optimizer state and averaged weights go with them), and in
# activations. FSDP (arXiv 2304.11277) keeps parameters in pieces and gathers each when it is used; tensor parallelism
# (Megatron-LM, arXiv 1909.08053) splits heads and MLP units; sequence, the slots of a sample.
RULES: dict[str, tuple] = {
    "batch": (None, ("replica", "fsdp")),
    "slots": (None, "sequence"),
    "sites": (None, "sequence"),
    "embed": ("fsdp", None),
    "heads": ("tensor", "tensor"),
    "kv_heads": ("tensor", "tensor"),
    "mlp": ("tensor", "tensor"),
    "vocab": ("tensor", "tensor"),
    "widest": ("fsdp", None),  # of arrays whose axes have no names (`by_shape`)
    "layers": (None, None),
    "head": (None, None),
    "classes": (None, None),
    "frozen": (None, None),
}
BATCH = P(RULES["batch"][1])


def spec(names: Names, activation: bool) -> P:
    """Raises ValueError where two axes of one array would be split over the same mesh axis."""
    axes = tuple(RULES[name][activation] if name else None for name in names)
    used = [axis for entry in axes for axis in _several(entry)]
    if len(set(used)) < len(used):
        raise ValueError(f"axes {names} of one array meet on one mesh axis: {axes}")
    return P(*axes)


def _several(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def current_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh that the program which is being traced will run on; None on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def platform() -> str:
    """What the program which is being traced is for: "cpu", "gpu" or "tpu"."""
    mesh = current_mesh()
    device = mesh and mesh.abstract_device  # a mesh may be of devices that are not there
    return device.platform if device else jax.default_backend()


def one_cpu() -> bool:
    """Whether the program which is being traced is for a CPU alone. XLA's CPU backend wants other forms of some operations;
    on a mesh all platforms get the same, so that fake CPU devices show what a pod does."""
    return jax.default_backend() == "cpu" and current_mesh() is None


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, an activation with these axes, split as the table says. Raises UserError where a size does not divide."""
    mesh = current_mesh()
    if mesh is None:
        return x
    chosen = _without(mesh.manual_axes, spec(names, activation=True))
    _check("", names, x.shape, chosen, mesh)
    return x if chosen == P(*[None] * x.ndim) else jax.lax.with_sharding_constraint(x, chosen)


def _without(axes: Sequence[str], chosen: P) -> P:
    """A spec that says nothing of some mesh axes: in a shard_map over them, or where they do not split what the table says."""
    kept = [tuple(axis for axis in _several(entry) if axis not in axes) for entry in chosen]
    return P(*(entry or None for entry in kept))


def specs(axes: Tree, params: Tree, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Tree:
    """How parameters with these logical axes (a tree of tuples) lie on the mesh. Raises UserError where a size does not
    divide, with the sizes that do."""

    def of(path, names: Names, x) -> P:
        chosen = spec(names, activation=False)
        _check(jax.tree_util.keystr(path, simple=True, separator="."), names, x.shape, chosen, mesh)
        return chosen

    return jax.tree_util.tree_map_with_path(of, axes, params, is_leaf=lambda names: isinstance(names, tuple))


def _check(where: str, names: Names, shape: tuple[int, ...], chosen: P, mesh) -> None:
    for name, size, entry in zip(names, shape, chosen, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in _several(entry))
        if size % parts:
            flags = " x ".join(f"--mesh.{axis} {mesh.shape[axis]}" for axis in _several(entry))
            fits = ", ".join(str(n) for n in range(1, min(size, 1024) + 1) if size % n == 0)
            owner = f" of {where}" if where else ""
            raise UserError(f"{flags} does not divide the {name} axis{owner}, which has size {size}: sizes that do are {fits}")


def by_shape(params: Tree, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> Tree:
    """Names for arrays that have none: of a matrix or a convolution the widest axis that fsdp divides; the rest stays whole."""

    def names(x) -> Names:
        fits = [axis for axis, size in enumerate(x.shape) if size % mesh.shape["fsdp"] == 0]
        widest = max(fits, key=lambda axis: x.shape[axis], default=None) if len(x.shape) > 1 else None
        return tuple("widest" if axis == widest else None for axis in range(len(x.shape)))

    return jax.tree.map(names, params)


def gathered(params: Tree, axes: Tree) -> Tree:
    """Parameters as they are used: whole along fsdp. Their gradient is summed straight into the pieces that they are kept in.

    Matrix products need no such call: XLA gathers what they multiply by. Lookups and convolutions do, for it would rather
    move activations.
    """
    if current_mesh() is None:
        return params

    def one(names: Names, x: jax.Array) -> jax.Array:
        pieces = spec(names, activation=False)
        return _moved(x, P(*(None if entry == "fsdp" else entry for entry in pieces)), pieces)

    return jax.tree.map(one, axes, params, is_leaf=lambda names: isinstance(names, tuple))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(x: jax.Array, there: P, back: P) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, there)


def _moved_back(there: P, back: P, _, gradient: jax.Array) -> tuple[jax.Array]:
    """Where there are replicas too, summed before it is cut: else XLA copies what lookups read to all devices."""
    if current_mesh().shape["replica"] > 1:
        gradient = jax.lax.with_sharding_constraint(gradient, there)
    return (jax.lax.with_sharding_constraint(gradient, back),)


_moved.defvjp(lambda x, there, back: (_moved(x, there, back), None), _moved_back)


def by_rows(function: Callable[[Tree, jax.Array], jax.Array]) -> Callable[[Tree, jax.Array], jax.Array]:
    """`function(whole, rows)`, which treats each row by itself, run by every device on its own rows."""
    if current_mesh() is None:
        return function
    return jax.shard_map(function, in_specs=(P(), BATCH), out_specs=BATCH, check_vma=False)


def named(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """Specs -> shardings."""
    return jax.tree.map(lambda chosen: NamedSharding(mesh, chosen), tree, is_leaf=lambda chosen: isinstance(chosen, P))


def bytes_each(tree: Tree) -> int:
    """Bytes that one device holds of arrays (or of their shapes) that know their sharding."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
