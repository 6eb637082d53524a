"""The layers that the convolutional networks share: convolution, group norm, space-to-depth; how their parameters start.

Activations are [B, H, W, C]. A layer computes in the dtype of its input; parameters are float32 and are cast where they are
used; the statistics of group norm are float32 always.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Params = dict[str, Any]
SAME = ((1, 1), (1, 1))


class Draws:
    """Uniform random numbers for all parameters of a network, cut from one draw.

    A draw for each of hundreds of parameters would take a minute to compile.
    """

    def __init__(self, pool: Float[Array, "P"] | None = None):
        self.pool, self.taken = pool, 0  # without a pool it only counts how many numbers are asked for

    def uniform(self, shape: tuple[int, ...], bound: float) -> Array:
        start, self.taken = self.taken, self.taken + math.prod(shape)
        if self.pool is None:
            return jnp.zeros(shape)
        return self.pool[start : self.taken].reshape(shape) * bound


@functools.cache
def _structure(kind: type[nnx.Module], *arguments) -> tuple[nnx.GraphDef, int]:
    """The graph of a network and how many random numbers its parameters take, without allocating: once a configuration."""
    counter = Draws()
    module = nnx.eval_shape(lambda: kind(*arguments, counter))
    return nnx.split(module, nnx.Param)[0], counter.taken


def init(kind: type[nnx.Module], key: Array, *arguments) -> Params:
    """Fresh float32 parameters of `kind(*arguments, draws)` as a plain nested dict."""
    pool = jax.random.uniform(key, (_structure(kind, *arguments)[1],), minval=-1, maxval=1)
    return nnx.to_pure_dict(nnx.split(kind(*arguments, Draws(pool)), nnx.Param)[1])


def bind(kind: type[nnx.Module], params: Params, *arguments) -> nnx.Module:
    """The network with these parameters, ready to be called. `arguments` must be hashable."""
    return nnx.merge(_structure(kind, *arguments)[0], nnx.State(params))


def convolve(x: Float[Array, "B H W I"], kernel: Float[Array, "h w I O"], padding, stride: int = 1) -> Float[Array, "B h w O"]:
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


class Conv(nnx.Module):
    """Convolution `size` x `size`; kernel [size, size, I, O], or [I, O] for size 1, which is a matrix product.
    `doubles`: of the picture with each pixel as four.

    Starts uniform in +-1/sqrt(fan in), weight and bias, as PyTorch's layers do.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        draws: Draws,
        *,
        bias: bool = True,
        stride: int = 1,
        padding=SAME,
        doubles: bool = False,
    ):
        self.size, self.stride, self.padding, self.doubles = size, stride, padding, doubles
        shape = (inputs, outputs) if size == 1 else (size, size, inputs, outputs)
        bound = (size * size * inputs) ** -0.5
        self.kernel = nnx.Param(draws.uniform(shape, bound))
        self.bias = nnx.Param(draws.uniform((outputs,), bound)) if bias else None

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        kernel = self.kernel[...]
        if self.doubles and x.shape[1] * x.shape[2] >= LARGE:
            y = convolve_doubled(x, kernel)
        elif self.doubles:
            y = convolve(nearest_double(x), kernel.astype(x.dtype), self.padding)
        elif self.size == 1:
            y = x @ kernel.astype(x.dtype)
        else:
            y = convolve(x, kernel.astype(x.dtype), self.padding, self.stride)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He, arXiv 1803.08494), statistics of each picture over the pixels and channels of a group.

    Sums run over the pixels first and over the channels of a group on the small rest: 3x faster on CPU than a reshape of x.
    """

    def __init__(self, channels: int, groups: int, eps: float, *, affine: bool = True):
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(channels)) if affine else None
        self.bias = nnx.Param(jnp.zeros(channels)) if affine else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x32 = x.astype(jnp.float32)
        mean = self._grouped(x32.mean((1, 2)))
        variance = self._grouped(jnp.square(x32).mean((1, 2))) - jnp.square(mean)
        scale = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.eps)
        if self.scale is not None:
            scale = scale * self.scale[...]
        offset = -mean * scale if self.bias is None else self.bias[...] - mean * scale
        return (x32 * scale[:, None, None] + offset[:, None, None]).astype(x.dtype)

    def _grouped(self, x: Float[Array, "B C"]) -> Float[Array, "B C"]:
        """Mean over the channels of each group, given back to each channel."""
        B, C = x.shape
        means = x.reshape(B, self.groups, -1).mean(-1, keepdims=True)
        return jnp.broadcast_to(means, (B, self.groups, C // self.groups)).reshape(B, C)


def space_to_depth(x: Float[Array, "B H W C"], factor: int) -> Float[Array, "B h w D"]:
    """Each factor x factor square becomes one pixel of factor^2 C channels, ordered (dy, dx, channel)."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // factor, factor, W // factor, factor, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // factor, W // factor, factor * factor * C)


def depth_to_space(x: Float[Array, "B h w D"], factor: int) -> Float[Array, "B H W C"]:
    """The inverse of space_to_depth (TensorFlow's order of channels, not PyTorch's pixel shuffle)."""
    B, H, W, D = x.shape
    x = x.reshape(B, H, W, factor, factor, D // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H * factor, W * factor, D // factor**2)


def nearest_double(x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


LARGE = 32 * 32  # positions from which on four convolutions are worth compiling
# Which rows of a 3 x 3 kernel each row of a 2 x 2 one adds up, for the upper and the lower of two equal rows of a picture.
FOLDED = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def convolve_doubled(x: Float[Array, "B H W I"], kernel: Float[Array, "3 3 I O"]) -> Float[Array, "B 2H 2W O"]:
    """A 3 x 3 convolution of the picture with each pixel as four: as four convolutions 2 x 2 of the small picture, one for each
    of the four. 16 products for 36, and no large picture of equal pixels."""
    B, H, W, _ = x.shape
    kernels = jnp.einsum("dri,esj,ijco->dersco", FOLDED, FOLDED, kernel).astype(x.dtype)
    sides = ((1, 0), (0, 1))
    y = jnp.stack([jnp.stack([convolve(x, kernels[d, e], (sides[d], sides[e])) for e in (0, 1)], 3) for d in (0, 1)], 2)
    return y.reshape(B, 2 * H, 2 * W, -1)
