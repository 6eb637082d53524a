"""The convolutional encoder and decoder of VQGAN (arXiv 2012.09841) and of the tokenizers that descend from it.

One network with switches: taming, LlamaGen, VAR, IBQ, MaskGIT, Open-MAGVIT2 and their like are configurations of it. Levels are
counted from the highest resolution (level 0) to the lowest in the encoder AND in the decoder; each level but the
lowest halves (doubles) the resolution. Parameters are plain nested dicts, e.g.
`levels.4.blocks.0.conv1.kernel`, `middle.attention.query.kernel`.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..errors import UserError
from .layers import SAME, Conv, Draws, GroupNorm, depth_to_space, space_to_depth


@dataclass(frozen=True)
class CNN:
    """Shape of the encoder and decoder.

    The defaults are LlamaGen's VQ-16 (and taming's f16); what the published tokenizers change is noted at each field.
    """

    channels: int = 128  # VAR 160, WeTok 256
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # channels of level i are channels * multipliers[i]
    encoder_blocks: int = 2  # residual blocks a level
    decoder_blocks: int = 3  # MaskGIT 2
    attention_levels: tuple[int, ...] = (4,)  # an attention behind each block of these levels; Chameleon, MaskGIT none
    decoder_attention_levels: tuple[int, ...] | None = None  # None: as in the encoder; MAR none
    middle_blocks: int = 2  # Open-MAGVIT2 4
    middle_attention: bool = True  # behind the first block of the middle; MaskGIT False
    fused_qkv: bool = False  # one projection for query, key and value: VAR
    bias: bool = True  # of the residual blocks and the encoder's first convolution; MaskGIT, Open-MAGVIT2 False
    shortcut: Literal["input", "output"] = "input"  # where channels change: h + conv(x), or MaskGIT's h + conv(h) without x
    down: Literal["asymmetric", "symmetric", "average"] = "asymmetric"  # Open-MAGVIT2 symmetric, MaskGIT average
    up: Literal["nearest", "depth_to_space"] = "nearest"  # Open-MAGVIT2 depth_to_space
    adaptive: bool = False  # each decoder level starts with a group norm modulated by the latent: Open-MAGVIT2
    latent: int = 256  # channels between encoder and decoder
    latent_kernel: Literal[1, 3] = 3  # of the encoder's last convolution; MaskGIT, Open-MAGVIT2 1
    groups: int = 32  # of group norm
    eps: float = 1e-6
    stem: int = 1  # space-to-depth in front, depth-to-space behind: small pictures, fast on a CPU

    def __post_init__(self):
        lowest = len(self.multipliers) - 1
        for width in {self.channels, *self.widths}:
            if width % self.groups:
                fits = max(n for n in range(1, self.groups + 1) if all(w % n == 0 for w in (self.channels, *self.widths)))
                raise UserError(f"network: {width} channels do not divide into groups={self.groups}; use groups={fits}")
        for level in (*self.attention_levels, *self.up_attention_levels):
            if not 0 <= level <= lowest:
                raise UserError(f"network: there is no level {level} for attention_levels; levels are 0 to {lowest}")

    @property
    def factor(self) -> int:
        """Pixels a token, on a side."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def up_attention_levels(self) -> tuple[int, ...]:
        return self.attention_levels if self.decoder_attention_levels is None else self.decoder_attention_levels


class ResBlock(nnx.Module):
    def __init__(self, c: CNN, inputs: int, outputs: int, draws: Draws):
        self.norm1 = GroupNorm(inputs, c.groups, c.eps)
        self.conv1 = Conv(inputs, outputs, 3, draws, bias=c.bias)
        self.norm2 = GroupNorm(outputs, c.groups, c.eps)
        self.conv2 = Conv(outputs, outputs, 3, draws, bias=c.bias)
        self.on_output = c.shortcut == "output"
        changes = inputs != outputs
        self.shortcut = Conv(outputs if self.on_output else inputs, outputs, 1, draws, bias=c.bias) if changes else None

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        if self.shortcut is None:
            return x + h
        return h + self.shortcut(h if self.on_output else x)


class Attention(nnx.Module):
    """One head over all pixels."""

    def __init__(self, c: CNN, channels: int, draws: Draws):
        self.norm = GroupNorm(channels, c.groups, c.eps)
        if c.fused_qkv:
            self.qkv = Conv(channels, 3 * channels, 1, draws)
        else:
            self.query, self.key, self.value = (Conv(channels, channels, 1, draws) for _ in range(3))
        self.out = Conv(channels, channels, 1, draws)
        self.fused = c.fused_qkv

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        B, H, W, C = x.shape
        h = self.norm(x).reshape(B, H * W, C)
        q, k, v = jnp.split(self.qkv(h), 3, -1) if self.fused else (self.query(h), self.key(h), self.value(h))
        scores = jnp.einsum("bsc,btc->bst", q, k, preferred_element_type=jnp.float32) * C**-0.5
        h = jnp.einsum("bst,btc->bsc", jax.nn.softmax(scores).astype(x.dtype), v)
        return x + self.out(h).reshape(B, H, W, C)


class Down(nnx.Module):
    """Half the resolution. "asymmetric" pads right and bottom only, "symmetric" all around."""

    def __init__(self, c: CNN, channels: int, draws: Draws):
        padding = ((0, 1), (0, 1)) if c.down == "asymmetric" else SAME
        self.conv = None if c.down == "average" else Conv(channels, channels, 3, draws, stride=2, padding=padding)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        if self.conv is not None:
            return self.conv(x)
        B, H, W, C = x.shape
        return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


class Up(nnx.Module):
    def __init__(self, c: CNN, channels: int, draws: Draws):
        self.nearest = c.up == "nearest"
        self.conv = Conv(channels, channels if self.nearest else 4 * channels, 3, draws, doubles=self.nearest)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W C"]:
        return self.conv(x) if self.nearest else depth_to_space(self.conv(x), 2)


class AdaptiveNorm(nnx.Module):
    """Group norm whose scale and offset come from the statistics of the latent (Open-MAGVIT2, arXiv 2409.04410)."""

    def __init__(self, c: CNN, channels: int, draws: Draws):
        self.norm = GroupNorm(channels, c.groups, c.eps, affine=False)
        self.scale = Conv(c.latent, channels, 1, draws)
        self.offset = Conv(c.latent, channels, 1, draws)
        self.eps = c.eps

    def __call__(self, x: Float[Array, "B H W C"], z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        z32 = z.astype(jnp.float32)
        deviation = jnp.sqrt(z32.var((1, 2), ddof=1, keepdims=True) + self.eps)  # n - 1, as in the reference
        scale, offset = self.scale(deviation), self.offset(z32.mean((1, 2), keepdims=True))
        return self.norm(x) * scale.astype(x.dtype) + offset.astype(x.dtype)


class Level(nnx.Module):
    """The residual blocks of one resolution, each followed by its attention if there is one."""

    def __init__(self, c: CNN, inputs: int, outputs: int, blocks: int, attention: bool, draws: Draws):
        names = [str(i) for i in range(blocks)]
        self.blocks = nnx.Dict({n: ResBlock(c, outputs if i else inputs, outputs, draws) for i, n in enumerate(names)})
        self.attention = nnx.Dict({n: Attention(c, outputs, draws) for n in names}) if attention else None
        self.count = blocks

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
        for name in map(str, range(self.count)):
            x = self.blocks[name](x)
            if self.attention is not None:
                x = self.attention[name](x)
        return x


class Middle(nnx.Module):
    def __init__(self, c: CNN, draws: Draws):
        width = c.widths[-1]
        self.blocks = nnx.Dict({str(i): ResBlock(c, width, width, draws) for i in range(c.middle_blocks)})
        self.attention = Attention(c, width, draws) if c.middle_attention else None
        self.count = c.middle_blocks

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        for i in range(self.count):
            x = self.blocks[str(i)](x)
            if i == 0 and self.attention is not None:
                x = self.attention(x)
        return x


class Encoder(nnx.Module):
    def __init__(self, c: CNN, draws: Draws):
        widths, lowest = c.widths, len(c.widths) - 1
        self.conv_in = Conv(3 * c.stem**2, c.channels, 3, draws, bias=c.bias)
        inputs = (c.channels, *widths)
        self.levels = nnx.Dict(
            {str(i): Level(c, inputs[i], w, c.encoder_blocks, i in c.attention_levels, draws) for i, w in enumerate(widths)}
        )
        self.downs = nnx.Dict({str(i): Down(c, widths[i], draws) for i in range(lowest)})
        self.middle = Middle(c, draws)
        self.norm_out = GroupNorm(widths[-1], c.groups, c.eps)
        self.conv_out = Conv(widths[-1], c.latent, c.latent_kernel, draws)
        self.stem, self.lowest = c.stem, lowest

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w Z"]:
        x = self.conv_in(space_to_depth(x, self.stem))
        for i in range(self.lowest + 1):
            x = self.levels[str(i)](x)
            if i < self.lowest:
                x = self.downs[str(i)](x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """In two parts: `hidden` gives the input of the last convolution, `picture` applies it.

    The adaptive weight of the adversarial loss needs gradients at that convolution and nowhere else.
    """

    def __init__(self, c: CNN, draws: Draws):
        widths, lowest = c.widths, len(c.widths) - 1
        inputs = (*widths[1:], widths[-1])  # level i reads what level i + 1 gives
        self.conv_in = Conv(c.latent, widths[-1], 3, draws)
        self.middle = Middle(c, draws)
        levels = range(lowest, -1, -1)
        self.levels = nnx.Dict(
            {str(i): Level(c, inputs[i], widths[i], c.decoder_blocks, i in c.up_attention_levels, draws) for i in levels}
        )
        self.adaptive = nnx.Dict({str(i): AdaptiveNorm(c, inputs[i], draws) for i in levels}) if c.adaptive else None
        self.ups = nnx.Dict({str(i): Up(c, widths[i], draws) for i in range(1, lowest + 1)})
        self.norm_out = GroupNorm(widths[0], c.groups, c.eps)
        self.conv_out = Conv(widths[0], 3 * c.stem**2, 3, draws)
        self.stem, self.lowest = c.stem, lowest

    def hidden(self, z: Float[Array, "B h w Z"]) -> Float[Array, "B H W C"]:
        x = self.middle(self.conv_in(z))
        for i in range(self.lowest, -1, -1):
            if self.adaptive is not None:
                x = self.adaptive[str(i)](x, z)
            x = self.levels[str(i)](x)
            if i:
                x = self.ups[str(i)](x)
        return jax.nn.silu(self.norm_out(x))

    def picture(self, hidden: Float[Array, "B H W C"]) -> Float[Array, "B H W 3"]:
        return depth_to_space(self.conv_out(hidden), self.stem)
