"""What tokenizers are judged by. Usage and perplexity of the codebook are in quantizers/vq.py beside their window."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .quantizers.vq import usage_metrics as codebook_usage

__all__ = ["codebook_usage", "psnr"]


def psnr(a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio in dB of each picture; pictures in [-1, 1], so the peak is 2. At most 100 dB."""
    error = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean((1, 2, 3))
    return 10 * jnp.log10(4 / jnp.maximum(error, 4e-10))
