"""Vector quantization at several scales, coarse to fine: the ids of all of them, concatenated, describe one picture.

Residual (VAR, arXiv 2404.02905): each scale quantizes what the scales before it have left over, and the decoder gets the sum of
all. Not residual (FlexVAR, arXiv 2502.20313): each scale quantizes the shrunk latents by themselves, and the decoder gets one
scale, whichever.

Parameters: {"codebook": [V, C]} of quantizers/vq.py, one for all scales, and where there are any convolutions {"phi": {"0":
{"kernel": [3, 3, C, C], "bias": [C]}, ...}}. All of it computes in float32.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..errors import UserError
from ..networks.layers import SAME
from . import resize, vq
from .vq import VQ, Params


@dataclass(frozen=True)
class MultiScaleVQ(VQ):
    """The defaults are VAR's. The losses are means over the scales: residual, they compare the sum after each scale with the
    latents, otherwise each scale's codes with what they stand for."""

    size: int = 4096
    dim: int = 32
    normalize: bool = False
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # cells a side, for pictures of the training resolution
    residual: bool = True
    phis: int = 4  # convolutions that smooth the enlarged codes, shared by neighbouring scales; 0: none
    phi_ratio: float = 0.5  # phi(h) = (1 - ratio) h + ratio conv(h)

    def __post_init__(self):
        if not self.scales or any(a >= b for a, b in zip((0, *self.scales), self.scales, strict=False)):
            raise UserError(f"scales must grow from 1 or more, they are {list(self.scales)}")
        if self.residual and self.normalize:
            raise UserError("what scales leave over shrinks, codes of length 1 cannot: set normalize=False or residual=False")
        if self.residual and self.backpropagation == "index":
            raise UserError("the sum of all scales goes straight to the latents: residual scales need backpropagation='latent'")
        if self.phis and not self.residual:
            raise UserError("phi smooths the terms of a sum: with residual=False set phis=0")

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each scale where the finest has height x width: in proportion to `scales`."""
        last = self.scales[-1]
        return tuple(tuple(max(1, (2 * s * n + last) // (2 * last)) for n in (height, width)) for s in self.scales)

    def phi_of(self, scale: int) -> int:
        """Which of the shared convolutions a scale uses: the one whose place in [0, 1] is nearest to the scale's.

        The places are VAR's, which has its own for four. Two of its ten scales lie between two places; there the rounding of
        its floats takes the later one, and exact fractions say so on every machine.
        """
        count, place = self.phis, Fraction(scale, max(1, len(self.scales) - 1))
        places = [Fraction(3 + 10 * i, 36) if count == 4 else Fraction(1 + 2 * i, 2 * count) for i in range(count)]
        return min(range(count), key=lambda i: (abs(places[i] - place), -i))


class Quantized(NamedTuple):
    codes: Float[Array, "B h w C"]  # of all scales, for the decoder; straight-through: the gradient goes to the latents
    prefixes: tuple[Float[Array, "B _ _ C"], ...]  # likewise of the first scale, the first two ... all but the last
    ids: Int[Array, "B N"]  # scale by scale, each in raster order
    vectors: Float[Array, "B N C"]  # what was looked up in the codebook
    losses: dict[str, Float[Array, ""]]  # weighted: codebook, commitment and, if its weight is not 0, entropy


def init(config: MultiScaleVQ, key: Array) -> Params:
    """A codebook as vq.init makes it. Each phi starts as the identity: the sum of the enlarged codes."""
    params = vq.init(config, key)
    if config.phis:
        identity = jnp.zeros((3, 3, config.dim, config.dim)).at[1, 1].set(jnp.eye(config.dim))
        params["phi"] = {str(i): {"kernel": identity, "bias": jnp.zeros(config.dim)} for i in range(config.phis)}
    return params


def add_scale(
    config: MultiScaleVQ, params: Params, total: Float[Array, "B h w C"], ids: Int[Array, "B _ _"], scale: int
) -> Float[Array, "B h w C"]:
    """Residual: the sum of the scales so far, and the codes of one more, enlarged and smoothed."""
    h = resize.bicubic(vq.lookup(config, params, ids), total.shape[1:3])
    if config.phis:
        phi, ratio = params["phi"][str(config.phi_of(scale))], config.phi_ratio
        form, exact = ("NHWC", "HWIO", "NHWC"), jax.lax.Precision.HIGHEST
        smooth = jax.lax.conv_general_dilated(h, phi["kernel"], (1, 1), SAME, dimension_numbers=form, precision=exact)
        h = (1 - ratio) * h + ratio * (smooth + phi["bias"])
    return total + h


def quantize(config: MultiScaleVQ, params: Params, latents: Float[Array, "B h w C"]) -> Quantized:
    """Codes (straight-through), ids and losses of a training step."""
    walk = _residual if config.residual else _independent
    codes, steps = walk(config, params, latents.astype(jnp.float32))
    *prefixes, last = codes
    losses = {name: sum(q.losses[name] for q, _ in steps) / len(steps) for name in steps[0][0].losses}
    return Quantized(last, tuple(prefixes), _joined(q.ids for q, _ in steps), _joined(z for _, z in steps), losses)


def _joined(parts) -> Array:
    """[B, h, w, ...] of each scale -> [B, N, ...]."""
    return jnp.concatenate([x.reshape(x.shape[0], -1, *x.shape[3:]) for x in parts], 1)


def _residual(config: MultiScaleVQ, params: Params, f: Float[Array, "B h w C"]):
    """Of each scale: the sum so far (straight-through), what vq.quantize says of it, and what was looked up."""
    fixed, total = jax.lax.stop_gradient, jnp.zeros_like(f)
    sums, steps = [], []
    for scale, grid in enumerate(config.grids(*f.shape[1:3])):
        z = resize.area(f - fixed(total), grid)
        found = vq.quantize(config, params, z)
        total = add_scale(config, params, total, found.ids, scale)
        losses = {
            **found.losses,
            "codebook": config.codebook * jnp.square(total - fixed(f)).mean(),
            "commitment": config.commitment * jnp.square(fixed(total) - f).mean(),
        }
        steps.append((found._replace(losses=losses), z))
        sums.append(f + fixed(total - f))
    return sums, steps


def _independent(config: MultiScaleVQ, params: Params, f: Float[Array, "B h w C"]):
    """Of each scale: its codes (straight-through), what vq.quantize says of it, and what was looked up."""
    shrunk = [resize.area(f, grid) for grid in config.grids(*f.shape[1:3])]
    steps = [(vq.quantize(config, params, z), z) for z in shrunk]
    return [q.codes for q, _ in steps], steps


def split(config: MultiScaleVQ, ids: Int[Array, "B M"], height: int, width: int) -> list[Int[Array, "B _ _"]]:
    """Ids of all scales, or of the first ones, as a grid each."""
    grids, start = [], 0
    for rows, columns in config.grids(height, width):
        if start < ids.shape[1]:
            grids.append(ids[:, start : start + rows * columns].reshape(-1, rows, columns))
        start += rows * columns
    return grids


def prefixes(
    config: MultiScaleVQ, params: Params, ids: Int[Array, "B M"], height: int, width: int
) -> list[Float[Array, "B _ _ C"]]:
    """Ids of all scales, or of the first ones -> what the decoder gets after the first scale, after the second ...

    Residual: sums [B, height, width, C]. Otherwise each scale's own codes, as small as it is.
    """
    if not config.residual:
        return [vq.lookup(config, params, grid) for grid in split(config, ids, height, width)]
    return list(jnp.moveaxis(_sums(config, params, ids, height, width), 1, 0))


def _sums(config: MultiScaleVQ, params: Params, ids: Int[Array, "B M"], height: int, width: int) -> Float[Array, "B S H W C"]:
    """What `add_scale` gives after each of the first scales, of all of them at once: a TPU's compiler takes seconds for each
    small convolution or resize."""
    codes = [vq.lookup(config, params, grid) for grid in split(config, ids, height, width)]
    h = resize.all_bicubic(codes, (height, width))
    if config.phis:
        phis = [params["phi"][str(config.phi_of(scale))] for scale in range(len(codes))]
        kernel, bias = (jnp.stack([phi[name] for phi in phis]) for name in ("kernel", "bias"))
        edged = jnp.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [edged[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        kernel = kernel.reshape(len(phis), -1, config.dim)
        smooth = jnp.einsum("bshwk,skc->bshwc", jnp.concatenate(taps, -1), kernel, precision=jax.lax.Precision.HIGHEST)
        h = (1 - config.phi_ratio) * h + config.phi_ratio * (smooth + bias[:, None, None])
    return jnp.cumsum(h, axis=1)


def next_input(config: MultiScaleVQ, params: Params, ids: Int[Array, "B M"], height: int, width: int) -> Float[Array, "B L C"]:
    """Ids of the first scales -> what a next-scale transformer reads at the sites of the second scale up to the one after them.

    Residual: the sum so far, shrunk to the next scale. Otherwise the codes of a scale, enlarged to the next.
    """
    grids = config.grids(height, width)[1:]
    if config.residual:
        return _joined(resize.all_area(_sums(config, params, ids, height, width), grids))
    found = prefixes(config, params, ids, height, width)
    return _joined(resize.bicubic(x, grid) for x, grid in zip(found, grids, strict=False))
