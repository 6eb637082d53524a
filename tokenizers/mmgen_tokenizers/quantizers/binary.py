"""Binary codes: lookup-free quantization (LFQ; MAGVIT-v2, arXiv 2310.05737) and binary spherical (BSQ, arXiv 2406.07548).

A code is the signs of the K channels of a latent; there is no table and nothing to learn. An id is the K bits as a number, or,
with groups, G numbers of K / G bits each: ids are [..., N] or [..., N, G]. All of it computes in float32.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..errors import UserError
from .vq import Params, Quantized, _sphere

LARGEST = 30  # bits of an id: 2^30 is the last power of two that fits int32
LARGEST_BLOCK = 24


@dataclass(frozen=True)
class LFQ:
    """Codes in {-1, 1}^K. The defaults are Open-MAGVIT2's (arXiv 2409.04410)."""

    bits: int = 18  # K, channels of the latent
    groups: int = 1  # sub-tokens a site, G, each of bits / groups consecutive channels
    order: Literal["lsb", "msb"] = "lsb"  # a group's first channel is the least or the most significant bit of its id
    commitment: float = 0.25  # weight of the mean of (latent - sg(code))^2
    entropy: float = 0.1  # weight of the entropy loss
    diversity: float = 1.0  # in it, weight of the entropy of the mean code: BSQ's gamma
    temperature: float = 0.01  # of the soft code in it
    block: int = 18  # bits whose joint distribution it keeps diverse: exact from `bits` on; memory grows with 2^(block / 2)

    spherical: ClassVar[bool] = False

    def __post_init__(self):
        if self.bits < 1 or self.groups < 1 or self.bits % self.groups:
            near = max(g for g in range(1, self.bits + 1) if self.bits % g == 0 and g <= max(1, self.groups))
            raise UserError(f"{self.bits} bits do not divide into groups={self.groups}; use groups={near}")
        if self.bits // self.groups > LARGEST:
            fits = next(g for g in range(1, self.bits + 1) if self.bits % g == 0 and self.bits // g <= LARGEST)
            raise UserError(f"an id of {self.bits // self.groups} bits does not fit int32; use groups={fits} or more")
        if not 1 <= self.block <= LARGEST_BLOCK:
            raise UserError(f"block={self.block}: the entropy loss takes 1 to {LARGEST_BLOCK} bits together")

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def size(self) -> int:
        return 2 ** (self.bits // self.groups)

    @property
    def scale(self) -> float:
        """What a channel of a code is, but for its sign."""
        return self.bits**-0.5 if self.spherical else 1.0


@dataclass(frozen=True)
class BSQ(LFQ):
    """Latent and code on the unit sphere: codes in {-1, 1}^K / sqrt(K)."""

    order: Literal["lsb", "msb"] = "msb"
    commitment: float = 0.0
    temperature: float = 1.0
    block: int = 9

    spherical: ClassVar[bool] = True


def init(config: LFQ, key: Array) -> Params:
    return {}


def _shifts(config: LFQ) -> Int[np.ndarray, "W"]:
    """By how much the bit of each channel of a group stands to the left in its id."""
    shifts = np.arange(config.bits // config.groups)
    return shifts if config.order == "lsb" else shifts[::-1]


def bits_to_ids(config: LFQ, bits: Int[Array, "*N K"]) -> Int[Array, "*ids"]:
    """Bits (0 or 1) in the order of the channels -> ids int32; a last axis G where there are groups."""
    grouped = jnp.asarray(bits, jnp.int32).reshape(*bits.shape[:-1], config.groups, -1)
    ids = (grouped << _shifts(config)).sum(-1)
    return ids if config.groups > 1 else ids[..., 0]


def ids_to_bits(config: LFQ, ids: Int[Array, "*ids"]) -> Int[Array, "*N K"]:
    """The inverse of bits_to_ids, int8."""
    grouped = jnp.asarray(ids, jnp.int32).reshape(*(ids.shape[:-1] if config.groups > 1 else ids.shape), config.groups, 1)
    bits = (grouped >> _shifts(config)) & 1
    return bits.reshape(*bits.shape[:-2], config.bits).astype(jnp.int8)


def lookup(config: LFQ, params: Params, ids: Int[Array, "*ids"]) -> Float[Array, "*N K"]:
    return config.scale * (2.0 * ids_to_bits(config, ids) - 1)


def nearest(config: LFQ, params: Params, latents: Float[Array, "*N K"]) -> Int[Array, "*ids"]:
    """Ids of the signs; 0 counts as negative, as in the published code."""
    return bits_to_ids(config, latents > 0)


def quantize(config: LFQ, params: Params, latents: Float[Array, "*N K"]) -> Quantized:
    """Codes, ids and losses of a training step. Straight-through at the signs: BSQ's gradient has the scale of its codes."""
    z = latents.astype(jnp.float32)
    z = _sphere(z) if config.spherical else z
    fixed = jax.lax.stop_gradient
    codes = config.scale * (jnp.where(z > 0, 1.0, -1.0) + (z - fixed(z)))
    losses = {"commitment": config.commitment * jnp.square(z - fixed(codes)).mean()}
    if config.entropy:
        losses["entropy"] = config.entropy * entropy_loss(config, z)
    return Quantized(codes, nearest(config, params, z), losses)


# The entropy loss: each soft code sure, all of them diverse -------------------------------------------------------------


def entropy_loss(config: LFQ, z: Float[Array, "*N K"]) -> Float[Array, ""]:
    """Mean entropy of the soft codes minus `diversity` times the entropy of their mean.

    The soft code, softmax of -|z - code|^2 / temperature over all 2^K codes, is a product of K independent bits. So its entropy
    is a sum over bits, exact for any K. That of the mean is exact over each block of bits, and the blocks add up as if they
    were independent, as in BSQ: nothing here has 2^K numbers.
    """
    logits = (4 * config.scale / config.temperature) * z.reshape(-1, config.bits)
    starts = range(0, config.bits, config.block)
    diverse = sum(_entropy_of_mean(logits[:, start : start + config.block]) for start in starts)
    return _entropy_of_bits(logits).sum(-1).mean() - config.diversity * diverse


def _entropy_of_bits(logits: Float[Array, "M K"]) -> Float[Array, "M K"]:
    """Of bits that are 1 with probability sigmoid(logit); stable at any logit."""
    size = jnp.abs(logits)
    return jnp.log1p(jnp.exp(-size)) + size * jax.nn.sigmoid(-size)


def _entropy_of_mean(logits: Float[Array, "M b"]) -> Float[Array, ""]:
    """Entropy over the 2^b patterns of b bits, of their mean over positions: the pattern's two halves meet in one product."""
    left, right = (_patterns(half) for half in jnp.split(logits, [logits.shape[1] // 2], 1))
    mean = jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST) / len(logits)
    return -(mean * jnp.log(mean + 1e-8)).sum()


def _patterns(logits: Float[Array, "M b"]) -> Float[Array, "M P"]:
    """Probability of each of the P = 2^b patterns of independent bits."""
    p = jnp.ones((len(logits), 1))
    for k in range(logits.shape[1]):
        one = jax.nn.sigmoid(jnp.stack([-logits[:, k], logits[:, k]], -1))
        p = (p[:, :, None] * one[:, None]).reshape(len(logits), -1)
    return p
