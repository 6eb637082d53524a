"""Teacher-forced passes, each by one compiled program: op by op, every small operation would be compiled for itself."""

import jax
import numpy as np
from jaxtyping import Array, Float

from mmgen.model import transformer
from mmgen.model.config import GeneratorConfig


def hidden_states(c: GeneratorConfig, params: dict, batch: dict) -> list[Float[Array, "b s d"]]:
    """What the heads read: a value for each tap."""

    @jax.jit
    def run(params, batch):
        states = []
        transformer.forward(c, params, batch, collect=states)
        return states

    return run(params, batch)


def loss_and_gradients(c: GeneratorConfig, params: dict, batch: dict, key=None) -> tuple[Float[Array, ""], dict]:
    """Gradients as NumPy arrays, which converters cut up without compiling anything."""
    run = jax.jit(jax.value_and_grad(lambda params, batch: transformer.loss(c, params, batch, key)[0]))
    value, gradients = run(params, batch)
    return value, jax.tree.map(np.asarray, gradients)
