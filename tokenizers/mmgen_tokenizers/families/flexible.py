"""Ordered tokens of which any first few make a picture: nested dropout on TiTok's ViT (One-D-Piece, arXiv 2501.10064).

In training each picture keeps its first k tokens, k drawn anew, and a learned vector stands for the rest, so the first tokens
learn to carry the most. `causal` makes them the registers of FlexTok (arXiv 2502.13967): none depends on those behind it.
Pure functions over `params`, a plain dict {"encoder", "quant_conv"[, "quantizer"], "post_quant_conv", "absent", "decoder",
"head"} of float32. Pictures are [-1, 1].
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ..layout import TokenLayout
from ..networks import layers
from ..networks.layers import Conv, Draws
from ..networks.vit import TokenDecoder, TokenEncoder, Trunk, check_patches, check_size
from ..quantizers import Quantizer, functions
from ..quantizers.fsq import FSQ
from .titok import PixelHead, of_kernel
from .vqgan import Forward

Params = dict[str, Any]


@dataclass(frozen=True)
class Flexible:
    encoder: Trunk = Trunk()
    decoder: Trunk = Trunk()
    quantizer: Quantizer = (
        FSQ()
    )  # FlexTok's; the codes of a small VQ go to telling tokens apart, which the decoder can do itself
    tokens: int = 256  # ids a picture at most
    image_size: int = 256  # pixels a side; no other, for positions are learned
    patch: int = 16
    causal: bool = True  # a token is found from the picture and the tokens before it (FlexTok); False: from all (One-D-Piece)
    lengths: Literal["uniform", "powers"] = "uniform"  # that training draws from 1 to `tokens`: all, or 1, 2, 4 ... (FlexTok)

    def __post_init__(self):
        check_patches(self.image_size, self.patch)

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch


def layout(config: Flexible, height: int, width: int) -> TokenLayout:
    """Of pictures of height x width pixels. Raises UserError where they are not of the one size."""
    check_size(config.image_size, height, width)
    quantizer = config.quantizer
    return TokenLayout("sequence", 1, config.tokens, quantizer.size, quantizer.groups, ordered=True)


class Network(nnx.Module):
    """All but the quantizer."""

    def __init__(self, config: Flexible, draws: Draws):
        c, dim = config, config.quantizer.dim
        self.encoder = TokenEncoder(c.encoder, c.patch, c.side, c.tokens, c.causal, draws)
        self.quant_conv = Conv(c.encoder.width, dim, 1, draws)
        self.post_quant_conv = Conv(dim, c.decoder.width, 1, draws)
        self.absent = nnx.Param(draws.uniform((c.decoder.width,), c.decoder.width**-0.5))
        self.decoder = TokenDecoder(c.decoder, c.side, c.tokens, draws)
        self.head = PixelHead(c, draws)


@functools.partial(jax.jit, static_argnums=0)
def init(config: Flexible, key: Array) -> Params:
    """Fresh parameters, in one compiled program."""
    key_network, key_codes = jax.random.split(key)
    network = layers.init(Network, key_network, config)
    codes = functions(config.quantizer).init(config.quantizer, key_codes)
    return {**network, "quantizer": codes} if codes else network


def _network(config: Flexible, params: Params) -> Network:
    return layers.bind(Network, {name: p for name, p in params.items() if name != "quantizer"}, config)


def encode_latents(
    config: Flexible, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32
) -> Float[Array, "B N C"]:
    """Pictures in [-1, 1] -> latents (float32) before quantization; the network computes in `dtype`."""
    network = _network(config, params)
    return network.quant_conv(network.encoder(images.astype(dtype))).astype(jnp.float32)


def hidden(
    config: Flexible, params: Params, codes: Float[Array, "B N C"], kept: Bool[Array, "B N"], dtype=jnp.float32
) -> Float[Array, "B H W 3"]:
    """Code vectors, of which only the `kept` ones count -> input of the decoder's last convolution."""
    network = _network(config, params)
    x = network.post_quant_conv(codes.astype(dtype))
    return network.head.hidden(network.decoder(jnp.where(kept[..., None], x, network.absent[...].astype(dtype))))


def picture(config: Flexible, params: Params, hidden: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution: hidden -> picture in [-1, 1] (float32, not clamped)."""
    return _network(config, params).head.picture(hidden).astype(jnp.float32)


def encode(config: Flexible, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Int[Array, "B N *G"]:
    """Pictures in [-1, 1] -> ids."""
    latents = encode_latents(config, params, images, dtype)
    return functions(config.quantizer).nearest(config.quantizer, params.get("quantizer", {}), latents)


def embed(config: Flexible, params: Params, ids: Int[Array, "B N *G"]) -> Float[Array, "B N C"]:
    """Ids -> code vectors as the decoder consumes them."""
    return functions(config.quantizer).lookup(config.quantizer, params.get("quantizer", {}), ids)


def decode(config: Flexible, params: Params, ids: Int[Array, "B N *G"], height: int, width: int, dtype=jnp.float32):
    """Ids, -1 where a token is absent -> pictures float32 [B, H, W, 3] in [-1, 1], not clamped.

    One program serves every length. `height` x `width`, the layout's, say nothing here.
    """
    codes = embed(config, params, jnp.maximum(ids, 0))
    kept = ids.reshape(*ids.shape[:2], -1)[..., 0] >= 0
    return picture(config, params, hidden(config, params, codes, kept, dtype))


def draw_lengths(config: Flexible, key: Array, count: int) -> Int[Array, "count"]:
    """How many tokens each of `count` pictures keeps."""
    if config.lengths == "uniform":
        return jax.random.randint(key, (count,), 1, config.tokens + 1)
    powers = 2 ** np.arange(config.tokens.bit_length())
    return jax.random.choice(key, np.union1d(powers, config.tokens), (count,))


def forward(
    config: Flexible, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32, key: Array | None = None
) -> Forward:
    """The pass of a training step: pictures in [-1, 1] -> reconstruction, quantizer losses, ids.

    `key`: each picture keeps a length drawn from it; None: all tokens.
    """
    latents = encode_latents(config, params, images, dtype)
    quantized = functions(config.quantizer).quantize(config.quantizer, params.get("quantizer", {}), latents)
    B, N = quantized.ids.shape[:2]
    lengths = jnp.full(B, N) if key is None else draw_lengths(config, key, B)
    h = hidden(config, params, quantized.codes, jnp.arange(N) < lengths[:, None], dtype)
    return Forward(picture(config, params, h), h, latents, quantized.ids, quantized.losses)


def last_layer(config: Flexible, params: Params, forward: Forward) -> tuple[Callable[[Array], Array], Array]:
    """The last convolution as a function of its kernel, and that kernel: for the adaptive adversarial weight."""
    return of_kernel("head.conv_out.kernel", lambda p, h: picture(config, p, h), params, forward)
