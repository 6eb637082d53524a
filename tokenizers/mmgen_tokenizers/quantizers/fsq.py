"""Finite scalar quantization (FSQ, arXiv 2309.15505): each channel rounds to one of a few levels; nothing to learn, no losses.

An id is the levels of the channels as digits of one number, the first channel the lowest. Float32 whatever the network does:
half precision merges ids.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..errors import UserError
from .vq import Params, Quantized

MARGIN = 1e-3  # the outermost levels are reached at a finite latent
MOST_LEVELS = 1000  # above it the margin would reach the next level


@dataclass(frozen=True)
class FSQ:
    """The default is FlexTok's and Cosmos's: 64,000 codes."""

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)  # of each channel; the paper advises 5 or more

    groups: ClassVar[int] = 1

    def __post_init__(self):
        if not self.levels or not all(2 <= n <= MOST_LEVELS for n in self.levels):
            raise UserError(f"levels {self.levels}: give each channel 2 to {MOST_LEVELS} levels, for example 8,8,8,5,5,5")
        if self.size > 2**31:
            raise UserError(f"levels {self.levels} give {self.size} codes, and ids are int32: use fewer channels or levels")

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def size(self) -> int:
        return math.prod(self.levels)


def _constants(config: FSQ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(levels, levels // 2, place value of each channel's digit), int32."""
    levels = np.array(config.levels, np.int64)
    places = np.cumprod([1, *levels[:-1]])
    return levels.astype(np.int32), (levels // 2).astype(np.int32), places.astype(np.int32)


def init(config: FSQ, key: Array) -> Params:
    return {}


def _bounded(config: FSQ, latents: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
    """Latents squashed so that rounding gives the levels: -2 ... 2 for 5 of them, -4 ... 3 for 8."""
    levels, _, _ = _constants(config)
    half = (levels - 1) * (1 + MARGIN) / 2
    offset = np.where(levels % 2, 0.0, 0.5)
    shift = np.arctanh(offset / half)
    shift, half, offset = (x.astype(np.float32) for x in (shift, half, offset))
    return jnp.tanh(latents.astype(jnp.float32) + shift) * half - offset


def codes_to_ids(config: FSQ, codes: Float[Array, "*N C"]) -> Int[Array, "*N"]:
    """Codes as `lookup` gives them -> ids, exactly."""
    _, half, places = _constants(config)
    digits = jnp.round(codes * half).astype(jnp.int32) + half
    return (digits * places).sum(-1)


def lookup(config: FSQ, params: Params, ids: Int[Array, "*N"]) -> Float[Array, "*N C"]:
    """Levels scaled to [-1, 1]."""
    levels, half, places = _constants(config)
    digits = jnp.asarray(ids, jnp.int32)[..., None] // places % levels
    return (digits - half).astype(jnp.float32) / half


def nearest(config: FSQ, params: Params, latents: Float[Array, "*N C"]) -> Int[Array, "*N"]:
    _, half, _ = _constants(config)
    return codes_to_ids(config, jnp.round(_bounded(config, latents)) / half)


def quantize(config: FSQ, params: Params, latents: Float[Array, "*N C"]) -> Quantized:
    """Codes (straight-through at the rounding) and ids of a training step."""
    _, half, _ = _constants(config)
    bounded = _bounded(config, latents)
    fixed = jax.lax.stop_gradient
    codes = (jnp.round(bounded) + (bounded - fixed(bounded))) / half
    return Quantized(codes, codes_to_ids(config, codes), {})
