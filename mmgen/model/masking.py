"""Hidden tokens of masked prediction (MaskGIT, arXiv 2202.04200): the id `codebook_size` stands for a token that is hidden."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mmgen.plan.masked import Masked


def hidden_share(plan: Masked, progress: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Which share of the tokens is hidden when `progress` (0 .. 1) of the way is done: from 1 down to 0."""
    half_turn = jnp.pi / 2
    curves = {
        "cosine": lambda r: jnp.cos(half_turn * r),
        "linear": lambda r: 1 - r,
        "arccos": lambda r: jnp.arccos(r) / half_turn,
    }
    return jnp.clip(curves[plan.schedule](progress), 1e-6, 1.0)


def holes(plan: Masked, shape: tuple[int, ...], key: PRNGKeyArray) -> Bool[Array, "b n ..."]:
    """Which tokens training hides: of each sample at least one, its own share of them, anywhere."""
    key_share, key_place = jax.random.split(key)
    place = jax.random.uniform(key_place, (shape[0], math.prod(shape[1:])))
    share = hidden_share(plan, jax.random.uniform(key_share, shape[:1]))
    count = jnp.ceil(share * place.shape[1]).astype(jnp.int32)
    last = jnp.take_along_axis(jnp.sort(place, axis=1), count[:, None] - 1, axis=1)
    return (place <= last).reshape(shape)
