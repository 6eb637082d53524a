"""Where a conversion goes wrong: what our layers give beside what the reference's gave for the same picture.

IO.npz holds float32 arrays as PyTorch has them:
  image            [B, 3, H, W] in the range that the reference takes: needed
  ids              what it encodes it to, of any shape that reads as [B, N] or [B, N, G]; decoding then starts from these
  recon            the picture that it decodes them to, in its range
  any layer's name, such as encoder.conv_in: what that module gave, [B, C, H, W], [B, S, D] or [S, B, D]
Convolutions, linear layers and norms are compared, those that the rename table knows.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from ..api import Tokenizer, family_of
from ..errors import UserError
from ..families.titok import TiTok
from ..files import Row, find
from ..networks import layers
from ..networks.layers import Conv, GroupNorm
from ..networks.vit import LayerNorm
from . import bsq_vit, chameleon, ibq, llamagen, maskbit, maskgit, open_magvit2, taming, titok, var

TOLERANCE = 1e-4  # of an array's largest value: what float32 leaves between two libraries
KINDS = (Conv, GroupNorm, LayerNorm)
GIVEN = ("image", "ids", "recon")


class Compared(NamedTuple):
    name: str  # the reference's
    error: float  # the largest difference as a share of the largest value; of ids the share that differs
    ours: str = ""


def table_of(tokenizer: Tokenizer) -> list[Row]:
    """The rename table that a converted tokenizer came through."""
    match tokenizer.source:
        case llamagen.FAMILY | maskbit.FAMILY as source:
            module = llamagen if source == llamagen.FAMILY else maskbit
            return module.table(len(tokenizer.config.network.multipliers))
        case taming.FAMILY | chameleon.FAMILY | ibq.FAMILY:
            return taming.table()
        case bsq_vit.FAMILY:  # its last layer gives the same pixels in another order
            return [row for row in bsq_vit.TABLE if not row[0].startswith("decoder.conv_out")]
    return {module.FAMILY: module for module in (maskgit, open_magvit2, titok, var)}[tokenizer.source].table()


def compare(tokenizer: Tokenizer, table: Sequence[Row], io: Mapping[str, np.ndarray]) -> tuple[list[Compared], list[str]]:
    """What was compared, in the order of computation, and the names in `io` that could not be."""
    ours_of = {name: _layer(table, name) for name in io if name not in GIVEN}
    wanted = {ours: name for name, ours in ours_of.items() if ours}
    encoded, ids, decoded, picture = _run(tokenizer, io, wanted)
    found: list[Compared] = []
    for heard, end in ((encoded, "ids"), (decoded, "recon")):
        for ours, array in heard.items():
            error = _error(np.asarray(array), io[wanted[ours]])
            found += [] if error is None else [Compared(wanted[ours], error, ours)]
        if end in io and end == "ids":
            found.append(Compared("ids", _share(np.asarray(ids), io["ids"])))
        elif end in io:
            found.append(Compared("recon", _error(np.clip(picture, -1, 1), _signed(tokenizer, io["recon"]).clip(-1, 1)) or 0.0))
    done = {row.name for row in found}
    return found, [name for name in io if name not in done and name != "image"]


def explain(tokenizer: Tokenizer, table: Sequence[Row], io: str | Path | Mapping[str, np.ndarray]) -> str:
    """The comparison as text, a line an array. Raises UserError that names the first layer that diverges, if one does."""
    found, unknown = compare(tokenizer, table, _read(io) if isinstance(io, str | Path) else io)
    if not found:
        raise UserError(f"nothing could be compared: of {', '.join(unknown[:6]) or 'no arrays'} the table knows none")
    for place, row in enumerate(found):
        if not row.error <= TOLERANCE:  # NaN too
            mapped = f" (here {row.ours})" if row.ours else ""
            raise UserError(
                f"{row.name}{mapped} is the first to diverge, by {row.error:.1e} of its largest value, where {TOLERANCE:.0e} is"
                f" allowed; {place} before it agree{_up_to(found[:place])}"
            )
    lines = [f"{row.error:8.1e}  {row.name}" for row in found]
    return "\n".join([*lines, *(f"     not compared  {name}" for name in unknown), f"all {len(found)} agree"])


def _up_to(agreeing: Sequence[Compared]) -> str:
    return f", the last of them {agreeing[-1].name}" if agreeing else ""


def _read(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise UserError(f"cannot read {path} as .npz ({error})") from None


def _layer(table: Sequence[Row], name: str) -> str | None:
    """Our name of a layer of theirs, where the table has its weights."""
    target = find(table, f"{name}.weight")
    return target.rpartition(".")[0] if target else None


def _signed(tokenizer: Tokenizer, pictures: np.ndarray) -> np.ndarray:
    """[B, 3, H, W] in the reference's range -> [B, H, W, 3] in [-1, 1]."""
    config = tokenizer.config
    unit = isinstance(config, TiTok) or getattr(config, "range", "signed") == "unit"
    pictures = np.asarray(pictures, np.float32).transpose(0, 2, 3, 1)
    return pictures * 2 - 1 if unit else pictures


def _run(tokenizer: Tokenizer, io: Mapping[str, np.ndarray], wanted: Mapping[str, str]) -> tuple[dict, Array, dict, Array]:
    """(what the wanted layers gave while encoding, ids, what they gave while decoding, picture)."""
    if "image" not in io or io["image"].ndim != 4 or io["image"].shape[1] != 3:
        raise UserError("there must be an array `image` [B, 3, H, W]: what the reference was given")
    config, family = tokenizer.config, family_of(tokenizer.config)[1]
    images = _signed(tokenizer, io["image"])
    layout = tokenizer.layout_for(*images.shape[1:3])
    shape = (len(images), layout.sites, *((layout.groups,) if layout.groups > 1 else ()))
    given = io["ids"].reshape(shape) if "ids" in io and io["ids"].size == np.prod(shape) else None

    encoded: dict[str, Array] = {}
    decoded: dict[str, Array] = {}

    @jax.jit
    def run(params: dict, images: Array) -> Any:
        with _listening(encoded):
            ids = family.encode(config, params, images)
        with _listening(decoded):
            picture = family.decode(config, params, ids if given is None else given, layout.height, layout.width)
        return *([heard[name] for name in heard if name in wanted] for heard in (encoded, decoded)), ids, picture

    with jax.default_matmul_precision("highest"):
        *heard, ids, picture = jax.device_get(run(tokenizer.params, images))
    # The dictionaries say the order, in which tracing has left its own stand-ins for the arrays.
    first, second = (
        dict(zip([name for name in names if name in wanted], arrays, strict=True))
        for names, arrays in zip((encoded, decoded), heard, strict=True)
    )
    return first, ids, second, picture


@contextlib.contextmanager
def _listening(heard: dict[str, Array]) -> Iterator[None]:
    """Within, each layer of a network that is bound adds what it gives to `heard`, under its name."""
    bind, calls = layers.bind, {kind: kind.__call__ for kind in KINDS}
    names: dict[int, str] = {}
    bound = []  # kept, so that no id is given twice

    def binding(kind: type[nnx.Module], params: dict, *arguments: Any) -> nnx.Module:
        network = bind(kind, params, *arguments)
        bound.append(network)
        names.update({id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(network)})
        return network

    def calling(kind: type[nnx.Module]):
        def call(self: nnx.Module, x: Array) -> Array:
            heard[names[id(self)]] = y = calls[kind](self, x)
            return y

        return call

    layers.bind = binding
    for kind in KINDS:
        kind.__call__ = calling(kind)
    try:
        yield
    finally:
        layers.bind = bind
        for kind in KINDS:
            kind.__call__ = calls[kind]


def _error(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Of the best reading of `theirs` in our layout; None where none has its size."""
    readings = [theirs]
    if theirs.ndim == 4:
        readings = [theirs.transpose(0, 2, 3, 1), theirs]
    elif theirs.ndim == 3:
        readings = [theirs, theirs.swapaxes(0, 1)]
    fitting = [r for r in readings if r.size == ours.size and (r.shape[0], r.shape[-1]) == (ours.shape[0], ours.shape[-1])]
    scale = max(np.abs(theirs).max(), 1e-30)
    return min((float(np.abs(r.reshape(ours.shape) - ours).max() / scale) for r in fitting), default=None)


def _share(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the ids that differ; 1 where their number does."""
    return float((ours.reshape(-1) != theirs.reshape(-1)).mean()) if ours.size == theirs.size else 1.0
