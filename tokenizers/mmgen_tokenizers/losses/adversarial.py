"""Adversarial losses: hinge (Geometric GAN, arXiv 1705.02894) and VQGAN's adaptive weight (arXiv 2012.09841)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hinge_discriminator(real: Float[Array, "B h w 1"], fake: Float[Array, "B h w 1"]) -> Float[Array, ""]:
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def hinge_generator(fake: Float[Array, "B h w 1"]) -> Float[Array, ""]:
    return -fake.mean()


def adaptive_weight(
    last_layer: Callable[[Array], Array], kernel: Array, nll: Float[Array, "B H W 3"], gan: Float[Array, "B H W 3"]
) -> Float[Array, ""]:
    """|d nll / d kernel| / |d gan / d kernel| at the kernel of the decoder's last convolution, at most 1e4.

    `last_layer(kernel)` gives the reconstruction; `nll` and `gan` are the gradients of the two losses with respect to it. So
    only one convolution is differentiated twice, not the network.
    """
    _, pull = jax.vjp(last_layer, kernel)
    of_nll, of_gan = (jnp.linalg.norm(pull(cotangent)[0]) for cotangent in (nll, gan))
    return jnp.clip(of_nll / (of_gan + 1e-4), 0, 1e4)
