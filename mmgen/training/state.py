"""The state of a run: everything that a step reads and writes, and nothing else."""

import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

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


def initial_state(task, optimizer: optax.GradientTransformation, seed: int, averaged: bool) -> TrainState:
    """The state before the first step, made on the device by one program (never twice in memory)."""
    return jax.jit(lambda start: _make(task, optimizer, seed, averaged, start))(task.start())


def _make(task, optimizer: optax.GradientTransformation, seed: int, averaged: bool, start: Tree) -> TrainState:
    params, extra = task.init(named_key(seed, "init"))
    params = _replaced(params, start)
    ema = jax.tree.map(jnp.copy, task.weights(params)) if averaged else {}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema, extra)


def _replaced(params: Tree, start: Tree) -> Tree:
    """`params` with the arrays of `start` in the places that it has."""
    if not isinstance(start, dict):
        return start
    return {**params, **{name: _replaced(params[name], part) for name, part in start.items()}}


def abstract_state(task, optimizer: optax.GradientTransformation, seed: int, averaged: bool) -> TrainState:
    """Shapes and types of `initial_state`, nothing allocated."""
    return jax.eval_shape(lambda: _make(task, optimizer, seed, averaged, {}))
