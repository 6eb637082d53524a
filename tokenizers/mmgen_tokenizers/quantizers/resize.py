"""Two resizes of PyTorch as fixed matrices, for latents: multi-scale tokenizers were trained with exactly these.

`jax.image.resize` has neither: its cubic has a = -0.5 (here -0.75) and is smoothed where it shrinks.
"""

import functools

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
