"""What all published generators have in common: their names and shapes, and the way from their tensors to ours."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from mmgen_tokenizers.files import flatten, rename, unflatten

from mmgen.model import transformer
from mmgen.model.config import GeneratorConfig


def published_shapes(c: GeneratorConfig, to_reference: Callable) -> dict[str, tuple[int, ...]]:
    """Names and shapes that `to_reference(c, params, xp)` gives for a configuration, without allocating."""
    theirs = jax.eval_shape(lambda: to_reference(c, transformer.init(c, jax.random.key(0)), jnp))
    return {name: array.shape for name, array in theirs.items()}


def renamed(c: GeneratorConfig, state: dict[str, np.ndarray], rows: Sequence, unstacked: Callable) -> dict:
    """Published tensors under our names, in the form of `unstacked(c, params, xp)`: nested, one dict a layer. Raises UserError
    that lists what does not fit."""
    ours = jax.eval_shape(lambda: unstacked(c, transformer.init(c, jax.random.key(0)), jnp))
    return unflatten(rename(state, rows, {name: array.shape for name, array in flatten(ours).items()}))
