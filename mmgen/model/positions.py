"""Rotary position codes (RoFormer, arXiv 2104.09864), over one index or over row and column (LlamaGen, 2406.06525)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen.model.config import BlockConfig
from mmgen.plan.plan import COLUMN, INDEX, NOWHERE, ROW


def rotary_angles(block: BlockConfig, position: Int[Array, "*b s p"]) -> Float[Array, "*b s 2 k_half"] | None:
    """Cosines and sines for slots at `position`; both are zero for a slot that stands nowhere, as in LlamaGen's condition.
    None where places are learned instead (inputs.py)."""
    if block.position == "learned":
        return None
    axes = (ROW, COLUMN) if block.position == "rope_2d" else (INDEX,)
    count = block.head_dim // 2 // len(axes)
    frequency = block.rope_base ** (-jnp.arange(count, dtype=jnp.float32) / count)
    place = position[..., jnp.array(axes)]
    angle = (place[..., None] * frequency).reshape(*place.shape[:-1], -1)
    circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-2)
    return jnp.where((place[..., :1, None] == NOWHERE), 0.0, circle)


def rotate(x_BSHK: Float[Array, "b s h k"], angles: Float[Array, "#b s 2 k_half"]) -> Float[Array, "b s h k"]:
    """Rotate the pairs (x[i], x[i + K/2]): half-split, because interleaved pairs are slow to gather. Converters permute
    weights."""
    cos, sin = angles[..., None, 0, :], angles[..., None, 1, :]
    a, b = jnp.split(x_BSHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BSHK.dtype)
