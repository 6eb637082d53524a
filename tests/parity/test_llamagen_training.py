"""Five training steps of LlamaGen's GPT: the losses, gradient norms and weights that its published code gave."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import mmgen
from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule
from mmgen.pretrained import llamagen
from mmgen.training.generator_task import GeneratorTraining
from mmgen.training.state import initial_state
from mmgen.training.step import make_step

pytestmark = pytest.mark.parity


class FromCheckpoint(GeneratorTraining):
    """Starts at given weights instead of random ones, and has no data of its own."""

    def __init__(self, experiment, generator):
        self.experiment, self.config, self.params = experiment, generator.config, generator.params
        self.dtype, self.frozen, self.tokenizer = jnp.float32, {}, None

    def init(self, key):
        return self.params, {}

    def inherited(self):
        return {}


def test_five_adamw_steps(parity, tmp_path):
    folder = parity("llamagen_gpt_c2i")
    io = np.load(folder / "io.npz")
    config = json.loads((folder / "meta.json").read_text())["config"]
    generator = mmgen.convert("llamagen-gpt", folder / "model.safetensors", out=tmp_path / "model", config=config)
    optimizer = Optimizer(Schedule("constant", peak=1e-3), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05, clip=1.0)
    experiment = Experiment(
        GeneratorTask(generator.config, condition_dropout=0.0), Data(), steps=5, batch=len(io["idx"]), optimizer=optimizer
    )
    task = FromCheckpoint(experiment, generator)
    optax_optimizer = task.optimizer(experiment)
    state = initial_state(task, optax_optimizer, seed=0, averaged=False)
    step, losses, norms = make_step(experiment, task, optax_optimizer), [], []
    for _ in range(5):
        state, metrics = step(state, {}, {"ids": io["idx"], "label": io["cond"]})
        losses.append(metrics["loss"])
        norms.append(metrics["grad_norm"])
    np.testing.assert_allclose(losses, io["train5_losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, io["train5_gradnorms"], rtol=1e-4)
    ours = llamagen.to_reference(generator.config, state.params)["layers.0.attention.wqkv.weight"]
    np.testing.assert_allclose(ours, io["train5_wqkv0"], rtol=0, atol=1e-4 * np.abs(io["train5_wqkv0"]).max())
