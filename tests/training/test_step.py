"""One step: accumulation, averaged weights, the finite flag."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from regression import Regression, batch_at, experiment

from mmgen.training.state import initial_state
from mmgen.training.step import average, make_step


def run_steps(count: int, task=None, **fields):
    task, chosen = task or Regression(), experiment(**fields)
    optimizer = task.optimizer(chosen)
    state = initial_state(task, optimizer, chosen.seed, chosen.ema > 0)
    step, history = make_step(chosen, task, optimizer), []
    for index in range(count):
        state, metrics = step(state, task.frozen, batch_at(index))
        history.append(metrics)
    return state, history


def test_accumulation_equals_the_large_batch():
    whole, whole_metrics = run_steps(3, Regression(noise=0.0))
    parts, parts_metrics = run_steps(3, Regression(noise=0.0), accumulate=4)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole_metrics[2]["loss"], parts_metrics[2]["loss"], rtol=1e-5)
    np.testing.assert_allclose(whole_metrics[2]["grad_norm"], parts_metrics[2]["grad_norm"], rtol=1e-5)
    assert int(whole.extra["seen"]) == int(parts.extra["seen"]) == 48


def test_microbatches_draw_different_noise():
    task = Regression(noise=1.0)
    _, whole = run_steps(1, task)
    _, parts = run_steps(1, task, accumulate=2)
    assert not np.isclose(whole[0]["loss"], parts[0]["loss"], rtol=1e-4)


def test_average_warms_up():
    ema, decays = jnp.zeros(()), []
    for step in (0, 1, 8, 100_000):
        decays.append(float(1 - average(ema, jnp.ones(()), jnp.asarray(step), 0.999)))
    np.testing.assert_allclose(decays, [0.1, 2 / 11, 0.5, 0.999], rtol=1e-5)


def test_averaged_weights_follow_the_parameters():
    state, _ = run_steps(3, ema=0.9)
    expected = initial_state(Regression(), Regression().optimizer(experiment()), 0, False).params["dense"]["kernel"]
    for done in (1, 2, 3):
        decay = min(0.9, done / (9 + done))
        expected = decay * expected + (1 - decay) * run_steps(done)[0].params["dense"]["kernel"]
    np.testing.assert_allclose(state.ema["dense"]["kernel"], expected, rtol=1e-5)
    assert run_steps(1)[0].ema == {}


def test_finite_flag():
    _, metrics = run_steps(3, Regression(broken_at=1))
    assert [bool(m["finite"]) for m in metrics] == [True, False, True]


def test_finite_flag_sees_an_update_that_overflows():
    task = Regression()
    broken = experiment()
    from optax import scale
    state = initial_state(task, scale(1.0), 0, False)
    state, metrics = make_step(broken, task, scale(1e38))(state, task.frozen, jax.tree.map(lambda x: x * 1e3, batch_at(0)))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]) and not metrics["finite"]


def test_grad_norm_is_that_before_clipping():
    _, metrics = run_steps(1, Regression(noise=0.0))
    assert float(metrics[0]["grad_norm"]) > 1.5  # clip is 1.0


def test_state_is_donated():
    task, chosen = Regression(), experiment(ema=0.9)
    optimizer = task.optimizer(chosen)
    state = initial_state(task, optimizer, 0, True)
    new, _ = make_step(chosen, task, optimizer)(state, task.frozen, batch_at(0))
    assert state.params["dense"]["kernel"].is_deleted() and state.ema["dense"]["kernel"].is_deleted()
    with pytest.raises(RuntimeError):
        np.asarray(state.params["dense"]["kernel"])
    assert int(new.step) == 1
