"""One training step, top to bottom: gradient over microbatches -> clip, AdamW -> averaged weights -> metrics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from mmgen.config import Experiment
from mmgen.parallel.rules import constrain, one_cpu
from mmgen.training.optimizer import learning_rate
from mmgen.training.state import TrainState, Tree


def make_step(
    experiment: Experiment, task, optimizer: optax.GradientTransformation, shardings: TrainState | None = None
) -> Callable:
    """Returns the jitted `step(state, frozen, batch) -> (state, metrics)`; the given state is donated.

    `batch` is a dict of arrays with `experiment.batch` rows, `frozen` holds networks that are used but not trained.
    Metrics are scalars on the device: the task's own, "grad_norm" (before clipping), "learning_rate" and "finite".
    `shardings` of the state, on a mesh: the step leaves it as it lies.
    """

    def step(state: TrainState, frozen: Tree, batch: Tree) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(experiment.seed, impl="threefry2x32"), state.step)
        key_gradient, key_update = jax.random.split(key)
        grads, extra, metrics = gradients(task, state, frozen, batch, key_gradient, experiment.accumulate)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, extra = task.after_update(params, extra, key_update)
        ema = average(state.ema, task.weights(params), state.step, experiment.ema) if experiment.ema else {}

        grad_norm = optax.tree.norm(grads)
        # An update can overflow where the gradient did not: with it the flag vouches for the new parameters.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
        metrics |= {"grad_norm": grad_norm, "learning_rate": rate(state.step), "finite": finite}
        return TrainState(state.step + 1, params, opt_state, ema, extra), metrics

    rate = learning_rate(experiment.optimizer.schedule, experiment.steps)
    return jax.jit(step, donate_argnums=0, out_shardings=None if shardings is None else (shardings, None))


def gradients(task, state: TrainState, frozen: Tree, batch: Tree, key: jax.Array, parts: int) -> tuple[Tree, Tree, Tree]:
    """Gradients, extra and metrics of a batch that is computed in `parts` microbatches, one after the other."""
    if parts == 1:
        return task.gradients(state.params, state.extra, frozen, batch, key, state.step)

    # Part i takes the rows i, i + parts, ...: each device keeps the rows that it has.
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    split = jax.tree.map(lambda x: constrain(x, None, "batch", *[None] * (x.ndim - 2)), split)

    def one_part(carry, part):
        total, extra = carry
        index, rows = part
        grads, extra, metrics = task.gradients(state.params, extra, frozen, rows, jax.random.fold_in(key, index), state.step)
        return (jax.tree.map(jnp.add, total, grads), extra), metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    # On a CPU, XLA runs the convolutions of a loop on one thread, eight times slower: there the loop is written out.
    unroll = one_cpu()
    (total, extra), metrics = jax.lax.scan(one_part, (zeros, state.extra), (jnp.arange(parts), split), unroll=unroll)
    return jax.tree.map(lambda g: g / parts, total), extra, jax.tree.map(lambda m: m.mean(0), metrics)


def average(ema: Tree, weights: Tree, step: jax.Array, decay: float) -> Tree:
    """Exponential moving average whose decay warms up as min(decay, (1 + t) / (10 + t)): early weights are soon forgotten.

    Written so that weights which do not change are their own average, bit for bit.
    """
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, w: e - (1 - decay) * (e - w), ema, weights)
