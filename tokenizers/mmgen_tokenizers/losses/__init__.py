"""Losses of a tokenizer, each a switch of one configuration.

The two objectives of a training step: `generator_loss` for the tokenizer, `discriminator_loss` for its critic. Those of the
quantizer are in quantizers/ and arrive here weighted.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import UserError
from ..metrics import psnr
from ..networks.discriminator import PatchGAN
from . import lpips as perceptual
from .adversarial import adaptive_weight, hinge_discriminator, hinge_generator

Critic = Callable[[Array], Array]  # pictures -> scores of patches
Metrics = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class TokenizerLosses:
    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0  # LPIPS; needs `lpips`
    lpips: tuple[str, ...] = ()  # files with the weights of VGG16 and of LPIPS's linear layers
    adversarial: float = 0.0
    adversarial_start: int = 20_000  # step from which the discriminator trains and counts
    discriminator: PatchGAN = PatchGAN()
    adaptive: bool = False  # scale the adversarial loss to the gradient of the others at the last convolution

    def __post_init__(self):
        if self.perceptual and not self.lpips:
            raise UserError(
                "the perceptual loss needs weights that we may not ship: name the files of VGG16 (torchvision's vgg16) and of"
                " LPIPS's linear layers in losses.lpips, or set losses.perceptual to 0"
            )


def generator_loss(
    config: TokenizerLosses,
    forward: Any,
    images: Float[Array, "B H W 3"],
    step: Array | int,
    *,
    critic: Critic | None = None,
    last_layer: tuple[Callable, Array] | None = None,
    lpips: dict | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The tokenizer's objective for `forward` (families.*.forward of `images`, in [-1, 1]), with what to log.

    `critic` where adversarial > 0; `last_layer` (families.*.last_layer) where adaptive; `lpips` (losses.lpips.load) where
    perceptual > 0.
    """
    nll = functools.partial(_reconstruction, config, images, lpips)
    loss, metrics = nll(forward.reconstruction)
    metrics |= {f"quantizer/{name}": value for name, value in forward.losses.items()}
    metrics["psnr"] = psnr(jnp.clip(jax.lax.stop_gradient(forward.reconstruction), -1, 1), images).mean()
    loss += sum(forward.losses.values())
    if config.adversarial:
        gan, weight = _adversarial(config, forward.reconstruction, nll, critic, last_layer, step)
        metrics |= {"adversarial": gan, "adversarial_weight": weight}
        loss += weight * gan
    return loss, metrics | {"loss": loss}


def _reconstruction(config: TokenizerLosses, images: Array, lpips: dict | None, x: Array) -> tuple[Array, Metrics]:
    """Weighted sum of the losses between pictures, and each of them by itself."""
    terms: Metrics = {}
    if config.l1:
        terms["l1"] = jnp.abs(x - images).mean()
    if config.l2:
        terms["l2"] = jnp.square(x - images).mean()
    if config.perceptual:
        terms["perceptual"] = perceptual.distance(lpips, x, images).mean()
    return sum((getattr(config, name) * value for name, value in terms.items()), jnp.zeros(())), terms


def _adversarial(config, reconstruction, nll, critic, last_layer, step) -> tuple[Array, Array]:
    """Generator's side of the hinge loss and its weight; both are 0, and nothing is computed, before adversarial_start."""

    def gan(x):
        return hinge_generator(critic(x))

    def active(x):
        weight = jnp.asarray(config.adversarial)
        if config.adaptive:
            fixed = jax.lax.stop_gradient(x)
            of_nll, of_gan = jax.grad(lambda y: nll(y)[0])(fixed), jax.grad(gan)(fixed)
            weight = weight * jax.lax.stop_gradient(adaptive_weight(*last_layer, of_nll, of_gan))
        return gan(x), weight

    return jax.lax.cond(step >= config.adversarial_start, active, functools.partial(_zeros, 2), reconstruction)


def _zeros(count: int, _) -> tuple[Array, ...]:
    return (jnp.zeros(()),) * count


def discriminator_loss(
    config: TokenizerLosses,
    critic: Critic,
    images: Float[Array, "B H W 3"],
    reconstruction: Float[Array, "B H W 3"],
    step: Array | int,
) -> tuple[Float[Array, ""], Metrics]:
    """The critic's objective; 0 before adversarial_start. No gradient reaches the tokenizer."""

    def active(x):
        real, fake = critic(images), critic(x)
        return hinge_discriminator(real, fake), real.mean(), fake.mean()

    fixed = jax.lax.stop_gradient(reconstruction)
    loss, real, fake = jax.lax.cond(step >= config.adversarial_start, active, functools.partial(_zeros, 3), fixed)
    return loss, {"discriminator": loss, "score_real": real, "score_fake": fake}
