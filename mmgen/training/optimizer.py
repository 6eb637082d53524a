"""AdamW (arXiv 1711.05101) and learning rate schedules, from their configurations to optax."""

import operator
from dataclasses import replace

import jax
import optax
from mmgen_tokenizers.errors import UserError

from mmgen.config import Optimizer, Schedule
from mmgen.training.state import Tree


def learning_rate(schedule: Schedule, steps: int) -> optax.Schedule:
    """The learning rate as a pure function of the step (0-based) of a run of `steps` steps.

    Step s of the warm-up has the rate peak x (s + 1) / warmup, so that no step is wasted at a rate of 0.
    """
    begun = schedule.warmup + schedule.hold
    if begun >= steps and schedule.kind != "constant":
        raise UserError(
            f"schedule: a warm-up of {schedule.warmup} steps and {schedule.hold} at the peak leave nothing of a run of {steps} "
            "steps: train for more, or set --optimizer.schedule.warmup and hold to less"
        )
    if not schedule.peak > 0:
        raise UserError(f"--optimizer.schedule.peak {schedule.peak} must be a positive learning rate")
    after = _after(schedule, begun, steps)
    if not begun:
        return after
    warmup = max(schedule.warmup, 1)
    ramp = optax.linear_schedule(schedule.peak / warmup, schedule.peak, max(warmup - 1, 1))  # stays at the peak
    return optax.join_schedules([ramp, after], [begun])


def _after(schedule: Schedule, begun: int, steps: int) -> optax.Schedule:
    """What follows step `begun`, counted from there."""
    rest = steps - begun
    if schedule.kind == "cosine":
        return optax.cosine_decay_schedule(schedule.peak, rest, alpha=schedule.end)
    if schedule.kind == "linear":
        return optax.linear_schedule(schedule.peak, schedule.peak * schedule.end, rest)
    if schedule.kind == "steps":
        if not all(0 < b < 1 for b in schedule.boundaries):
            raise UserError(f"schedule: boundaries are fractions of the run between 0 and 1, not {schedule.boundaries}")
        drops = {round(b * steps) - begun: schedule.factor for b in schedule.boundaries}
        return optax.piecewise_constant_schedule(schedule.peak, drops)
    return optax.constant_schedule(schedule.peak)


def adamw(config: Optimizer, steps: int, decayed: Tree) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; `decayed` is a tree of bools like the parameters."""
    rate = learning_rate(config.schedule, steps)
    update = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed)
    return update if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), update)


def per_network(transforms: dict[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """An optimizer a network, by the top-level names of the parameters: each clips by the norm of its own gradient."""

    def init(params):
        return {name: transform.init(params[name]) for name, transform in transforms.items()}

    def update(grads, state, params=None):
        done = {name: transform.update(grads[name], state[name], params[name]) for name, transform in transforms.items()}
        return {name: updates for name, (updates, _) in done.items()}, {name: new for name, (_, new) in done.items()}

    return optax.GradientTransformation(init, update)


def only(update: optax.GradientTransformation, trained: Tree) -> optax.GradientTransformation:
    """`update` of what is `trained` (a tree of bools); the rest does not change, and no state is kept of it."""
    rest = jax.tree.map(operator.not_, trained)
    return optax.chain(optax.masked(update, trained), optax.masked(optax.set_to_zero(), rest))


def with_peak(config: Optimizer, peak: float) -> Optimizer:
    """The same optimizer with another highest learning rate."""
    return replace(config, schedule=replace(config.schedule, peak=peak))


def has_matrix_axes(tree: Tree) -> Tree:
    """Decay mask by the number of axes: True for matrices, convolutions and tables, False for biases and norm scales."""
    return jax.tree.map(lambda x: x.ndim >= 2, tree)
