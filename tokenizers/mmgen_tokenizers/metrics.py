"""What tokenizers are judged by. Usage and perplexity of the codebook are in quantizers/vq.py beside their window."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def psnr(a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio in dB of each picture; pictures in [-1, 1], so the peak is 2. At most 100 dB."""
    error = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)).mean((1, 2, 3))
    return 10 * jnp.log10(4 / jnp.maximum(error, 4e-10))


def ssim(a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
    """Structural similarity of each picture (Wang et al. 2004): Gaussian windows of 11 x 11 pixels, deviation 1.5, that lie
    wholly inside; the mean over windows and channels. Pictures in [-1, 1]; NaN where a side has less than 11 pixels.

    Computed on 0 .. 1, as it compares the means of windows by their ratio: black must be 0.
    """
    a, b = ((x.astype(jnp.float32) + 1).transpose(0, 3, 1, 2).reshape(-1, 1, *x.shape[1:3]) / 2 for x in (a, b))
    tap = jnp.exp(-0.5 * ((jnp.arange(11) - 5) / 1.5) ** 2)
    window = jnp.outer(tap, tap)[None, None] / tap.sum() ** 2

    def mean(x):
        return jax.lax.conv(x, window, (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return index.mean((1, 2, 3)).reshape(-1, 3).mean(1)
