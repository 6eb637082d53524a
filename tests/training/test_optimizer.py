"""Learning rates by step, the decay mask, an optimizer a network."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.config import Optimizer, Schedule
from mmgen.training.optimizer import adamw, has_matrix_axes, learning_rate, per_network, with_peak


def rates(schedule: Schedule, steps: int, at: list[int]) -> list[float]:
    rate = learning_rate(schedule, steps)
    return [float(rate(jnp.asarray(step))) for step in at]


def test_constant():
    np.testing.assert_allclose(rates(Schedule("constant", 2.0), 10, [0, 5, 9, 100]), [2.0] * 4)


def test_warmup_wastes_no_step():
    schedule = Schedule("constant", peak=1.0, warmup=4)
    np.testing.assert_allclose(rates(schedule, 10, [0, 1, 2, 3, 4, 9]), [0.25, 0.5, 0.75, 1, 1, 1])
    np.testing.assert_allclose(rates(Schedule("constant", peak=1.0, warmup=1), 10, [0, 1]), [1, 1])


def test_cosine():
    schedule = Schedule("cosine", peak=1.0, warmup=10, end=0.1)
    expected = [1.0, 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2, 0.55, 0.1]
    np.testing.assert_allclose(rates(schedule, 110, [10, 35, 60, 110]), expected, rtol=1e-5)


def test_linear():
    schedule = Schedule("linear", peak=1.0, warmup=10, end=0.5)
    np.testing.assert_allclose(rates(schedule, 110, [10, 60, 110]), [1.0, 0.75, 0.5], rtol=1e-6)


def test_the_peak_is_held():
    schedule = Schedule("linear", peak=1.0, warmup=10, hold=40, end=0.5)
    np.testing.assert_allclose(rates(schedule, 150, [4, 9, 10, 49, 50, 100, 150]), [0.5, 1, 1, 1, 1, 0.75, 0.5], rtol=1e-6)
    np.testing.assert_allclose(rates(Schedule("linear", peak=1.0, hold=40), 140, [0, 39, 90]), [1, 1, 0.5], rtol=1e-6)
    schedule = Schedule("steps", peak=1.0, hold=40, boundaries=(0.5,), factor=0.1)
    np.testing.assert_allclose(rates(schedule, 100, [49, 50]), [1, 0.1], rtol=1e-5)


def test_steps():
    schedule = Schedule("steps", peak=1.0, warmup=2, boundaries=(0.5, 0.75), factor=0.1)
    np.testing.assert_allclose(rates(schedule, 100, [2, 49, 51, 74, 76, 99]), [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_steps_drop_at_the_named_step_with_and_without_warmup():
    for warmup in (0, 10):
        schedule = Schedule("steps", peak=1.0, warmup=warmup, boundaries=(0.5,), factor=0.1)
        np.testing.assert_allclose(rates(schedule, 100, [49, 50]), [1.0, 0.1], rtol=1e-5)


def test_wrong_schedules_are_refused():
    with pytest.raises(UserError, match="warm-up of 20 steps.*--optimizer.schedule.warmup"):
        learning_rate(Schedule("cosine", warmup=20), 20)
    with pytest.raises(UserError, match="of 5 steps and 15 at the peak leave nothing of a run of 20"):
        learning_rate(Schedule("cosine", warmup=5, hold=15), 20)
    with pytest.raises(UserError, match="peak -0.1 must be a positive"):
        learning_rate(Schedule("constant", peak=-0.1), 20)
    with pytest.raises(UserError, match="boundaries"):
        learning_rate(Schedule("steps", boundaries=(100.0,)), 200)


def test_decay_only_where_the_mask_says():
    config = Optimizer(Schedule("constant", peak=0.1), weight_decay=0.5, clip=None)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    optimizer = adamw(config, 10, has_matrix_axes(params))
    updates, _ = optimizer.update({"kernel": jnp.zeros((2, 2)), "scale": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["scale"], 0.0)


def test_each_network_clips_by_its_own_norm():
    networks = {name: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)) for name in ("model", "discriminator")}
    params = {"model": {"w": jnp.zeros(1)}, "discriminator": {"w": jnp.zeros(1)}}
    optimizer = per_network(networks)
    grads = {"model": {"w": jnp.asarray([0.5])}, "discriminator": {"w": jnp.asarray([100.0])}}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose([updates["model"]["w"][0], updates["discriminator"]["w"][0]], [-0.5, -1.0], rtol=1e-6)


def test_with_peak():
    config = with_peak(Optimizer(Schedule("linear", peak=1.0, end=0.5)), 0.2)
    assert config.schedule == Schedule("linear", peak=0.2, end=0.5) and config.clip == 1.0
