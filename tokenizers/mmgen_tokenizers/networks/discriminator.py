"""PatchGAN (pix2pix, arXiv 1611.07004): judges overlapping patches of a picture.

The reference normalises with batch statistics, which depend on how many devices share a batch; here group norm or none.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..errors import UserError
from . import layers
from .layers import Conv, Draws, GroupNorm, Params


@dataclass(frozen=True)
class PatchGAN:
    channels: int = 64  # of the first layer; doubled by each further one up to 8x
    layers: int = 3  # that halve the resolution, the first included; pictures of 32 pixels and more
    norm: Literal["group", "none"] = "group"
    groups: int = 8

    def __post_init__(self):
        if self.norm == "group" and 2 * self.channels % self.groups:
            raise UserError(f"discriminator: {2 * self.channels} channels do not divide into groups={self.groups}")


class Discriminator(nnx.Module):
    def __init__(self, c: PatchGAN, draws: Draws):
        widths = [c.channels * min(2**i, 8) for i in range(c.layers + 1)]
        normed = c.norm == "group"
        self.convs, self.norms = nnx.Dict(), nnx.Dict()
        for i, (inputs, width) in enumerate(zip([3, *widths], widths, strict=False)):
            self.convs[str(i)] = Conv(inputs, width, 4, draws, stride=2 if i < c.layers else 1, bias=i == 0 or not normed)
            if i and normed:
                self.norms[str(i)] = GroupNorm(width, c.groups, 1e-5)
        self.out = Conv(widths[-1], 1, 4, draws)
        self.count, self.normed = len(widths), normed

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w 1"]:
        for i in range(self.count):
            x = self.convs[str(i)](x)
            if i and self.normed:
                x = self.norms[str(i)](x)
            x = jax.nn.leaky_relu(x, 0.2)
        return self.out(x)


@functools.partial(jax.jit, static_argnums=0)
def init(config: PatchGAN, key: Array) -> Params:
    """Fresh parameters as a plain nested dict."""
    return layers.init(Discriminator, key, config)


def apply(config: PatchGAN, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Float[Array, "B h w 1"]:
    """Pictures in [-1, 1] -> a score a patch, float32: high for real."""
    return layers.bind(Discriminator, params, config)(images.astype(dtype)).astype(jnp.float32)
