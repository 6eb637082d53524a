"""InceptionV3 (arXiv 1512.00567) as its graph of December 2015 computes it, in whose features FID is defined.

The weights are not ours to ship: the user names the graph itself (classify_image_graph_def.pb) or a file with its tensors under
torchvision's names (pt_inception-2015-12-05-6726825d.pth). torchvision's own weights are another network, of 1,000 classes, and
give other numbers.
Where the graph differs from torchvision's network: averages leave out the padding, the last block's pool is a maximum, and
pictures are resized as TensorFlow 1 did.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ..errors import UserError
from ..files import read_checkpoint
from .graph_def import read_constants

SIZE = 299  # pixels a side that pictures are resized to
EPSILON = 1e-3  # of the batch norms
SPATIAL = "Mixed_6d.branch1x1"  # in the graph: mixed_6/conv
CHANNELS = 7  # of it that sFID takes
CLASSES = 1008

Params = dict[str, Any]


class Conv(NamedTuple):
    """Convolution, batch norm, ReLU. `valid`: without padding."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False


class Pool(NamedTuple):
    """3 x 3. The strided one has no padding."""

    kind: str  # "max" or "average"
    stride: int = 1


Branch = Sequence[Conv | Pool | tuple[Conv, ...]]  # a tuple: side by side, concatenated

REDUCE = Pool("max", 2)
STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, True), Conv("Conv2d_2a_3x3", 32, (3, 3), 1, True), Conv("Conv2d_2b_3x3", 64, (3, 3)),
    REDUCE, Conv("Conv2d_3b_1x1", 80, (1, 1)), Conv("Conv2d_4a_3x3", 192, (3, 3), 1, True), REDUCE,
)  # fmt: skip


def _a(pool: int) -> list[Branch]:
    double = [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))]
    return [
        [Conv("branch1x1", 64)], [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))], double,
        [Pool("average"), Conv("branch_pool", pool)],
    ]  # fmt: skip


def _b() -> list[Branch]:
    double = [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2, True)]
    return [[Conv("branch3x3", 384, (3, 3), 2, True)], double, [REDUCE]]


def _c(width: int) -> list[Branch]:
    across, down = (1, 7), (7, 1)
    single = [Conv("branch7x7_1", width), Conv("branch7x7_2", width, across), Conv("branch7x7_3", 192, down)]
    double = [
        Conv("branch7x7dbl_1", width), Conv("branch7x7dbl_2", width, down), Conv("branch7x7dbl_3", width, across),
        Conv("branch7x7dbl_4", width, down), Conv("branch7x7dbl_5", 192, across),
    ]  # fmt: skip
    return [[Conv("branch1x1", 192)], single, double, [Pool("average"), Conv("branch_pool", 192)]]


def _d() -> list[Branch]:
    seven = [
        Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2, True),
    ]  # fmt: skip
    return [[Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, True)], seven, [REDUCE]]


def _e(pool: str) -> list[Branch]:
    def split(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    single = [Conv("branch3x3_1", 384), split("branch3x3_2")]
    double = [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)), split("branch3x3dbl_3")]
    return [[Conv("branch1x1", 320)], single, double, [Pool(pool), Conv("branch_pool", 192)]]


BLOCKS: dict[str, list[Branch]] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _b(), "Mixed_6b": _c(128), "Mixed_6c": _c(160),
    "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _d(), "Mixed_7b": _e("average"), "Mixed_7c": _e("max"),
}  # fmt: skip


# Weights -------------------------------------------------------------------------------------------------------------


def shapes(thin: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the file's tensors. `thin` divides all widths."""
    found: dict[str, tuple[int, ...]] = {}

    def follow(prefix: str, steps: Branch, width: int) -> int:
        for step in steps:
            if isinstance(step, Conv):
                out, name = step.out // thin, prefix + step.name
                found[f"{name}.conv.weight"] = (out, width, *step.kernel)
                found.update({f"{name}.bn.{k}": (out,) for k in ("weight", "bias", "running_mean", "running_var")})
                width = out
            elif isinstance(step, tuple) and not isinstance(step, Pool):
                width = sum(follow(prefix, [conv], width) for conv in step)
        return width

    width = follow("", STEM, 3)
    for name, branches in BLOCKS.items():
        width = sum(follow(f"{name}.", branch, width) for branch in branches)
    return found | {"fc.weight": (CLASSES, width)}


def graph_names() -> dict[str, str]:
    """Our name of each convolution -> its name in the graph. There blocks are mixed, mixed_1, ...; a branch of one convolution
    stands alone, the others are tower, tower_1, ...; what stands side by side within them is in `mixed` again."""

    def numbered(name: str, number: int) -> str:
        return f"{name}_{number}" if number else name

    convs = [step for step in STEM if isinstance(step, Conv)]
    found = {conv.name: numbered("conv", i) for i, conv in enumerate(convs)}
    for place, (block, branches) in enumerate(BLOCKS.items()):
        scope, towers = numbered("mixed", place), 0
        for branch in branches:
            convs = [step for step in branch if not isinstance(step, Pool)]
            if not convs:
                continue
            alone = len(convs) == len(branch) == 1
            inside = scope if alone else f"{scope}/{numbered('tower', towers)}"
            towers += not alone
            for i, step in enumerate(convs):
                split = [(f"{inside}/mixed", conv) for conv in step] if not isinstance(step, Conv) else [(inside, step)]
                for k, (where, conv) in enumerate(split):
                    found[f"{block}.{conv.name}"] = f"{where}/{numbered('conv', k if len(split) > 1 else i)}"
    return found


def from_graph(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's constants -> a file's tensors (see `shapes`); those that the graph does not have are left out."""
    found = {"fc.weight": constants["softmax/weights"].T} if "softmax/weights" in constants else {}
    parts = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for ours, scope in graph_names().items():
        kernel = constants.get(f"{scope}/conv2d_params")
        if kernel is not None and kernel.ndim == 4:
            found[f"{ours}.conv.weight"] = kernel.transpose(3, 2, 0, 1)
        names = {f"{ours}.bn.{part}": f"{scope}/batchnorm/{theirs}" for part, theirs in parts.items()}
        found |= {name: constants[theirs] for name, theirs in names.items() if theirs in constants}
    return found


def load(file: str | Path) -> Params:
    """Parameters {name: {"kernel" [h, w, in, out], "bias" [out]}} of each convolution, its batch norm folded in, and
    {"fc": {"kernel"}}; see the top of this module for what `file` holds.

    A network whose widths are all divided by one number is read too (tests use one). Raises UserError that names the tensors
    which are missing or of another shape.
    """
    state = from_graph(read_constants(file)) if Path(file).suffix == ".pb" else read_checkpoint(file)
    first = state.get("Conv2d_1a_3x3.conv.weight", np.zeros(32))
    wanted = shapes(max(1, 32 // max(1, len(first))))
    missing = [name for name in wanted if name not in state]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{file} lacks {', '.join(missing[:3])}{more}: FID needs the weights of the graph of 2015 under torchvision's "
            "names (pt_inception-2015-12-05-6726825d.pth)"
        )
    if len(state["fc.weight"]) != CLASSES:
        raise UserError(
            f"{file} is an InceptionV3 of {len(state['fc.weight'])} classes; FID is defined by the one of {CLASSES}, the graph "
            "of 2015 (pt_inception-2015-12-05-6726825d.pth): another gives numbers that compare with nobody's"
        )
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise UserError(f"{file}: {name} is {list(state[name].shape)}, InceptionV3 has {list(shape)} there")
    return fold(state)


def fold(state: dict[str, np.ndarray]) -> Params:
    """A file's tensors (see `shapes`) -> our parameters."""
    params: Params = {"fc": {"kernel": np.asarray(state["fc.weight"], np.float32).T}}
    for name in (name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")):
        if name.startswith("AuxLogits."):
            continue
        gamma, beta, mean, var = (
            np.asarray(state[f"{name}.bn.{k}"], np.float64) for k in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(var + EPSILON)
        kernel = np.asarray(state[f"{name}.conv.weight"], np.float64).transpose(2, 3, 1, 0) * scale
        params[name] = {"kernel": kernel.astype(np.float32), "bias": (beta - mean * scale).astype(np.float32)}
    return params


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits of the weights: statistics of different networks do not compare."""
    digest = hashlib.sha256()
    for name, tensors in sorted(params.items()):
        digest.update(name.encode() + b"".join(np.ascontiguousarray(tensors[key]).tobytes() for key in sorted(tensors)))
    return digest.hexdigest()[:16]


# The network ---------------------------------------------------------------------------------------------------------


class Features(NamedTuple):
    """Of each picture: what FID, sFID and the Inception score are of."""

    pool: Float[Array, "B 2048"]
    spatial: Float[Array, "B 2023"]
    probabilities: Float[Array, "B 1008"]


def features(params: Params, pictures: UInt8[Array, "B H W 3"]) -> Features:
    """Pictures of any one size. The probabilities are without the classifier's offsets, as in ADM's evaluator."""
    with jax.default_matmul_precision("highest"):
        found = activations(params, (resize(pictures.astype(jnp.float32)) - 128) / 128)
        pool = found["Mixed_7c"].mean((1, 2))
        spatial = found[SPATIAL][..., :CHANNELS]
        return Features(pool, spatial.reshape(len(spatial), -1), jax.nn.softmax(pool @ params["fc"]["kernel"]))


def resize(x: Float[Array, "B H W C"], size: int = SIZE) -> Float[Array, "B size size C"]:
    """TensorFlow 1's bilinear interpolation: pixel i is taken at i times the scale, so the last rows repeat the edge."""
    for axis in (2, 1):
        length = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = place.astype(np.int32)
        share = jnp.asarray(place - low).reshape(-1, *[1] * (3 - axis))
        near, far = jnp.take(x, low, axis), jnp.take(x, np.minimum(low + 1, length - 1), axis)
        x = near + (far - near) * share
    return x


def activations(params: Params, x: Float[Array, "B H W 3"]) -> dict[str, Float[Array, "B h w C"]]:
    """The outputs of the stem, of each block, and the one that sFID is of, by name. `x` is in [-1, 1]."""
    found = {"stem": _branch(params, "", STEM, x)}
    x = found["stem"]
    for name, branches in BLOCKS.items():
        outputs = [_branch(params, f"{name}.", branch, x) for branch in branches]
        if SPATIAL.startswith(f"{name}."):
            found[SPATIAL] = outputs[0]
        x = found[name] = jnp.concatenate(outputs, -1)
    return found


def _branch(params: Params, prefix: str, steps: Branch, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
    for step in steps:
        if isinstance(step, Conv):
            x = _conv(params[prefix + step.name], step, x)
        elif isinstance(step, Pool):
            x = _pool(step, x)
        else:
            x = jnp.concatenate([_branch(params, prefix, [conv], x) for conv in step], -1)
    return x


def _conv(p: dict[str, Array], conv: Conv, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
    padding = "VALID" if conv.valid else "SAME"
    x = jax.lax.conv_general_dilated(x, p["kernel"], (conv.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x + p["bias"])


def _pool(pool: Pool, x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    window, strides = (1, 3, 3, 1), (1, pool.stride, pool.stride, 1)
    padding = "SAME" if pool.stride == 1 else "VALID"
    if pool.kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, padding)
    return total / jax.lax.reduce_window(jnp.ones_like(x[:1, :, :, :1]), 0.0, jax.lax.add, window, strides, padding)
