"""Weights on disk: safetensors of our own, and whatever published checkpoints come in.

Parameters are nested dicts of arrays with string keys; on disk "a.b.c" names the array at params["a"]["b"]["c"].
"""

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from .errors import UserError, nearest
from .torch_files import read_torch

PART_BYTES = 5_000_000_000
SAFETENSORS_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
NESTS = ("ema", "ema_state_dict", "model", "module", "state_dict")  # where training codes keep the weights, the best first


def place(path: str | Path) -> Path:
    """A path of this machine, or one like gs://bucket/folder, in which pathlib would lose a slash: epath's have its methods.
    Raises UserError where the package that reads such a bucket is missing."""
    scheme, found, _ = str(path).partition("://")
    if not found:
        return Path(path)
    import fsspec  # it and etils come with array_record
    from etils import epath

    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None
    return epath.Path(path)


def temporary_beside(path: Path) -> Path:
    """A hidden path of this process's own beside `path`; what killed processes have left there is removed."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and Path("/proc").exists() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes the file whole or not at all: a full disk or a kill leaves the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def models_in(folder: Path) -> list[Path]:
    """The folders directly below that are runs, or exported or converted models."""
    marks = ("config.json", "experiment.json", "export/config.json")
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in below if any((path / mark).is_file() for mark in marks)]


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object. Raises `UserError` where the file is absent or damaged."""
    path = Path(path)
    if not path.is_file():
        if path.name == "config.json" and (path.parent / "experiment.json").is_file():
            raise UserError(f"{path.parent} has no export/ yet: it is written at the run's first checkpoint")
        if inside := models_in(path.parent):
            raise UserError(f"{path.parent} holds models and is none itself: name {' or '.join(map(str, inside))}")
        siblings = [p.name for p in path.parent.parent.iterdir()] if path.parent.parent.is_dir() else []
        known = "" if path.parent.is_dir() else nearest(path.parent.name, siblings)
        raise UserError(f"there is no {path}: name a folder that was exported or converted, or a run's.{known}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it, or export the run again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def arrays_in(path: str | Path) -> list[str]:
    """Names of the arrays in an .npz file, none read; empty where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return []


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Readable JSON, written whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a.b": x}. Keys are strings without dots."""
    flat = {}
    for key, value in params.items():
        if not isinstance(key, str) or "." in key:
            raise ValueError(f"a parameter's key must be a string without dots, not {key!r}")
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": x} -> {"a": {"b": x}}."""
    params: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return params


def _parts(flat: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    parts: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in flat.items():
        if parts[-1] and size + array.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    return parts


def _part_names(folder: Path, stem: str, count: int) -> list[str]:
    """Names that the present index does not use: its parts stay as they are until another index takes its place."""
    index = folder / f"{stem}.safetensors.index.json"
    used = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    first, second = ([f"{stem}-{tag}{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] for tag in ("", "new-"))
    return first if used.isdisjoint(first) else second


def _remove_parts(folder: Path, stem: str, but: Sequence[str] = ()) -> None:
    for part in folder.glob(f"{stem}-*-of-*.safetensors"):
        if part.name not in but:
            part.unlink()


def check_target(out: str | Path, source: str | Path | None = None) -> None:
    """Raises UserError where a model written to `out` would take the place of the weights that it is made from, or mix with a
    run."""
    out = Path(out)
    if (out / "experiment.json").is_file():
        raise UserError(f"{out} is a run folder: write the model elsewhere, with another --out")
    if source is not None and Path(source).resolve() in (out.resolve(), (out / "model.safetensors").resolve()):
        raise UserError(f"{out} holds the checkpoint {source} itself, which would be overwritten: choose another --out")


def check_free(out: str | Path, overwrite: bool) -> None:
    """Raises UserError where a command would take the place of another model, unless it was told to."""
    if (Path(out) / "config.json").is_file() and not overwrite:
        raise UserError(
            f"{out} holds a model already: choose another --out, or add --overwrite to replace it, its own tokenizer included"
        )


def save_arrays(folder: str | Path, params: Mapping[str, Any], stem: str = "model") -> None:
    """Writes FOLDER/<stem>.safetensors; above 5 GB in parts, with an index of which part holds what, written last.

    What was there is replaced at one moment: a kill leaves the old arrays or the new ones.
    """
    folder = Path(folder)
    flat = {name: np.asarray(value, order="C") for name, value in sorted(flatten(params).items())}
    index = folder / f"{stem}.safetensors.index.json"
    parts = _parts(flat)
    if len(parts) == 1:
        write_atomically(folder / f"{stem}.safetensors", save(flat))
        index.unlink(missing_ok=True)
        _remove_parts(folder, stem)
        return
    names = _part_names(folder, stem, len(parts))
    for name, part in zip(names, parts, strict=True):
        write_atomically(folder / name, save(part))
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    total = sum(array.nbytes for array in flat.values())
    write_atomically(index, json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1).encode())
    (folder / f"{stem}.safetensors").unlink(missing_ok=True)
    _remove_parts(folder, stem, but=names)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        stored = deserialize(path.read_bytes())
        # Its own NumPy loader does not know bfloat16.
        return {name: np.frombuffer(t["data"], SAFETENSORS_TYPES[t["dtype"]]).reshape(t["shape"]) for name, t in stored}
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): fetch or export it again") from None


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{index} is damaged: fetch or export it again") from None
    flat = {}
    for name in names:
        path = index.parent / Path(name).name  # an index may not point out of its folder
        if not path.is_file():
            raise UserError(f"{path} is missing: {index.name} lists {len(names)} parts")
        flat |= _read_safetensors(path)
    return flat


def _read_folder(folder: Path, stem: str = "model") -> dict[str, np.ndarray]:
    path, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if path.is_file():
        return _read_safetensors(path)
    if index.is_file():
        return _read_parts(index)
    raise UserError(f"there is no {path.name} in {folder}: name a folder that was exported or converted")


def load_arrays(folder: str | Path, stem: str = "model") -> dict[str, Any]:
    """Reads what `save_arrays` wrote into nested dicts of NumPy arrays. Raises `UserError` where there is none."""
    return unflatten(_read_folder(Path(folder), stem))


def check_shapes(folder: str | Path, params: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises `UserError` that names the first array of FOLDER/model.safetensors with another shape than `expected` (nested
    dicts of what has one), or that only one side has."""
    has, wants = ({name: list(leaf.shape) for name, leaf in flatten(tree).items()} for tree in (params, expected))
    for name in sorted(has.keys() | wants.keys()):
        found, needed = (shapes.get(name, "nothing") for shapes in (has, wants))
        if found != needed:
            raise UserError(
                f"{folder}/model.safetensors: {name} is {found}, config.json asks for {needed}: they do not belong together"
            )


def _state_dict(content: Any) -> Any:
    """The weights in a training checkpoint: under "ema", "model", "module" or "state_dict" (nested, even), or bare."""
    for _ in range(4):  # not for ever: in a malicious file a dict may hold itself
        if not isinstance(content, Mapping):
            break
        nests = [content[key] for key in NESTS if isinstance(content.get(key), Mapping) and content[key]]
        if not nests:
            break
        content = nests[0]
    items = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in items if isinstance(key, str) and not isinstance(value, Mapping)}


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array of a published checkpoint: safetensors (a file or a folder) or .pt, .pth, .ckpt, .bin of torch.

    No torch is needed and nothing that a file says is run. Of several sets of weights the EMA is taken; the prefixes of
    DistributedDataParallel and torch.compile are dropped; bfloat16 comes as float32. Raises `UserError` for a file that is
    absent, damaged, or without tensors.
    """
    path = Path(path)
    if path.is_dir():
        state = _read_folder(path)
    elif not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no checkpoint {path}.{nearest(path.name, siblings)}")
    else:
        with path.open("rb") as file:
            start = file.read(9)
        state = _read_safetensors(path) if start[8:] == b"{" else read_torch(path, _state_dict)
    arrays = {_unwrapped(name): value for name, value in state.items() if isinstance(value, np.ndarray)}
    if not arrays:
        raise UserError(f"{path} holds no tensors under {', '.join(NESTS)} or at its top: is it a checkpoint of weights?")
    narrow = ("bfloat", "float8")
    return {k: v.astype(np.float32) if v.dtype.name.startswith(narrow) else v for k, v in arrays.items()}


# A rename table ----------------------------------------------------------------------------------------------------

Row = tuple[str, str, str]
"""(published name, our name, layout). "{i}" in both names stands for any one piece between dots. Layout: "" as it is,
"linear" [out, in] <-> [in, out], "conv" [out, in, h, w] <-> [h, w, in, out], "pixel" [out, in, 1, 1] <-> [in, out],
"patch" [out, 3, h, h] <-> [h h 3, out]. An empty second name: known and not used."""


def _laid_out(array: np.ndarray, layout: str, back: bool) -> np.ndarray:
    if layout == "linear" and array.ndim == 2:
        return array.T
    if layout == "conv" and array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if back else (2, 3, 1, 0))
    if layout == "pixel" and back and array.ndim == 2:
        return array.T[:, :, None, None]
    if layout == "pixel" and not back and array.shape[2:] == (1, 1):
        return array[:, :, 0, 0].T
    if layout == "patch" and back and array.ndim == 2:
        side = math.isqrt(len(array) // 3)
        return array.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
    if layout == "patch" and not back and array.ndim == 4:
        return array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    return array  # another rank than the layout's: its shape is reported as wrong


def _matcher(rows: Sequence[Row], back: bool):
    """name -> (name on the other side, layout), or None. The first row that matches counts."""
    patterns = []
    for theirs, ours, layout in rows:
        source, target = (ours, theirs) if back else (theirs, ours)
        if source:
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(source))
            patterns.append((re.compile(pattern), target, layout))

    def match(name: str) -> tuple[str, str] | None:
        for pattern, target, layout in patterns:
            if found := pattern.fullmatch(name):
                return target.format(**found.groupdict()), layout
        return None

    return match


def find(rows: Sequence[Row], name: str) -> str | None:
    """Our name of a published tensor; None where no row knows it, "" where it is not used."""
    found = _matcher(rows, False)(name)
    return found and found[0]


def _listed(what: str, names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what}: {', '.join(names[:limit])}{more}" if names else ""


def rename(
    state: Mapping[str, np.ndarray], rows: Sequence[Row], expected: Mapping[str, tuple[int, ...]] | None, back: bool = False
) -> dict[str, np.ndarray]:
    """Published tensors under our names and layouts (or, with `back`, ours under theirs), as a flat dict.

    `expected`: our flat names and shapes (with `back`: theirs); None: whatever the rows know. Raises `UserError`
    that lists by name what is missing, what no row knows, and what has another shape.
    """
    match, reverse = _matcher(rows, back), _matcher(rows, not back)
    renamed: dict[str, np.ndarray] = {}
    extra, misshaped = [], []
    for name, array in state.items():
        target, layout = match(name) or (None, "")
        if target == "":
            continue
        if target is None or (expected is not None and target not in expected):
            extra.append(name)
            continue
        renamed[target] = _laid_out(array, layout, back)
        if expected is not None and renamed[target].shape != tuple(expected[target]):
            misshaped.append(f"{name} {list(array.shape)} (for {target} {list(expected[target])})")
    missing = [(reverse(name) or (name, ""))[0] for name in expected or () if name not in renamed]
    problems = [_listed("missing", missing), _listed("not known", extra), _listed("of another shape", misshaped)]
    if any(problems):
        listed = "; ".join(filter(None, problems))
        raise UserError(f"the checkpoint does not fit: {listed}. Pass the config that it was trained with (--config FILE.json)")
    return renamed
