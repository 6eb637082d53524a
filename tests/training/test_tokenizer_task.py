"""Training a tokenizer: discriminator, codebook, files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.quantizers import vq
from models import VQGAN, tokenizer_experiment

import mmgen
from mmgen.config import Data, Shapes
from mmgen.data import open_source
from mmgen.training import loop, tokenizer_task
from mmgen.training.checkpoint import Checkpoints
from mmgen.training.metrics import read_metrics
from mmgen.training.state import TrainState
from mmgen.training.tokenizer_task import TokenizerTraining, _decayed

PATCHES = mt.PatchGAN(channels=4, layers=1, groups=2)
ADVERSARIAL = mt.TokenizerLosses(l1=1.0, adversarial=0.5, adversarial_start=10, adaptive=True, discriminator=PATCHES)


def prepared(experiment):
    task = TokenizerTraining(experiment)
    params, extra = jax.jit(task.init)(jax.random.key(0))
    batch = task.prepare(next(task.training_batches(0)))
    assert {name: (x.shape, x.dtype) for name, x in task.inputs().items()} == {n: (x.shape, x.dtype) for n, x in batch.items()}
    return task, params, extra, batch


@pytest.fixture(scope="module")
def adversarial():
    task, params, extra, batch = prepared(tokenizer_experiment(ADVERSARIAL))
    gradients = jax.jit(lambda params, step: task.gradients(params, extra, {}, batch, jax.random.key(1), step))
    return params, gradients


def norms(grads) -> dict[str, float]:
    return {name: float(sum(jnp.abs(g).sum() for g in jax.tree.leaves(tree))) for name, tree in grads.items()}


def test_discriminator_waits_for_its_start(adversarial):
    params, gradients = adversarial
    before, _, metrics_before = gradients(params, 9)
    after, _, metrics_after = gradients(params, 10)
    assert norms(before)["discriminator"] == 0.0 and norms(after)["discriminator"] > 0.0
    assert metrics_before["adversarial_weight"] == 0.0 and metrics_after["adversarial_weight"] > 0.0
    kernels = [g["model"]["decoder"]["conv_out"]["kernel"] for g in (before, after)]
    assert not np.allclose(*kernels)
    assert metrics_after["discriminator"] > 0.5  # both hinges, near 1 each at the start


def test_discriminator_gradient_does_not_reach_the_tokenizer(adversarial):
    params, gradients = adversarial
    other = {**params, "discriminator": jax.tree.map(lambda p: p * 1.5, params["discriminator"])}
    for a, b in zip(*(jax.tree.leaves(gradients(p, 9)[0]["model"]) for p in (params, other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dead_codes_restart_at_latents_of_the_batch():
    task, params, extra, batch = prepared(tokenizer_experiment(revive_after=1))
    _, extra, metrics = jax.jit(task.gradients)(params, extra, {}, batch, jax.random.key(1), 0)
    idle = np.asarray(extra["usage"]["idle"])
    assert 0 < metrics["usage"] < 1 and (idle > 0).any()
    new, extra = jax.jit(task.after_update)(params, extra, jax.random.key(2))
    moved = np.abs(new["model"]["quantizer"]["codebook"] - params["model"]["quantizer"]["codebook"]).max(1) > 0
    np.testing.assert_array_equal(moved, idle >= 1)
    unit = vq.table(VQGAN.quantizer, new["model"]["quantizer"])
    latents = np.asarray(vq.table(VQGAN.quantizer, {"codebook": extra["candidates"]}))
    assert (np.asarray(unit)[moved] @ latents.T).max(1).min() > 0.95
    assert np.asarray(extra["usage"]["idle"]).max() == 0


def test_without_revival_codes_stay():
    task, params, extra, batch = prepared(tokenizer_experiment(revive_after=None))
    assert set(extra) == {"usage"}
    assert task.after_update(params, extra, jax.random.key(0))[0] is params


def test_decay_spares_codebook_and_biases():
    _, params, _, _ = prepared(tokenizer_experiment())
    decayed = _decayed(params["model"])
    assert not decayed["quantizer"]["codebook"]
    assert decayed["decoder"]["conv_out"]["kernel"] and not decayed["decoder"]["conv_out"]["bias"]


def test_a_run_learns_resumes_bitwise_and_exports(tmp_path, monkeypatch):
    losses = mt.TokenizerLosses(l1=1.0, adversarial=0.1, adversarial_start=2, discriminator=PATCHES)

    def run(name, steps):
        held_out = Data(Shapes("test", 4), size=32)
        chosen = tokenizer_experiment(losses, steps=steps, accumulate=2, ema=0.9, validation=held_out)
        return mmgen.train(chosen, tmp_path / name)

    run("stopped", 4)
    run("stopped", 8)
    result = run("straight", 8)
    stopped, straight = (read_metrics(tmp_path / name) for name in ("stopped", "straight"))
    shown = ("loss", "perplexity", "discriminator")
    values = [[tuple(entry[name] for name in shown) for entry in run if "loss" in entry] for run in (stopped, straight)]
    assert values[0] == values[1] and len(values[0]) == 8
    assert result.metrics["l1"] < 0.9 * straight[0]["l1"]
    assert result.metrics["validation/psnr"] > 5.0 and result.metrics["perplexity"] > 1.0
    assert [path.name for path in sorted((tmp_path / "stopped/previews").iterdir())] == ["step-0000004.png", "step-0000008.png"]
    monkeypatch.setattr(tokenizer_task, "opened", None)  # a checkpoint is exported without the data
    assert loop.export(tmp_path / "straight", tmp_path / "best", "best") == 8
    assert (tmp_path / "best/step.json").read_text() == (tmp_path / "straight/export/step.json").read_text()
    np.testing.assert_array_equal(*(mt.load(tmp_path / name).params["quantizer"]["codebook"] for name in ("best", "straight")))
    with pytest.raises(UserError, match=r"no checkpoint 7, it has those of step \[8\]"):
        loop.export(tmp_path / "straight", tmp_path / "seven", 7)
    source = open_source(Data(Shapes("test", 4), size=32))
    tokenizer = mt.load(tmp_path / "straight")
    assert tokenizer.decode(tokenizer.encode(np.stack([source[i]["image"] for i in range(4)]))).shape == (4, 32, 32, 3)
    assert tokenizer.layout.sites == 4


def test_without_validation_no_checkpoint_is_the_best(tmp_path):
    loop.claim(tmp_path, tokenizer_experiment())
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(5), {"kernel": jnp.zeros(2)}, {}, {}, {}), {}, None)
    with pytest.raises(UserError, match=r"no checkpoint 'best' \(none of them was validated\), it has those of step \[5\]"):
        loop.export(tmp_path, tmp_path / "best", "best")


def test_another_size_of_pictures_is_refused(tmp_path):
    large = Data(Shapes(count=4), size=64)
    for name in ("data", "validation"):
        with pytest.raises(UserError, match=f"{name}.size 64 is not task.model.image_size 32"):
            mmgen.train(replace(tokenizer_experiment(), **{name: large}), tmp_path)
