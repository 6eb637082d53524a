"""Token shards: a data set of pictures that a tokenizer has already turned into ids.

A folder with `manifest.json` and files `shard-00000.array_record`, ... One record a picture: a line of JSON (label, caption,
height, width, name, grid, shape and type of the ids), a newline, and the ids as little-endian uint16 or uint32 [crops, N(, G)].
Several crops of one picture are several versions to train on. The manifest says which tokenizer wrote the ids, how they are
arranged and how the pictures were cropped; it is written last, so a folder without one is not complete. Where pictures have
several shapes ("mixed" in the manifest), the rows and columns of each are its "grid".
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import math
import os
import shutil
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Int

from .cache import cache_root
from .configs import from_json
from .errors import UserError, full_disk, nearest
from .files import place, read_json, write_atomically, write_json
from .layout import TokenLayout

FORMAT = 1
MANIFEST = "manifest.json"
LOCK = ".join"  # of who puts parts together
UNFINISHED = "unfinished.json"  # what a stopped run goes on from, until there is a manifest
Crops = Literal["center", "mirror", "ten", "random"]
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
OPEN = 256  # files of a set that are open at once: systems allow a process 1,024 of all kinds


def is_shards(folder: str | Path) -> bool:
    """Whether the folder holds token shards (complete or not)."""
    folder = place(folder)
    return folder.is_dir() and any(folder.glob("shard-*.array_record"))


def _encode(ids: np.ndarray, about: Mapping[str, Any]) -> bytes:
    header = {"shape": ids.shape, "dtype": ids.dtype.name} | {key: value for key, value in about.items() if value is not None}
    return json.dumps(header).encode() + b"\n" + ids.tobytes()  # JSON has no raw newline


def _about(record: bytes) -> dict[str, Any]:
    return json.loads(record[: record.index(b"\n")])


def _decode(record: bytes) -> dict[str, Any]:
    about, data = _about(record), record[record.index(b"\n") + 1 :]
    ids = np.frombuffer(data, np.dtype(about.pop("dtype")).newbyteorder("<")).astype(np.int32)
    return {"ids": ids.reshape(about.pop("shape"))} | about


class ShardWriter:
    """Writes token shards; a context manager, which writes the manifest when its block ends without an error.

    `tokenizer` is the fingerprint of what made the ids; `crops` says how pictures were cropped: "center", "mirror" (the middle
    and its mirror image), "ten" (LlamaGen's ten-crop) or "random"; `labels` are the names of the classes. `origin` says what
    the ids were made of, for the manifest.

    With `resume` a run that was stopped goes on from its last `checkpoint`: `progress` is what that was told, else empty.
    Raises UserError where the folder holds shards of something else.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer: str,
        layout: TokenLayout,
        crops: Crops = "center",
        labels: Sequence[str] | None = None,
        records_per_file: int = 1 << 16,
        origin: Mapping[str, Any] | None = None,
        resume: bool = False,
    ):
        self.folder = Path(folder)
        if (self.folder / MANIFEST).exists():
            raise UserError(f"{self.folder} already holds a {MANIFEST}: choose another folder or delete it")
        self.layout, self.records_per_file = layout, records_per_file
        self.dtype = np.dtype("<u2" if layout.codebook_size <= 1 << 16 else "<u4")
        self.files: list[dict[str, Any]] = []
        self.about = {
            "format": FORMAT,
            "tokenizer": tokenizer,
            "layout": dataclasses.asdict(layout),
            "crops": crops,
            "labels": list(labels) if labels is not None else None,
            "origin": None if origin is None else dict(origin),
        }
        self.progress: dict[str, Any] = {}
        self._layouts: set[TokenLayout] = set()
        if resume and (self.folder / UNFINISHED).exists():
            self._continue(read_json(self.folder / UNFINISHED))
        self.folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self.folder.glob("shard-*.array_record"):  # of a run that was stopped
            if unfinished.name not in {file["name"] for file in self.files}:
                unfinished.unlink()
        self._writer: ArrayRecordWriter | None = None

    def _continue(self, begun: Mapping[str, Any]) -> None:
        if begun["about"] != json.loads(json.dumps(self.about)):
            raise UserError(
                f"{self.folder} was begun with another tokenizer, other pictures or other settings: delete it or choose another"
            )
        self.files, self.progress = begun["files"], begun["progress"]
        self._layouts = {from_json(TokenLayout, layout) for layout in begun["layouts"]}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        else:
            self._close_file()

    def add(
        self,
        ids: Int[np.ndarray, "crops N *G"],
        label: int | None = None,
        caption: str | None = None,
        height: int | None = None,
        width: int | None = None,
        name: str | None = None,
        layout: TokenLayout | None = None,
    ) -> None:
        """Appends one picture: its ids in one or more crops, its original height and width in pixels, the name of its file.

        `layout`: that of this picture, where it may differ from the others'.
        """
        ids, own = np.asarray(ids), layout or self.layout
        groups = (own.groups,) if own.groups > 1 else ()
        if ids.ndim != 2 + len(groups) or ids.shape[1:] != (own.sites, *groups) or not len(ids):
            raise UserError(f"ids of shape {list(ids.shape)} are not [crops, {own.sites}{', G' if groups else ''}]")
        if ids.min() < 0 or ids.max() >= self.layout.codebook_size:
            raise UserError(f"ids {ids.min()}..{ids.max()} are outside of the codebook of {self.layout.codebook_size} codes")
        label = None if label is None else int(label)
        about = {"label": label, "caption": caption, "height": height, "width": width, "name": name}
        about["grid"] = None if layout is None else (layout.height, layout.width)
        with full_disk(self.folder):
            self._file().write(_encode(ids.astype(self.dtype), about))
        self.files[-1]["count"] += 1
        self._layouts.add(own)

    @property
    def count(self) -> int:
        """Pictures so far."""
        return sum(file["count"] for file in self.files)

    def checkpoint(self, **progress: Any) -> None:
        """From here a stopped run goes on: finishes the file, and notes what `progress` shall be then."""
        self._close_file()
        layouts = [dataclasses.asdict(layout) for layout in self._layouts]
        write_json(
            self.folder / UNFINISHED, {"about": self.about, "files": self.files, "layouts": layouts, "progress": progress}
        )

    def _file(self) -> ArrayRecordWriter:
        if self._writer is None or self.files[-1]["count"] >= self.records_per_file:
            self._close_file()
            name = f"shard-{len(self.files):05d}.array_record"
            self._writer = ArrayRecordWriter(str(self.folder / name), "group_size:1")
            self.files.append({"name": name, "count": 0})
        return self._writer

    def _close_file(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with full_disk(self.folder):
                writer.close()

    def close(self) -> None:
        """Finishes the last file and writes the manifest."""
        self._close_file()
        mixed = len(self._layouts) > 1
        layout = self.layout if mixed or not self._layouts else next(iter(self._layouts))
        manifest = self.about | {"layout": dataclasses.asdict(layout), "mixed": mixed, "count": self.count, "files": self.files}
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        (self.folder / UNFINISHED).unlink(missing_ok=True)


def part_of(folder: str | Path, index: int, parts: int) -> Path:
    """Where one of several processes writes its shards of a set."""
    return Path(folder) / f"part-{index}-of-{parts}"


def is_complete(folder: str | Path) -> bool:
    """Whether the shards of the folder were all written."""
    return (Path(folder) / MANIFEST).is_file()


def join(folder: str | Path, parts: Sequence[Path]) -> bool:
    """Makes one set of the parts, in their order, where all are complete; returns whether. Stopped, it can be done again.

    Raises UserError where the parts are of several tokenizers, sets of pictures or settings.
    """
    folder = Path(folder)
    with (folder / LOCK).open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: others may be here, and do the same
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(folder) or not all(map(is_complete, parts)):
            return False
        try:
            manifests = [_read_manifest(part) for part in parts]
        except (UserError, FileNotFoundError):
            if is_complete(folder):  # another one was faster
                return False
            raise
        one = _joined(folder, manifests)
        for i, (part, manifest) in enumerate(zip(parts, manifests, strict=True)):
            for file in manifest["files"]:
                with contextlib.suppress(FileNotFoundError):  # it is there already
                    (part / file["name"]).replace(folder / _of_part(i, file["name"]))
        write_atomically(folder / MANIFEST, json.dumps(one, indent=1).encode())
        remove_parts(folder)
    return True


def remove_parts(folder: str | Path) -> None:
    """Removes what the parts of a set that was put together have left; parts that hold shards stay."""
    for part in Path(folder).glob("part-*-of-*"):
        with contextlib.suppress(FileNotFoundError):  # others may remove it as well
            if not is_shards(part):
                shutil.rmtree(part, ignore_errors=True)
    (Path(folder) / LOCK).unlink(missing_ok=True)


def _of_part(index: int, name: str) -> str:
    return name.replace("shard-", f"shard-{index:05d}-")


def _joined(folder: Path, manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The manifest of all of them; where each part began and ended is left out."""
    varies = ("count", "files", "layout", "mixed", "origin")
    same = [{name: value for name, value in one.items() if name not in varies} for one in manifests]
    origins = [{name: value for name, value in one["origin"].items() if name != "pictures"} for one in manifests]
    if any(one != same[0] for one in same) or any(origin != origins[0] for origin in origins):
        raise UserError(f"the parts of {folder} are of other pictures, tokenizers or settings than each other: delete them")
    files = [file | {"name": _of_part(i, file["name"])} for i, one in enumerate(manifests) for file in one["files"]]
    mixed = any(one["mixed"] or one["layout"] != manifests[0]["layout"] for one in manifests)
    return manifests[0] | {"mixed": mixed, "count": sum(file["count"] for file in files), "files": files, "origin": origins[0]}


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no folder {folder}.{nearest(folder.name, siblings)}")
    if not path.is_file():
        state = "are not complete: the run that wrote them was stopped" if is_shards(folder) else "are not here"
        raise UserError(f"the token shards of {folder} {state} ({MANIFEST} is missing): run `mmgen tokenize`")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no manifest of token shards: run `mmgen tokenize` again") from None
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}: update mmgen or tokenize again")
    return manifest


def _copied(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The shards on the local disk: a copy made once, whole or not at all.

    Named by the manifest and by place, size and time of the files: other ids may come under the same manifest.
    """
    where = folder if "://" in str(folder) else folder.resolve()
    about = [str(where), manifest, [_version(folder / file["name"]) for file in manifest["files"]]]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    target = cache_root() / "shards" / key
    if target.is_dir():
        return target
    temporary = target.with_name(f".{key}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for file in manifest["files"]:
            with (folder / file["name"]).open("rb") as source, (temporary / file["name"]).open("wb") as copy:
                shutil.copyfileobj(source, copy)
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.is_dir():  # another process may have been faster
            raise
    return target


def _version(path: Path) -> tuple[int, int]:
    """Size and time of a file."""
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) if isinstance(stat, os.stat_result) else (stat.length, stat.mtime)


class ShardReader:
    """Random access to token shards: `reader[i]` is a dict with int32 "ids" [crops, N(, G)] and, where the picture had
    them, "label", "caption", "height", "width", "name" and "grid".

    `mixed`: pictures have several shapes; then "grid" has the rows and columns of each, and `layout` is of none in particular.

    The folder may be one like gs://bucket/folder. `cache`: "ram" reads everything now; "disk" copies the files to cache_root()
    (~/.cache/mmgen) first, for folders on object stores; None reads records where they lie. Safe to use from several threads.
    """

    def __init__(self, folder: str | Path, cache: Literal["ram", "disk"] | None = None):
        self.folder = place(folder)
        self.manifest = _read_manifest(self.folder)
        self.layout = from_json(TokenLayout, self.manifest["layout"])
        self.tokenizer: str = self.manifest["tokenizer"]
        self.mixed: bool = self.manifest.get("mixed", False)  # older shards never are
        labels = self.manifest["labels"]
        self.labels: tuple[str, ...] | None = None if labels is None else tuple(labels)
        there = _copied(self.folder, self.manifest) if cache == "disk" else self.folder
        files = [(there / file["name"], file["count"]) for file in self.manifest["files"]]
        self._ends = list(accumulate(count for _, count in files))
        self._lock = threading.Lock()  # a reader has one position in its file
        self._reader = functools.lru_cache(OPEN)(lambda shard: ShardReader._open(*files[shard]))
        self._records: list[bytes] | None = [] if cache == "ram" else None
        for file in files:  # one after the other: there may be thousands
            reader = self._open(*file)
            if self._records is not None:
                self._records += reader.read_all()

    @staticmethod
    def _open(path: Path, count: int) -> ArrayRecordReader:
        try:
            reader = ArrayRecordReader(str(path), RANDOM_ACCESS)
            found = reader.num_records()
        except Exception as error:  # array_record raises what its C++ side does
            raise UserError(f"cannot read {path} ({str(error).splitlines()[0]}): run `mmgen tokenize` again") from None
        if found != count:
            raise UserError(f"{path} holds {found} records, its manifest says {count}: run `mmgen tokenize` again")
        return reader

    def __len__(self) -> int:
        return self.manifest["count"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _decode(self._record(index))

    def about(self, index: int) -> dict[str, Any]:
        """What is known of a picture beside its ids: all that `reader[i]` has but those."""
        return {name: value for name, value in _about(self._record(index)).items() if name not in ("shape", "dtype")}

    def _record(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        if self._records is not None:
            return self._records[index]
        shard = bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        with self._lock:
            return self._reader(shard).read([index - start])[0]


# LlamaGen's codes --------------------------------------------------------------------------------------------------


def _llamagen_folders(folder: Path) -> tuple[Path, Path | None]:
    """<dataset><size>_codes and <dataset><size>_labels in what extract_codes_c2i.py calls --code-path."""
    codes = sorted(p for p in folder.glob("*_codes") if p.is_dir())
    if len(codes) != 1:
        found = f"{len(codes) or 'no'} folders named *_codes"
        raise UserError(f"{folder} has {found}: name the --code-path of LlamaGen's extract_codes_c2i.py")
    labels = codes[0].with_name(codes[0].name.removesuffix("_codes") + "_labels")
    return codes[0], labels if labels.is_dir() else None


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _llamagen_crops(codes: Path, name: str) -> Int[np.ndarray, "crops N"]:
    ids = _load_npy(codes / name)
    if ids.ndim == 3 and len(ids) == 1:
        return ids[0]
    raise UserError(f"{codes / name} has shape {list(ids.shape)}, not LlamaGen's [1, crops, N]")


def import_llamagen_codes(
    folder: str | Path | Sequence[str | Path],
    out: str | Path,
    tokenizer: str = "llamagen-vq",
    codebook_size: int = 16384,
) -> int:
    """Turns the .npy files of LlamaGen's extract_codes_c2i.py (arXiv 2406.06525) into token shards; returns their number.

    Expected: FOLDER/<dataset><size>_codes/{i}.npy int [1, crops, N] (10 crops with --ten-crop, else 2: the picture and its
    mirror image) with N a square grid, and beside it <dataset><size>_labels/{i}.npy int [1]; pictures are taken in the
    order of the number i. Several folders (crop ranges 1.1 and 1.05) are put together: 10 + 10 crops of each picture.
    `tokenizer` is the fingerprint to store: that of the converted VQ model, so that training can check it.
    """
    folders = [Path(folder)] if isinstance(folder, str | Path) else [Path(f) for f in folder]
    sets = [_llamagen_folders(f) for f in folders]
    codes, labels = sets[0]
    names = sorted((p.name for p in codes.glob("*.npy") if p.stem.isdigit()), key=lambda name: int(name[:-4]))
    if not names:
        raise UserError(f"{codes} has no files named 0.npy, 1.npy, ...")
    first = _llamagen_crops(codes, names[0])
    side = math.isqrt(first.shape[1])
    if side * side != first.shape[1]:
        raise UserError(f"{codes / names[0]} has {first.shape[1]} tokens a picture, which is no square grid")
    layout = TokenLayout(height=side, width=side, codebook_size=codebook_size)
    with ShardWriter(out, tokenizer, layout, {10: "ten", 2: "mirror"}.get(len(first), "center")) as writer:
        for name in names:
            ids = np.concatenate([_llamagen_crops(c, name) for c, _ in sets])
            label = None if labels is None else int(_load_npy(labels / name).reshape(-1)[0])
            writer.add(ids, label)
    return len(names)
