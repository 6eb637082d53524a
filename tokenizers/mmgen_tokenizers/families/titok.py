"""TiTok (arXiv 2406.07550): a picture as a short sequence of tokens that have no place in it. ViT, vector quantizer, ViT.

Pure functions over `params`, a plain dict {"encoder", "quant_conv"[, "quantizer"], "post_quant_conv", "decoder", "head"} of
float32. Pictures are [-1, 1] on this side; the networks see and draw [0, 1].
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..errors import UserError
from ..files import flatten, unflatten
from ..layout import TokenLayout
from ..networks import cnn, layers
from ..networks.cnn import CNN
from ..networks.layers import Conv, Draws, depth_to_space
from ..networks.vit import TokenDecoder, TokenEncoder, Trunk, check_patches, check_size
from ..quantizers import Quantizer, functions
from ..quantizers.vq import VQ
from .vqgan import Forward

Params = dict[str, Any]
MASKGIT = CNN(decoder_blocks=2, attention_levels=(), middle_attention=False, bias=False, shortcut="output", down="average",
              latent_kernel=1)  # fmt: skip


@dataclass(frozen=True)
class Proxy:
    """The picture is drawn by the decoder of another VQGAN (MaskGIT's), whose codes are predicted patch by patch."""

    codes: int = 1024
    network: CNN = MASKGIT


@dataclass(frozen=True)
class TiTok:
    encoder: Trunk = Trunk()
    decoder: Trunk = Trunk()
    quantizer: Quantizer = VQ(size=8192, dim=64, normalize=False)
    tokens: int = 128  # ids a picture
    image_size: int = 256  # pixels a side; no other, for positions are learned
    patch: int = 16
    proxy: Proxy | None = None  # None: a linear layer and a convolution draw the pixels
    scrambled: bool = False  # latents are reshaped where they should be transposed, as in the first published weights

    def __post_init__(self):
        check_patches(self.image_size, self.patch)
        if self.proxy is not None and self.proxy.network.factor != self.patch:
            factor = self.proxy.network.factor
            raise UserError(f"a patch is one code of the proxy's network: patch {self.patch} must be its factor, {factor}")

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch


def layout(config: TiTok, height: int, width: int) -> TokenLayout:
    """Of pictures of height x width pixels. Raises UserError where they are not of the one size."""
    check_size(config.image_size, height, width)
    return TokenLayout("sequence", 1, config.tokens, config.quantizer.size, config.quantizer.groups)


class PixelHead(nnx.Module):
    """A linear layer draws each patch, a convolution smooths the seams."""

    def __init__(self, config: Any, draws: Draws):
        self.ffn = Conv(config.decoder.width, 3 * config.patch**2, 1, draws)
        self.conv_out = Conv(3, 3, 3, draws)
        self.size = config.patch

    def hidden(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W 3"]:
        return depth_to_space(self.ffn(x), self.size)

    def picture(self, hidden: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        return self.conv_out(hidden)


class ProxyHead(nnx.Module):
    """Scores of the proxy's codes; their mean by softmax goes through the proxy's decoder."""

    def __init__(self, config: TiTok, draws: Draws):
        width, proxy = config.decoder.width, config.proxy
        self.ffn = Conv(width, 2 * width, 1, draws)
        self.scores = Conv(2 * width, proxy.codes, 1, draws)
        self.codebook = nnx.Param(draws.uniform((proxy.codes, proxy.network.latent), 1 / proxy.codes))
        self.decoder = cnn.Decoder(proxy.network, draws)

    def hidden(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
        chosen = jax.nn.softmax(self.scores(jnp.tanh(self.ffn(x))).astype(jnp.float32))
        return self.decoder.hidden(chosen.astype(x.dtype) @ self.codebook[...].astype(x.dtype))

    def picture(self, hidden: Float[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
        return self.decoder.picture(hidden)


class Network(nnx.Module):
    """All but the quantizer."""

    def __init__(self, config: TiTok, draws: Draws):
        c, dim = config, config.quantizer.dim
        self.encoder = TokenEncoder(c.encoder, c.patch, c.side, c.tokens, False, draws)
        self.quant_conv = Conv(c.encoder.width, dim, 1, draws)
        self.post_quant_conv = Conv(dim, c.decoder.width, 1, draws)
        self.decoder = TokenDecoder(c.decoder, c.side, c.tokens, draws)
        self.head = (PixelHead if c.proxy is None else ProxyHead)(c, draws)


@functools.partial(jax.jit, static_argnums=0)
def init(config: TiTok, key: Array) -> Params:
    """Fresh parameters, in one compiled program."""
    key_network, key_codes = jax.random.split(key)
    network = layers.init(Network, key_network, config)
    codes = functions(config.quantizer).init(config.quantizer, key_codes)
    return {**network, "quantizer": codes} if codes else network


def _network(config: TiTok, params: Params) -> Network:
    return layers.bind(Network, {name: p for name, p in params.items() if name != "quantizer"}, config)


def encode_latents(config: TiTok, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Float[Array, "B N C"]:
    """Pictures in [-1, 1] -> latents (float32) before quantization; the network computes in `dtype`."""
    network = _network(config, params)
    x = network.encoder(((images + 1) / 2).astype(dtype))
    if config.scrambled:  # [B, N, D] read as [B, D, N]: each latent mixes values of several tokens
        x = x.reshape(x.shape[0], x.shape[2], x.shape[1]).swapaxes(1, 2)
    return network.quant_conv(x).astype(jnp.float32)


def hidden(config: TiTok, params: Params, codes: Float[Array, "B N C"], dtype=jnp.float32) -> Float[Array, "B X Y D"]:
    """Code vectors -> input of the decoder's last convolution."""
    network = _network(config, params)
    return network.head.hidden(network.decoder(network.post_quant_conv(codes.astype(dtype))))


def picture(config: TiTok, params: Params, hidden: Float[Array, "B X Y D"]) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution: hidden -> picture in [-1, 1] (float32, not clamped)."""
    return _network(config, params).head.picture(hidden).astype(jnp.float32) * 2 - 1


def encode(config: TiTok, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Int[Array, "B N *G"]:
    """Pictures in [-1, 1] -> ids."""
    latents = encode_latents(config, params, images, dtype)
    return functions(config.quantizer).nearest(config.quantizer, params.get("quantizer", {}), latents)


def embed(config: TiTok, params: Params, ids: Int[Array, "B N *G"]) -> Float[Array, "B N C"]:
    """Ids -> code vectors as the decoder consumes them."""
    return functions(config.quantizer).lookup(config.quantizer, params.get("quantizer", {}), ids)


def decode(config: TiTok, params: Params, ids: Int[Array, "B N *G"], height: int, width: int, dtype=jnp.float32):
    """Ids -> pictures float32 [B, H, W, 3] in [-1, 1], not clamped. `height` x `width`, the layout's, say nothing here."""
    return picture(config, params, hidden(config, params, embed(config, params, ids), dtype))


def forward(
    config: TiTok, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32, key: Array | None = None
) -> Forward:
    """The pass of a training step: pictures in [-1, 1] -> reconstruction, quantizer losses, ids. Draws nothing from `key`."""
    latents = encode_latents(config, params, images, dtype)
    quantized = functions(config.quantizer).quantize(config.quantizer, params.get("quantizer", {}), latents)
    h = hidden(config, params, quantized.codes, dtype)
    return Forward(picture(config, params, h), h, latents, quantized.ids, quantized.losses)


def last_layer(config: TiTok, params: Params, forward: Forward) -> tuple[Callable[[Array], Array], Array]:
    """The last convolution as a function of its kernel, and that kernel: for the adaptive adversarial weight."""
    name = "head.conv_out.kernel" if config.proxy is None else "head.decoder.conv_out.kernel"
    return of_kernel(name, lambda p, h: picture(config, p, h), params, forward)


def of_kernel(name: str, draw: Callable, params: Params, forward: Forward) -> tuple[Callable[[Array], Array], Array]:
    """draw(params, hidden) as a function of the parameter `name` alone, and that parameter."""
    fixed, hidden = flatten(jax.lax.stop_gradient(params)), jax.lax.stop_gradient(forward.hidden)
    return lambda kernel: draw(unflatten({**fixed, name: kernel}), hidden), fixed[name]
