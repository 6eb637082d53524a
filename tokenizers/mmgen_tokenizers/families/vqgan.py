"""VQGAN (arXiv 2012.09841): convolutional encoder, quantizer, convolutional decoder. One id a grid cell, raster order; with the
groups of binary quantizers (quantizers/binary.py) several: ids are then [B, N, G] for [B, N].

Pure functions over `params`, a plain dict {"encoder", "decoder"[, "quantizer", "quant_conv", "post_quant_conv"]} of float32.
Pictures are [-1, 1] on this side whatever range the weights expect.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..errors import UserError
from ..layout import TokenLayout
from ..networks import cnn, layers, vit
from ..networks.cnn import CNN
from ..networks.layers import Conv, Draws
from ..networks.vit import ViT
from ..quantizers import Quantizer, functions
from ..quantizers.vq import VQ

Params = dict[str, Any]


@dataclass(frozen=True)
class VQGAN:
    network: CNN | ViT = CNN()
    quantizer: Quantizer = VQ()
    image_size: int = 256  # pixels a side in training; a CNN takes other sizes that are multiples of its factor too
    quant_conv: Literal[0, 1, 3] = 1  # kernel of the convolutions latent -> code -> latent; 0: none (latent = quantizer.dim)
    range: Literal["signed", "unit"] = "signed"  # what the weights expect: [-1, 1], or [0, 1] (MaskGIT)

    def __post_init__(self):
        latent, dim, factor = self.network.latent, self.quantizer.dim, self.network.factor
        if not self.quant_conv and latent != dim:
            raise UserError(f"without quant_conv the network's latent ({latent}) must be the quantizer's dim ({dim})")
        if self.image_size % factor:
            near = max(factor, round(self.image_size / factor) * factor)
            raise UserError(f"image_size {self.image_size} is not a multiple of the network's factor {factor}; use {near}")
        if isinstance(self.network, ViT) and self.image_size != self.network.image_size:
            raise UserError(f"image_size {self.image_size} must be the network's, {self.network.image_size}: it knows no other")

    @property
    def factor(self) -> int | None:
        """Pixels a token on a side; None where the network knows one size of pictures only."""
        return self.network.factor if isinstance(self.network, CNN) else None


class Forward(NamedTuple):
    """What a training step needs of one pass."""

    reconstruction: Float[Array, "B H W 3"]  # [-1, 1], not clamped
    hidden: Float[Array, "B X Y D"]  # input of the decoder's last convolution
    latents: Float[Array, "B h w C"]  # before quantization
    ids: Int[Array, "B N *G"]
    losses: dict[str, Float[Array, ""]]  # the quantizer's, weighted


def layout(config: VQGAN, height: int, width: int) -> TokenLayout:
    """Of pictures of height x width pixels. Raises UserError where the network cannot take them."""
    factor, quantizer = config.network.factor, config.quantizer
    if isinstance(config.network, ViT):
        vit.check_size(config.image_size, height, width)
    for size in (height, width):
        if size < factor or size % factor:
            near = max(factor, round(size / factor) * factor)
            raise UserError(f"pictures of {height} x {width}: {size} is not a multiple of {factor}; the nearest is {near}")
    return TokenLayout(height=height // factor, width=width // factor, codebook_size=quantizer.size, groups=quantizer.groups)


class Network(nnx.Module):
    """All but the quantizer."""

    def __init__(self, config: VQGAN, draws: Draws):
        c, dim, size = config.network, config.quantizer.dim, config.quant_conv
        kind = vit if isinstance(c, ViT) else cnn
        self.encoder = kind.Encoder(c, draws)
        self.quant_conv = Conv(c.latent, dim, size, draws) if size else None
        self.post_quant_conv = Conv(dim, c.latent, size, draws) if size else None
        self.decoder = kind.Decoder(c, draws)


@functools.partial(jax.jit, static_argnums=0)
def init(config: VQGAN, key: Array) -> Params:
    """Fresh parameters, in one compiled program."""
    key_network, key_codes = jax.random.split(key)
    network = layers.init(Network, key_network, config)
    codes = functions(config.quantizer).init(config.quantizer, key_codes)
    return {**network, "quantizer": codes} if codes else network  # saved files hold no empty dict: neither do fresh parameters


def _network(config: VQGAN, params: Params) -> Network:
    return layers.bind(Network, {name: p for name, p in params.items() if name != "quantizer"}, config)


def encode_latents(
    config: VQGAN, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32
) -> Float[Array, "B h w C"]:
    """Pictures in [-1, 1] -> latents (float32) before quantization; the network computes in `dtype`."""
    network = _network(config, params)
    z = network.encoder((images if config.range == "signed" else (images + 1) / 2).astype(dtype))
    return (z if network.quant_conv is None else network.quant_conv(z)).astype(jnp.float32)


def hidden(config: VQGAN, params: Params, codes: Float[Array, "B h w C"], dtype=jnp.float32) -> Float[Array, "B X Y D"]:
    """Code vectors -> input of the decoder's last convolution."""
    network, z = _network(config, params), codes.astype(dtype)
    return network.decoder.hidden(z if network.post_quant_conv is None else network.post_quant_conv(z))


def picture(config: VQGAN, params: Params, hidden: Float[Array, "B X Y D"]) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution: hidden -> picture in [-1, 1] (float32, not clamped)."""
    x = _network(config, params).decoder.picture(hidden).astype(jnp.float32)
    return x if config.range == "signed" else x * 2 - 1


def decode_codes(config: VQGAN, params: Params, codes: Float[Array, "B h w C"], dtype=jnp.float32) -> Float[Array, "B H W 3"]:
    """Code vectors -> pictures in [-1, 1], not clamped."""
    return picture(config, params, hidden(config, params, codes, dtype))


def encode(config: VQGAN, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Int[Array, "B N *G"]:
    """Pictures in [-1, 1] -> ids in raster order."""
    latents = encode_latents(config, params, images, dtype)
    return _in_raster(functions(config.quantizer).nearest(config.quantizer, params.get("quantizer", {}), latents))


def embed(config: VQGAN, params: Params, ids: Int[Array, "B N *G"]) -> Float[Array, "B N C"]:
    """Ids -> code vectors as the decoder consumes them."""
    return functions(config.quantizer).lookup(config.quantizer, params.get("quantizer", {}), ids)


def decode(config: VQGAN, params: Params, ids: Int[Array, "B N *G"], height: int, width: int, dtype=jnp.float32):
    """Ids of a grid of height x width cells -> pictures float32 [B, H, W, 3] in [-1, 1], not clamped."""
    codes = embed(config, params, ids)
    return decode_codes(config, params, codes.reshape(codes.shape[0], height, width, -1), dtype)


def forward(
    config: VQGAN, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32, key: Array | None = None
) -> Forward:
    """The pass of a training step: pictures in [-1, 1] -> reconstruction, quantizer losses, ids. Draws nothing from `key`."""
    latents = encode_latents(config, params, images, dtype)
    quantized = functions(config.quantizer).quantize(config.quantizer, params.get("quantizer", {}), latents)
    h = hidden(config, params, quantized.codes, dtype)
    return Forward(picture(config, params, h), h, latents, _in_raster(quantized.ids), quantized.losses)


def _in_raster(ids: Int[Array, "B h w *G"]) -> Int[Array, "B N *G"]:
    return ids.reshape(ids.shape[0], -1, *ids.shape[3:])


def last_layer(config: VQGAN, params: Params, forward: Forward) -> tuple[Callable[[Array], Array], Array]:
    """The decoder's last convolution as a function of its kernel, and that kernel: for the adaptive adversarial weight."""
    fixed = jax.lax.stop_gradient((params, forward.hidden))

    def apply(kernel: Array) -> Array:
        decoder = {**fixed[0]["decoder"], "conv_out": {**fixed[0]["decoder"]["conv_out"], "kernel": kernel}}
        return picture(config, {**fixed[0], "decoder": decoder}, fixed[1])

    return apply, fixed[0]["decoder"]["conv_out"]["kernel"]
