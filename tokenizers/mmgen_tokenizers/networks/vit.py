"""Vision transformers (arXiv 2010.11929) as encoders and decoders of tokenizers, in two forms around the same trunk.

Over a grid: `Encoder` and `Decoder`, one vector a patch, with the interface of cnn.py's (BSQ-ViT, ViT-VQGAN). With latent
tokens: `TokenEncoder` and `TokenDecoder`, a sequence that has no place in the picture (TiTok and its descendants). Positions
are learned, so a network knows one size of picture. Parameters are plain nested dicts, e.g.
`transformer.blocks.3.attention.qkv.kernel`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from ..errors import UserError
from .layers import Conv, Draws, depth_to_space, space_to_depth

EPS = 1e-5  # of layer norm: PyTorch's, not Flax's


@dataclass(frozen=True)
class Trunk:
    """A stack of transformer blocks. TiTok's S, B, L are (512, 8, 8), (768, 12, 12), (1024, 24, 16)."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    mlp: int = 4  # hidden width of a block's MLP, in widths

    def __post_init__(self):
        if self.width % self.heads:
            fits = max(n for n in range(1, self.heads + 1) if self.width % n == 0)
            raise UserError(f"network: width {self.width} does not divide into heads={self.heads}; use heads={fits}")


@dataclass(frozen=True)
class ViT:
    """Encoder and decoder over the grid of patches."""

    trunk: Trunk = Trunk(768, 12, 12)
    image_size: int = 256  # pixels a side: the one that the positions are learned for
    patch: int = 8  # pixels a side of a patch, which is one token
    head: int = 3072  # hidden width of the MLP that draws a patch

    def __post_init__(self):
        check_patches(self.image_size, self.patch)

    @property
    def factor(self) -> int:
        return self.patch

    @property
    def latent(self) -> int:
        return self.trunk.width

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch


def check_patches(image_size: int, patch: int) -> None:
    if image_size % patch:
        near = max(patch, round(image_size / patch) * patch)
        raise UserError(f"network: image_size {image_size} is not a multiple of patch {patch}; use {near}")


def check_size(image_size: int, height: int, width: int) -> None:
    """Raises UserError where pictures of height x width are not of the size that positions were learned for."""
    if (height, width) != (image_size, image_size):
        raise UserError(
            f"pictures of {height} x {width}: this tokenizer knows {image_size} x {image_size} only; resize or crop them"
        )


class LayerNorm(nnx.Module):
    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention of all slots to all, or to those that `mask` allows."""

    def __init__(self, c: Trunk, draws: Draws):
        self.qkv = Conv(c.width, 3 * c.width, 1, draws)
        self.out = Conv(c.width, c.width, 1, draws)
        self.heads = c.heads

    def __call__(self, x: Float[Array, "B S D"], mask: Bool[np.ndarray, "S S"] | None) -> Float[Array, "B S D"]:
        B, S, D = x.shape
        q, k, v = self.qkv(x).reshape(B, S, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)  # each [B, H, S, K]
        scores = jnp.einsum("bhsk,bhtk->bhst", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        mixed = jnp.einsum("bhst,bhtk->bhsk", jax.nn.softmax(scores).astype(x.dtype), v)
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(B, S, D))


class Block(nnx.Module):
    def __init__(self, c: Trunk, draws: Draws):
        self.norm1, self.norm2 = LayerNorm(c.width), LayerNorm(c.width)
        self.attention = Attention(c, draws)
        self.up = Conv(c.width, c.mlp * c.width, 1, draws)
        self.down = Conv(c.mlp * c.width, c.width, 1, draws)

    def __call__(self, x: Float[Array, "B S D"], mask: Bool[np.ndarray, "S S"] | None) -> Float[Array, "B S D"]:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
    """Blocks between two norms."""

    def __init__(self, c: Trunk, draws: Draws):
        self.norm_in, self.norm_out = LayerNorm(c.width), LayerNorm(c.width)
        self.blocks = nnx.Dict({str(i): Block(c, draws) for i in range(c.layers)})
        self.count = c.layers

    def __call__(self, x: Float[Array, "B S D"], mask: Bool[np.ndarray, "S S"] | None = None) -> Float[Array, "B S D"]:
        x = self.norm_in(x)
        for i in range(self.count):
            x = self.blocks[str(i)](x, mask)
        return self.norm_out(x)


def _learned(draws: Draws, *shape: int) -> nnx.Param:
    """Positions or tokens [..., D], of deviation 1/sqrt(D) as TiTok's: a third of it, and training stalls for long."""
    return nnx.Param(draws.uniform(shape, (3 / shape[-1]) ** 0.5))


def _patches(x: Float[Array, "B H W 3"], size: int) -> Float[Array, "B P D"]:
    """The patches in raster order, the pixels of each ordered (dy, dx, channel)."""
    x = space_to_depth(x, size)
    return x.reshape(x.shape[0], -1, x.shape[-1])


class Encoder(nnx.Module):
    def __init__(self, c: ViT, draws: Draws):
        self.patch = Conv(3 * c.patch**2, c.trunk.width, 1, draws, bias=False)
        self.positions = _learned(draws, c.side**2, c.trunk.width)
        self.transformer = Transformer(c.trunk, draws)
        self.size, self.side = c.patch, c.side

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        x = self.patch(_patches(x, self.size)) + self.positions[...].astype(x.dtype)
        return self.transformer(x).reshape(x.shape[0], self.side, self.side, -1)


class Decoder(nnx.Module):
    """`hidden` gives the input of the last layer, `picture` applies it, as in cnn.py."""

    def __init__(self, c: ViT, draws: Draws):
        self.positions = _learned(draws, c.side**2, c.trunk.width)
        self.transformer = Transformer(c.trunk, draws)
        self.ffn = Conv(c.trunk.width, c.head, 1, draws)
        self.conv_out = Conv(c.head, 3 * c.patch**2, 1, draws)
        self.size = c.patch

    def hidden(self, z: Float[Array, "B h w D"]) -> Float[Array, "B h w F"]:
        x = z.reshape(z.shape[0], -1, z.shape[-1]) + self.positions[...].astype(z.dtype)
        return jnp.tanh(self.ffn(self.transformer(x))).reshape(*z.shape[:3], -1)

    def picture(self, hidden: Float[Array, "B h w F"]) -> Float[Array, "B H W 3"]:
        return depth_to_space(self.conv_out(hidden), self.size)


class TokenEncoder(nnx.Module):
    """A picture of side x side patches -> N latent tokens (TiTok, arXiv 2406.07550).

    The latent tokens stand behind a class token and the patches, and read them. `causal`: token i reads the patches and the
    tokens up to i, the patches read each other only (the registers of FlexTok, arXiv 2502.13967).
    """

    def __init__(self, c: Trunk, patch: int, side: int, tokens: int, causal: bool, draws: Draws):
        self.patch = Conv(3 * patch**2, c.width, 1, draws)
        self.class_token = _learned(draws, 1, c.width)
        self.positions = _learned(draws, 1 + side**2, c.width)
        self.latents = _learned(draws, tokens, c.width)
        self.latent_positions = _learned(draws, tokens, c.width)
        self.transformer = Transformer(c, draws)
        self.size, self.tokens, self.causal = patch, tokens, causal

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        patches = self.patch(_patches(x, self.size))
        first = _with_class(self.class_token, patches, self.positions)
        latents = (self.latents[...] + self.latent_positions[...]).astype(x.dtype)
        x = jnp.concatenate([first, jnp.broadcast_to(latents, (x.shape[0], *latents.shape))], 1)
        return self.transformer(x, registers_mask(first.shape[1], self.tokens) if self.causal else None)[:, -self.tokens :]


def registers_mask(pixels: int, registers: int) -> Bool[np.ndarray, "S S"]:
    """[slot that reads, slot that is read] of `pixels` slots of the picture, then registers in order."""
    mask = np.tri(pixels + registers, dtype=bool)
    mask[:pixels, :pixels] = True
    return mask


def _with_class(token: nnx.Param, x: Float[Array, "B P D"], positions: nnx.Param) -> Float[Array, "B 1+P D"]:
    token = jnp.broadcast_to(token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
    return jnp.concatenate([token, x], 1) + positions[...].astype(x.dtype)


class TokenDecoder(nnx.Module):
    """N latent tokens -> a vector for each of side x side patches: mask tokens in their place read the latent tokens."""

    def __init__(self, c: Trunk, side: int, tokens: int, draws: Draws):
        self.class_token = _learned(draws, 1, c.width)
        self.mask = _learned(draws, 1, 1, c.width)
        self.positions = _learned(draws, 1 + side**2, c.width)
        self.latent_positions = _learned(draws, tokens, c.width)
        self.transformer = Transformer(c, draws)
        self.side = side

    def __call__(self, z: Float[Array, "B N D"]) -> Float[Array, "B h w D"]:
        B, _, D = z.shape
        masks = jnp.broadcast_to(self.mask[...].astype(z.dtype), (B, self.side**2, D))
        first = _with_class(self.class_token, masks, self.positions)
        x = jnp.concatenate([first, z + self.latent_positions[...].astype(z.dtype)], 1)
        return self.transformer(x)[:, 1 : 1 + self.side**2].reshape(B, self.side, self.side, D)
