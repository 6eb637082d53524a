"""A VQGAN with ids at several scales: VAR's tokenizer (arXiv 2404.02905) and FlexVAR's (arXiv 2502.20313).

Pure functions over `params`, those of families/vqgan.py with the quantizer of quantizers/multiscale.py.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..errors import UserError
from ..layout import TokenLayout
from ..networks import layers
from ..networks.cnn import CNN
from ..quantizers import multiscale, resize, vq
from ..quantizers.multiscale import MultiScaleVQ
from . import vqgan
from .vqgan import VQGAN, Forward, Params, last_layer

__all__ = ["MultiScale", "decode", "embed", "encode", "forward", "init", "last_layer", "layout", "next_input"]


@dataclass(frozen=True)
class MultiScale(VQGAN):
    """The defaults are VAR's."""

    network: CNN = CNN(channels=160, fused_qkv=True, latent=32)
    quantizer: MultiScaleVQ = MultiScaleVQ()
    quant_conv: Literal[0, 1, 3] = 3
    coarse: float = 0.0  # weight of the squared error of the pictures that the first scales give; a decoding for each scale

    def __post_init__(self):
        super().__post_init__()
        cells = self.image_size // self.network.factor
        if self.quantizer.scales[-1] != cells:
            raise UserError(f"pictures of {self.image_size} have {cells} x {cells} cells: the last of scales must be {cells}")
        if not self.quantizer.residual and self.quant_conv == 3:
            raise UserError("with residual=False latents are shrunk where quant_conv does not matter: set quant_conv=1 or 0")


def layout(config: MultiScale, height: int, width: int) -> TokenLayout:
    """Of pictures of height x width pixels. Raises UserError where the network cannot take them."""
    grid = vqgan.layout(config, height, width)
    scales = config.quantizer.grids(grid.height, grid.width)
    return TokenLayout("scales", grid.height, grid.width, config.quantizer.size, scales=scales)


@functools.partial(jax.jit, static_argnums=0)
def init(config: MultiScale, key: Array) -> Params:
    """Fresh parameters, in one compiled program."""
    network, quantizer = jax.random.split(key)
    return {**layers.init(vqgan.Network, network, config), "quantizer": multiscale.init(config.quantizer, quantizer)}


def encode(config: MultiScale, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Int[Array, "B N"]:
    """Pictures in [-1, 1] -> ids scale by scale, each in raster order."""
    latents = vqgan.encode_latents(config, params, images, dtype)
    return multiscale.quantize(config.quantizer, params["quantizer"], latents).ids


def embed(config: MultiScale, params: Params, ids: Int[Array, "B N"]) -> Float[Array, "B N C"]:
    """Ids -> code vectors; the decoder consumes their sums."""
    return vq.lookup(config.quantizer, params["quantizer"], ids)


def decode(config: MultiScale, params: Params, ids: Int[Array, "B M"], height: int, width: int, dtype=jnp.float32):
    """Ids of all scales, or of the first ones -> pictures float32 [B, H, W, 3] in [-1, 1], not clamped.

    height x width: cells of the finest scale. Without residual the picture is as small as its scale.
    """
    codes = multiscale.prefixes(config.quantizer, params["quantizer"], ids, height, width)[-1]
    return vqgan.decode_codes(config, params, codes, dtype)


def next_input(config: MultiScale, params: Params, ids: Int[Array, "B M"], height: int, width: int) -> Float[Array, "B L C"]:
    """Ids of the first scales -> what a next-scale transformer reads at the second scale up to the one after them."""
    return multiscale.next_input(config.quantizer, params["quantizer"], ids, height, width)


def forward(
    config: MultiScale, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32, key: Array | None = None
) -> Forward:
    """The pass of a training step: pictures in [-1, 1] -> reconstruction, quantizer losses, ids. Draws nothing from `key`.

    Its latents are the vectors that were looked up, of all scales.
    """
    latents = vqgan.encode_latents(config, params, images, dtype)
    quantized = multiscale.quantize(config.quantizer, params["quantizer"], latents)
    hidden, losses = vqgan.hidden(config, params, quantized.codes, dtype), dict(quantized.losses)
    if config.coarse and quantized.prefixes:
        errors = [_coarse_error(config, params, images, codes, dtype) for codes in quantized.prefixes]
        losses["coarse"] = config.coarse * sum(errors) / len(errors)
    return Forward(vqgan.picture(config, params, hidden), hidden, quantized.vectors, quantized.ids, losses)


def _coarse_error(config: MultiScale, params: Params, images: Array, codes: Float[Array, "B h w C"], dtype) -> Float[Array, ""]:
    """Mean squared error of the picture of the first scales, against the original shrunk to its size."""
    picture = vqgan.decode_codes(config, params, codes, dtype)
    return jnp.square(picture - resize.area(images, picture.shape[1:3])).mean()
