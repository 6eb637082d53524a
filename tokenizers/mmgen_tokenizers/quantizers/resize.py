"""Two resizes of PyTorch as fixed matrices, for latents: multi-scale tokenizers were trained with exactly these.

`jax.image.resize` has neither: its cubic has a = -0.5 (here -0.75) and is smoothed where it shrinks.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

A = -0.75  # of the cubic


@functools.cache
def area_matrix(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Adaptive average pooling: output i is the mean of the inputs that [i, i + 1) * size / out touches; they may overlap."""
    matrix = np.zeros((out, size), np.float32)
    for i in range(out):
        start, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


@functools.cache
def bicubic_matrix(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Cubic convolution between pixel centres, the edge pixel repeated outside, not smoothed where it shrinks."""
    matrix = np.zeros((out, size))
    at = (np.arange(out) + 0.5) * size / out - 0.5
    low = np.floor(at).astype(int)
    for tap in range(-1, 3):
        t = np.abs(at - low - tap)
        near, far = (A + 2) * t**3 - (A + 3) * t**2 + 1, A * (t**3 - 5 * t**2 + 8 * t - 4)
        np.add.at(matrix, (np.arange(out), np.clip(low + tap, 0, size - 1)), np.where(t <= 1, near, far))
    return matrix.astype(np.float32)


def _resize(matrix, x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B h w C"]:
    if x.shape[1:3] == size:
        return x  # both matrices are the identity
    rows, columns = (matrix(*pair) for pair in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("hH,wW,bHWc->bhwc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)


area = functools.partial(_resize, area_matrix)
bicubic = functools.partial(_resize, bicubic_matrix)


def all_bicubic(pictures: Sequence[Float[Array, "B _ _ C"]], size: tuple[int, int]) -> Float[Array, "B S h w C"]:
    """`bicubic` of each to one size, in one product: smaller ones are filled up with zeros, which nothing reads."""
    x = jnp.stack([jnp.pad(x, ((0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2]), (0, 0))) for x in pictures], 1)
    return _resize_all(bicubic_matrix, x, [x.shape[1:3] for x in pictures], [size] * len(pictures))


def all_area(x: Float[Array, "B S H W C"], sizes: Sequence[tuple[int, int]]) -> list[Float[Array, "B _ _ C"]]:
    """`area` of each, to a size of its own (those beyond S are left out), likewise."""
    sizes = sizes[: x.shape[1]]
    found = _resize_all(area_matrix, x[:, : len(sizes)], [x.shape[2:4]] * len(sizes), sizes)
    return [found[:, i, :height, :width] for i, (height, width) in enumerate(sizes)]


def _resize_all(
    matrix, x: Float[Array, "B S H W C"], sizes: Sequence[tuple[int, int]], outs: Sequence[tuple[int, int]]
) -> Float[Array, "B S H W C"]:
    """Picture s has sizes[s] in the corner of x[:, s], and outs[s] in that of the result."""

    def stacked(axis: int) -> Float[np.ndarray, "S H H"]:
        whole = np.zeros((x.shape[1], x.shape[2 + axis], x.shape[2 + axis]), np.float32)
        for one, size, out in zip(whole, sizes, outs, strict=True):
            one[: out[axis], : size[axis]] = matrix(size[axis], out[axis])
        return whole

    return jnp.einsum("shH,swW,bsHWc->bshwc", stacked(0), stacked(1), x, precision=jax.lax.Precision.HIGHEST)
