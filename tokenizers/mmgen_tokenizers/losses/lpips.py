"""LPIPS, the perceptual distance of Zhang et al. (arXiv 1801.03924) on the features of VGG16.

The weights are not ours to ship: the user names files that hold them, with the names of torchvision's vgg16
(`features.N.weight`) or of the `lpips` package (`net.sliceK.N.weight`), and the linear layers (`linK.model.1.weight`).
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import UserError
from ..files import read_checkpoint

Params = dict[str, Any]

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # VGG16's convolutions by torchvision's numbers
WIDTHS = (64, 128, 256, 512, 512)
SHIFT = (-0.030, -0.088, -0.188)  # mean and deviation of ImageNet for pictures in [-1, 1]
SCALE = (0.458, 0.448, 0.450)


def load(files: str | Sequence[str]) -> Params:
    """Parameters {"conv": {N: {kernel, bias}}, "linear": {K: [C]}} from one or more checkpoint files.

    Raises UserError naming the tensors that the files lack.
    """
    found: dict[str, np.ndarray] = {}
    for file in [files] if isinstance(files, str) else files:
        found |= {_short(name): array for name, array in read_checkpoint(file).items()}
    wanted = _names()
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"LPIPS: {files} lack {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}; give the files that hold VGG16"
            " (features.N.weight, features.N.bias) and the linear layers (linK.model.1.weight)"
        )
    wrong = [f"{name} {found[name].shape}, not {shape}" for name, shape in wanted.items() if found[name].shape != shape]
    if wrong:
        raise UserError(f"LPIPS: {files}: wrong shape of {wrong[0]}; this needs VGG16, not another network")
    return from_reference(found)


def _short(name: str) -> str:
    """features.0.weight, net.slice1.0.weight and slice1.0.weight are one name: conv.0.weight; lin0.model.1.weight: lin.0."""
    name = re.sub(r"^(?:net\.)?(?:features|slice\d)\.(\d+)\.(weight|bias)$", r"conv.\1.\2", name)
    return re.sub(r"^lins?\.?(\d)\.model\.\d\.weight$", r"lin.\1", name)


def _names() -> dict[str, tuple[int, ...]]:
    """Shapes by short name."""
    shapes, inputs = {}, 3
    for k, (stage, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for n in stage:
            shapes |= {f"conv.{n}.weight": (width, inputs, 3, 3), f"conv.{n}.bias": (width,)}
            inputs = width
        shapes[f"lin.{k}"] = (1, width, 1, 1)
    return shapes


def from_reference(found: dict[str, np.ndarray]) -> Params:
    """Short names (see `_names`), PyTorch's layout -> our parameters."""
    conv = {
        str(n): {
            "kernel": jnp.asarray(found[f"conv.{n}.weight"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(found[f"conv.{n}.bias"]),
        }
        for stage in STAGES
        for n in stage
    }
    return {"conv": conv, "linear": {str(k): jnp.asarray(found[f"lin.{k}"].reshape(-1)) for k in range(len(STAGES))}}


def features(params: Params, images: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w C"]]:
    """Activations behind the last ReLU of each stage."""
    x = (images - jnp.array(SHIFT, images.dtype)) / jnp.array(SCALE, images.dtype)
    taps = []
    for k, stage in enumerate(STAGES):
        if k:
            x = _max_pool(x)
        for n in stage:
            p = params["conv"][str(n)]
            x = jax.lax.conv_general_dilated(
                x, p["kernel"].astype(x.dtype), (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + p["bias"].astype(x.dtype))
        taps.append(x)
    return taps


def _max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _unit(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    """Unit length over the channels. Where all are 0 the gradient is 0, not NaN."""
    square = jnp.square(x.astype(jnp.float32)).sum(-1, keepdims=True)
    return x / (jnp.sqrt(jnp.maximum(square, 1e-24)) + 1e-10)


def distance(params: Params, a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
    """LPIPS of pictures in [-1, 1], at least 16 pixels a side; differentiable in both."""
    total = jnp.zeros(a.shape[0])
    for k, (x, y) in enumerate(zip(features(params, a), features(params, b), strict=True)):
        weighted = jnp.square(_unit(x) - _unit(y)) * params["linear"][str(k)]
        total += weighted.sum(-1).mean((1, 2))
    return total
