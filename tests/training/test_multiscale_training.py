"""Training a tokenizer of several scales: what is counted of each, and a start from a tokenizer of one scale."""

import dataclasses

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import optax
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import multiscale, vqgan
from models import tokenizer_experiment

import mmgen
from mmgen.training.state import abstract_state, initial_state
from mmgen.training.tokenizer_task import TokenizerTraining

NET = mt.CNN(4, (1,), 1, 1, attention_levels=(), middle_blocks=0, middle_attention=False, latent=4, groups=2, stem=8)
SINGLE = mt.VQGAN(NET, mt.VQ(size=32, dim=4, normalize=False), image_size=32)
MODEL = mt.MultiScale(NET, mt.MultiScaleVQ(size=32, dim=4, scales=(1, 2, 4), phis=2), image_size=32, quant_conv=1)


def experiment(model=MODEL, start_from=None, **fields) -> mmgen.Experiment:
    chosen = tokenizer_experiment(**fields)
    return dataclasses.replace(chosen, task=dataclasses.replace(chosen.task, model=model, start_from=start_from))


@pytest.fixture(scope="module")
def started():
    """The task, its first parameters and extra, a batch, and the gradients of one step as a compiled function of the first."""
    task = TokenizerTraining(experiment(revive_after=1))
    params, extra = jax.jit(task.init)(jax.random.key(0))
    batch, compiled = task.prepare(next(task.training_batches(0))), jax.jit(task.gradients)
    return task, params, extra, batch, lambda params: compiled(params, extra, {}, batch, jax.random.key(1), 0)


def test_usage_is_counted_for_each_scale(started):
    _, params, _, batch, step = started
    params = jax.tree.map(lambda p: p, params)  # dicts of its own
    params["model"]["quantizer"]["codebook"] *= 20  # else all latents are nearest to the same code
    _, extra, metrics = step(params)
    ids = mt.Tokenizer(MODEL, params["model"]).encode(np.asarray(batch["image"]))
    for name, part in (("/1x1", ids[:, :1]), ("/2x2", ids[:, 1:5]), ("/4x4", ids[:, 5:]), ("", ids)):
        np.testing.assert_allclose(metrics[f"usage{name}"], len(np.unique(part)) / 32, rtol=1e-6)
        p = np.unique(part, return_counts=True)[1] / part.size
        np.testing.assert_allclose(metrics[f"perplexity{name}"], np.exp(-(p * np.log(p)).sum()), rtol=1e-4)
    assert len(np.unique(ids)) > 3


def test_dead_codes_restart_at_what_scales_leave_over(started):
    task, params, _, batch, step = started
    _, extra, _ = step(params)
    new, _ = jax.jit(task.after_update)(params, extra, jax.random.key(2))
    moved = np.abs(new["model"]["quantizer"]["codebook"] - params["model"]["quantizer"]["codebook"]).max(1) > 0
    np.testing.assert_array_equal(moved, np.asarray(extra["usage"]["idle"]) >= 1)
    images = np.asarray(batch["image"], np.float32) / 127.5 - 1
    looked_up = jax.jit(lambda p: multiscale.forward(MODEL, p, images).latents)(params["model"]).reshape(-1, 4)
    distance = np.linalg.norm(new["model"]["quantizer"]["codebook"][moved][:, None] - looked_up, axis=-1).min(1)
    assert moved.any() and (distance < 0.1 * np.linalg.norm(looked_up, axis=-1).max()).all()
    assert set(new["model"]["quantizer"]) == {"codebook", "phi"}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "tok"
    tok = mt.Tokenizer(SINGLE, vqgan.init(SINGLE, jax.random.key(7)))
    tok.save(folder)
    return folder, tok


def test_training_starts_from_a_tokenizer_of_one_scale(single):
    folder, tok = single
    chosen = experiment(start_from=str(folder), ema=0.5)
    task = TokenizerTraining(chosen)
    state = initial_state(task, task.optimizer(chosen), 0, averaged=True)
    for weights in (state.params["model"], state.ema):
        phi = weights["quantizer"]["phi"]
        jax.tree.map(np.testing.assert_array_equal, {**weights, "quantizer": {"codebook": weights["quantizer"]["codebook"]}},
                     tok.params)  # fmt: skip
    assert set(phi) == {"0", "1"}
    like = abstract_state(task, task.optimizer(chosen), 0, True)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (like, state)]
    assert shapes[0] == shapes[1]
    fresh = dataclasses.replace(chosen, task=dataclasses.replace(chosen.task, start_from=None))
    other = initial_state(TokenizerTraining(fresh), task.optimizer(chosen), 0, averaged=False).params["model"]
    assert np.abs(other["encoder"]["conv_in"]["kernel"] - tok.params["encoder"]["conv_in"]["kernel"]).max() > 1e-3


def test_a_run_started_so_resumes_without_the_folder(single, tmp_path):
    """And the first step's codebook is near to the one that it started from."""
    folder, tok = single
    tok.save(tmp_path / "start")
    chosen = experiment(start_from=str(tmp_path / "start"), revive_after=None, steps=1)
    mmgen.train(chosen, tmp_path / "run")
    (tmp_path / "start").rename(tmp_path / "gone")
    once = mt.load(tmp_path / "run")
    assert np.abs(once.params["quantizer"]["codebook"] - tok.params["quantizer"]["codebook"]).max() < 0.01
    result = mmgen.train(dataclasses.replace(chosen, steps=2), tmp_path / "run")
    assert result.step == 2 and {"usage/1x1", "perplexity/4x4"} <= set(result.metrics)
    assert mt.load(tmp_path / "run").layout.prefixes == (1, 5, 21)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"quant_conv": 3}, r"quant_conv.kernel is \[4, 4\] there, task.model asks for \[3, 3, 4, 4\]"),
        ({"range": "unit"}, "range is signed there, not unit"),
        ({"network": dataclasses.replace(NET, eps=1e-5)}, "network is"),
        ({"quantizer": mt.MultiScaleVQ(64, 4, False, scales=(1, 4))}, "quantizer.codebook"),
        ({"quantizer": mt.MultiScaleVQ(32, 4, True, scales=(1, 4), residual=False, phis=0)}, "quantizer.normalize is False"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(single, change, words):
    task = TokenizerTraining(experiment(dataclasses.replace(MODEL, **change), str(single[0])))
    with pytest.raises(UserError, match=words):
        task.inherited()


def test_a_start_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="task.start_from"):
        TokenizerTraining(experiment(start_from=str(tmp_path / "none"))).inherited()


def test_phi_learns_and_does_not_decay(started):
    task, params, *_, step = started
    gradient, _, _ = step(params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient["model"]["quantizer"]["phi"]))
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = task.optimizer(experiment())
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)["model"]
    np.testing.assert_array_equal(moved["quantizer"]["phi"]["0"]["kernel"], params["model"]["quantizer"]["phi"]["0"]["kernel"])
    assert np.abs(moved["encoder"]["conv_in"]["kernel"] - params["model"]["encoder"]["conv_in"]["kernel"]).max() > 0
