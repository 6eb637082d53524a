"""Tokenizers without a table of codes in the same training as the others; a generator on their ids."""

import dataclasses

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import flatten
from models import EVERY, OPTIMIZER, VQGAN, tokenizer_experiment

import mmgen
from mmgen.config import Data, Experiment, GeneratorTask, Shapes
from mmgen.model.config import BlockConfig, GeneratorConfig, TextCondition
from mmgen.training.metrics import read_metrics
from mmgen.training.tokenizer_task import TokenizerTraining, _decayed

KINDS = {"lfq": mt.LFQ(6, groups=2, temperature=0.1), "bsq": mt.BSQ(6, entropy=0.1), "fsq": mt.FSQ((5, 4, 3))}
DATA = Data(Shapes("train", 64), size=32)


def experiment(kind, **fields):
    chosen = tokenizer_experiment(mt.TokenizerLosses(l1=1.0), **fields)
    model = dataclasses.replace(VQGAN, quantizer=KINDS[kind])
    return dataclasses.replace(chosen, task=dataclasses.replace(chosen.task, model=model))


def test_a_run_learns_and_exports(tmp_path):
    result = mmgen.train(experiment("lfq", steps=40, ema=0.9), tmp_path)
    first = next(entry for entry in read_metrics(tmp_path) if "l1" in entry)
    assert result.metrics["l1"] < 0.7 * first["l1"]
    assert 0 < result.metrics["usage"] <= 1 and result.metrics["perplexity"] > 1
    tokenizer = mt.load(tmp_path)
    pictures = next(TokenizerTraining(experiment("lfq")).training_batches(0))["image"]
    assert tokenizer.config.quantizer == KINDS["lfq"] and tokenizer.decode(tokenizer.encode(pictures)).shape == pictures.shape


@pytest.mark.parametrize("kind", KINDS)
def test_each_gives_gradients_and_figures(kind):
    """tests/tokenizers/test_binary.py and test_fsq.py show that the gradients are right."""
    task = TokenizerTraining(experiment(kind))
    params, extra = jax.jit(task.init)(jax.random.key(0))
    batch = task.prepare(next(task.training_batches(0)))
    grads, extra, figures = jax.jit(task.gradients)(params, extra, {}, batch, jax.random.key(1), 0)
    assert jax.tree.map(lambda g: g.shape, grads) == jax.tree.map(lambda p: p.shape, params)
    for name, g in flatten(grads).items():
        assert np.isfinite(g).all() and np.any(g), name
    assert 0 < figures["usage"] <= 1 and int(extra["usage"]["idle"].max()) == 1
    assert {name for name in figures if name.startswith("quantizer/")} == (
        set() if kind == "fsq" else {"quantizer/commitment", "quantizer/entropy"}
    )


def test_no_code_is_revived_or_spared_decay_where_there_is_no_table():
    task = TokenizerTraining(experiment("lfq"))
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    assert set(extra) == {"usage"} and extra["usage"]["idle"].shape == (2 * 8,)
    assert "quantizer" not in _decayed(params["model"])


def test_a_generator_predicts_the_groups_of_bits(tmp_path):
    """Pictures -> grouped ids inside the step -> a generator of them -> pictures."""
    config = dataclasses.replace(VQGAN, quantizer=KINDS["lfq"])
    tokenizer = mt.Tokenizer(config, vqgan.init(config, jax.random.key(0)))
    tokenizer.save(tmp_path / "tok")
    model = GeneratorConfig(
        layout=tokenizer.layout,
        condition=TextCondition(vocabulary=64, length=64),
        block=BlockConfig(width=8, heads=1, mlp=8),
        depth=1,
    )
    task = GeneratorTask(model, tokenizer=str(tmp_path / "tok"))
    result = mmgen.train(Experiment(task, DATA, **EVERY, optimizer=OPTIMIZER, steps=20, batch=8), tmp_path / "run")
    assert result.metrics["loss"] < np.log(8)
    out = mmgen.load(tmp_path / "run").generate(prompts=["a red circle"] * 2, seed=0)
    assert out.tokens.shape == (2, 4, 2) and out.tokens.max() < 8 and out.images.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(out.images, tokenizer.decode(out.tokens), atol=1e-5)
