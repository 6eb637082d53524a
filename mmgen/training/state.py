"""The state of a run: everything that a step reads and writes, and nothing else."""

import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from mmgen.parallel import rules
from mmgen.parallel.mesh import under

Tree = Any  # nested dicts of arrays


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree of plain dicts (dispatching a step costs less than a millisecond with them)."""

    step: Int[Array, ""]  # updates done so far = index of the next batch
    params: Tree  # float32
    opt_state: Tree
    ema: Tree  # averaged weights, {} without averaging
    extra: Tree  # what a task counts beside the gradient: codebook usage


def named_key(seed: int, name: str) -> jax.Array:
    """A random key for one purpose; independent of the step keys fold_in(key(seed), step)."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(name.encode()))


def initial_state(
    task, optimizer: optax.GradientTransformation, seed: int, averaged: bool, mesh: Mesh | None = None
) -> TrainState:
    """The state before the first step, made by one program: never twice in memory, and on a mesh never whole on a device.

    What it inherits lies where it will stay from the beginning, and becomes a part of it.
    """
    like = abstract_state(task, optimizer, seed, averaged, mesh)
    pieces = None if mesh is None else shardings(like)
    make = jax.jit(lambda inherited: _make(task, optimizer, seed, averaged, inherited), donate_argnums=0, out_shardings=pieces)
    return under(mesh, make)(_placed(task.inherited(), like.params))


def _placed(inherited: Tree, like: Tree) -> Tree:
    """Arrays of the host where the parameters will lie; every process has all of them."""
    if not isinstance(inherited, dict):
        whole = np.asarray(inherited, like.dtype)
        return jax.make_array_from_callback(like.shape, like.sharding, lambda piece: whole[piece])
    return {name: _placed(part, like[name]) for name, part in inherited.items()}


def _make(task, optimizer: optax.GradientTransformation, seed: int, averaged: bool, inherited: Tree) -> TrainState:
    params, extra = task.init(named_key(seed, "init"))
    params = _replaced(params, inherited)
    ema = jax.tree.map(jnp.copy, task.weights(params)) if averaged else {}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, extra)


def _replaced(params: Tree, inherited: Tree) -> Tree:
    """`params` with the arrays of `inherited` in the places that it has."""
    if not isinstance(inherited, dict):
        return inherited
    return {**params, **{name: _replaced(params[name], part) for name, part in inherited.items()}}


def abstract_state(
    task, optimizer: optax.GradientTransformation, seed: int, averaged: bool, mesh: Mesh | None = None
) -> TrainState:
    """Shapes, types and shardings of `initial_state`, nothing allocated."""
    state = jax.eval_shape(lambda: _make(task, optimizer, seed, averaged, {}))
    if mesh is None:
        places = jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), state)
    else:
        places = rules.named(_specs(task, state, mesh), mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)


def shardings(state: TrainState) -> TrainState:
    """Where the arrays of a state (or of an abstract one) lie."""
    return jax.tree.map(lambda x: x.sharding, state)


def _specs(task, state: TrainState, mesh: Mesh) -> TrainState:
    """Parameters go by their axes, optimizer state and averaged weights by their parameters'; the rest is whole everywhere."""
    params = rules.specs(task.axes(state.params, mesh), state.params, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: isinstance(x, P))
    known = {_names(path): (spec, x.shape) for (path, spec), x in zip(leaves, jax.tree.leaves(state.params), strict=True)}

    def like_its_parameter(path, x) -> P:
        spec, shape = known.get(_names(path), (P(), None))
        return spec if x.shape == shape else P()

    whole = jax.tree.map(lambda _: P(), state)
    opt_state = jax.tree_util.tree_map_with_path(like_its_parameter, state.opt_state)
    return TrainState(whole.step, params, opt_state, task.weights(params) if state.ema else {}, whole.extra)


def _names(path) -> tuple[str, ...]:
    """The keys of dicts on a path: optax wraps trees like the parameters in tuples, and one a network in a dict of our own."""
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
