"""Many pictures from one model into files: a grid, one file a picture, or one array; in pieces, so that any number fits."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jaxtyping import Int, UInt8
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import arrays_in, read_json, temporary_beside, write_json
from mmgen_tokenizers.pictures import grid, to_uint8, with_captions, write_png
from mmgen_tokenizers.progress import Counter
from PIL import Image

from mmgen.best import BestOf, draw_best
from mmgen.decoding.choice import Choice
from mmgen.decoding.target import check_ranges, guidance_schedule
from mmgen.generator import Generator, check_seed, load
from mmgen.model.config import ClassCondition, FeatureCondition, Sampling, TextCondition
from mmgen.training.lock import exclusive

GRID = 1024  # pictures in a grid, at most
NO_FOLDER = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".npz", ".npy", ".tif", ".tiff")  # what is not meant as a folder's name
EACH_CLASS = 64  # without labels and number: one picture of each of the first so many classes


@dataclass(frozen=True)
class Rows:
    """What is asked for, one entry a picture: `values` for `generate`'s argument `name`, `texts` for people."""

    name: str  # "prompts" or "labels"
    values: list
    texts: list[dict[str, Any]]  # {"prompt": ...} or {"label": ..., "name": ...}


def sample(
    folder: str | Path,
    prompts: list[str] | None = None,
    labels: list[str] | None = None,
    num: int | None = None,
    seed: int = 0,
    out: str | None = None,
    tokens: str | None = None,
    npz: str | None = None,
    dtype: str | None = None,
    tensor: int = 1,
    draft: str | Path | None = None,
    best: BestOf | None = None,
    **settings,
) -> list[Path]:
    """Draws `num` pictures for each prompt or label with the generator in a folder and returns the files written.

    `out`: FILE.png (a grid) or a folder (a file a picture), with a JSON of what was drawn beside; `tokens`: a file with
    int32 "tokens" [N, sites]; `npz`: a file with uint8 "arr_0" [N, H, W, 3]. A job that was stopped goes on where it was when
    it is asked for again, unless it makes a grid. `settings` go to `Generator.generate`, `dtype` and `tensor` to `mmgen.load`;
    `draft` is the folder of the generator that speculative decoding drafts with; `best`: keep the best of candidates.
    """
    start = time.perf_counter()
    settings = {k: v for k, v in settings.items() if v is not None}
    out = "samples.png" if out is None and npz is None and tokens is None else out
    check_settings(num, seed, settings, draft)
    check_paths(out, tokens, npz)
    generator = load(folder, dtype, tensor)
    rows = conditions(generator, prompts, labels, num)
    check_outputs(generator, len(rows.values), out, npz or best)
    about = {"model": str(folder), "weights": digest(generator), "dtype": generator.dtype.name, "seed": seed}
    about["settings"] = vars(generator.sampling) | settings
    if draft:
        drafting = load(draft, dtype, tensor)
        about |= {"draft": str(draft), "draft_weights": digest(drafting)}
        settings |= {"draft": drafting}
    if best:
        about |= {"best": vars(best)}
    settings |= {"seed": seed}
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(sink) for sink in outputs(rows, about, out, tokens, npz)]
        forwards = draw(generator, rows, settings, sinks, best)
    files = [sink.path for sink in sinks]
    work = f"{forwards} forwards for {generator.config.layout.sites} sites"
    print(f"{len(rows.values)} pictures in {time.perf_counter() - start:.1f} s, {work}: {', '.join(map(str, files))}")
    return files


def draw(generator: Generator, rows: Rows, settings: dict[str, Any], sinks: list, best: BestOf | None = None) -> int:
    """Pictures from the first that a sink lacks on, in the pieces that a whole job has; returns the forwards of the slowest."""
    count, step, forwards, scores = len(rows.values), max(1, generator.rows_at_once // (best.count if best else 1)), 0, []
    done = min(sink.done for sink in sinks)
    begin = done if done == count else done // step * step
    if begin:
        print(f"{begin} of {count} pictures are there already", file=sys.stderr)
    with Counter(count - begin, "pictures") as counter:
        for first in range(begin, count, step):
            piece = rows.values[first : first + step]
            if best:
                texts = [str(next(reversed(text.values()))) for text in rows.texts[first : first + step]]
                made = draw_best(generator, rows.name, piece, texts, best, first, **settings)
                pictures, scores = made.pictures, [*scores, made.scores]
            else:
                made = generator.generate(**{rows.name: piece}, first_index=first, **settings)
                pictures = None if made.images is None else to_uint8(made.images)
            for sink in sinks:
                sink.add(first, made.tokens, pictures)
            counter.add(len(piece))
            forwards = max(forwards, made.forwards)
    if scores:
        found = np.concatenate(scores)
        print(f"mean score {found.max(1).mean():.4g}, of all candidates {found.mean():.4g}")
    return forwards


def digest(generator: Generator) -> str:
    """8 hexadecimal digits of a generator, its tokenizer and text model included: a job goes on with what began it."""
    print_of_tokenizer = "" if generator.tokenizer is None else generator.tokenizer.fingerprint
    value = zlib.crc32(f"{generator.config} {print_of_tokenizer}".encode())
    value = zlib.crc32(generator.text.model if generator.text else b"", value)
    for array in jax.tree.leaves(generator.params):
        value = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, value)
    return f"{value:08x}"


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8: {error}") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one a line")
    return prompts


def schedule(text: str | None) -> str | tuple[str, float] | None:
    """A guidance schedule as the command line names it: "power_cosine:2.5" -> ("power_cosine", 2.5)."""
    name, colon, number = (text or "").partition(":")
    if not colon and name != "power_cosine":
        return text
    try:
        return name, float(number)
    except ValueError:
        raise UserError(f"guidance schedule {text!r}: write power_cosine:P with a number P, e.g. power_cosine:2.5") from None


def check_settings(num: int | None, seed: int, settings: dict[str, Any], draft: str | Path | None) -> None:
    """Raises UserError, before anything is loaded, for numbers and decoders that no model takes."""
    if num is not None and num < 1:
        raise UserError(f"--num {num}: ask for at least one picture")
    check_seed(seed)
    check_ranges({name: settings[name] for name in vars(Sampling()) if name in settings})
    if "guidance_schedule" in settings:
        guidance_schedule(settings["guidance_schedule"], 1.0, 2)
    choice = {name: settings[name] for name in ("decoder", "window", "init", "coupling") if name in settings}
    Choice(**{"decoder": "autoregressive", "draft": draft} | choice)


def conditions(generator: Generator, prompts: list[str] | None, labels: list[str] | None, num: int | None) -> Rows:
    """One entry a picture: `num` (1) for each prompt or label; without labels all classes in turn, `num` in all."""
    condition = generator.config.condition
    if isinstance(condition, FeatureCondition):
        raise UserError("this model takes features of a text model as arrays: use mmgen.load(DIR).generate(features=...)")
    if isinstance(condition, TextCondition) and prompts is None:
        raise UserError("this model draws from texts: give --prompt TEXT or --prompts FILE")
    if isinstance(condition, ClassCondition) and prompts is not None:
        raise UserError(f"this model takes labels, not prompts: give --label K, a number in 0 .. {condition.classes - 1}")
    if prompts is not None:
        values = [prompt for prompt in prompts for _ in range(num or 1)]
        return Rows("prompts", values, [{"prompt": prompt} for prompt in values])
    if labels is not None:
        values = [label for text in labels for label in [number(text, generator)] * (num or 1)]
    else:
        classes = generator.null_label
        values = [i % classes for i in range(num or min(classes, EACH_CLASS))]
    return Rows("labels", values, [_named(label, generator.labels) for label in values])


def number(text: str, generator: Generator) -> int:
    """A label, by name or number, as a number."""
    names = generator.labels or ()
    if text in names:
        return names.index(text)
    classes = generator.null_label
    if text.isdigit() and int(text) < classes:
        return int(text)
    few = f": {', '.join(names)}" if len(names) <= 20 else ""
    named = f" or one of its names{few}.{nearest(text, names)}" if names else ""
    raise UserError(f"there is no label {text!r}: give a number in 0 .. {classes - 1}{named}")


def _named(label: int, names: tuple[str, ...] | None) -> dict[str, Any]:
    return {"label": label} | ({"name": names[label]} if names else {})


# Files -------------------------------------------------------------------------------------------------------------


def check_paths(out: str | None, tokens: str | None, npz: str | None) -> None:
    """Raises UserError, before anything is loaded, for what cannot be written, or would take the place of something else.

    A file that the same option wrote is replaced.
    """
    suffix = Path(out).suffix.lower() if out and not Path(out).is_dir() and not out.endswith(os.sep) else ""
    if suffix not in ("", ".png") and (suffix in NO_FOLDER or Path(out).exists()):
        raise UserError(f"--out {out}: pictures are written as FILE.png or into a folder; an array by --npz FILE.npz")
    if suffix == ".png" and Path(out).exists() and not _drawn_here(out):
        raise UserError(f"--out {out}: another picture is there, which mmgen did not draw: remove it or name another")
    for option, path, array in (("--tokens", tokens, "tokens"), ("--npz", npz, "arr_0")):
        if path is None:
            continue
        if Path(path).suffix != ".npz" or Path(path).is_dir():
            raise UserError(f"{option} {path}: arrays are written as FILE.npz")
        if Path(path).exists() and array not in arrays_in(path):
            raise UserError(f"{option} {path}: another file is there, which {option} did not write: remove it or name another")
    if tokens is not None and npz is not None and Path(tokens).resolve() == Path(npz).resolve():
        raise UserError(f"--tokens and --npz both name {npz}: name two files")


def check_outputs(generator: Generator, count: int, out: str | None, pictures: object) -> None:
    """Raises UserError, before anything is computed, for what this model or so many pictures cannot give. `pictures`: whether
    they are needed beside `out`."""
    if generator.tokenizer is None and (out or pictures):
        raise UserError(
            "this model has no tokenizer to draw pictures with: convert it again with --tokenizer DIR, or keep the ids with "
            "--tokens FILE.npz alone"
        )
    if out and is_grid(out) and count > GRID:
        raise UserError(f"{count} pictures are too many for one grid: give --out DIR (one file each) or --npz FILE.npz")


def _drawn_here(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()  # texts may stand behind the pixels
            return "mmgen" in image.info
    except (OSError, ValueError):
        return False


def is_grid(out: str) -> bool:
    """Whether pictures go into one file; else into a folder."""
    return out.lower().endswith(".png") and not Path(out).is_dir()


def outputs(rows: Rows, about: dict, out: str | None, tokens: str | None, npz: str | None) -> list:
    """The writers that are asked for: context managers with `add(first, tokens, pictures)`, `path`, and `done`: how many of the
    first pictures they have from a job that was stopped."""
    wanted = [
        (out, lambda: (GridFile if is_grid(out) else PictureFolder)(Path(out), rows, about)),
        (tokens, lambda: ArrayFile(Path(tokens), rows, about, "tokens")),
        (npz, lambda: ArrayFile(Path(npz), rows, about, "arr_0")),
    ]
    return [make() for path, make in wanted if path is not None]


class GridFile:
    """One PNG of all pictures, small ones enlarged, the prompts under them and in its metadata; a JSON of its name."""

    done = 0

    def __init__(self, path: Path, rows: Rows, about: dict):
        self.path, self._rows, self._about, self._pictures = path, rows, about, []

    def add(self, first: int, tokens: np.ndarray, pictures: UInt8[np.ndarray, "b h w 3"]) -> None:
        self._pictures.extend(pictures)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            return
        columns = grid_columns(self._rows)
        about = self._about | {"columns": columns, "pictures": self._rows.texts}
        texts = [str(next(reversed(text.values()))) for text in self._rows.texts]
        page = grid(with_captions(self._pictures, texts), columns, gap=6)
        write_png(self.path, page, {self._rows.name: "\n".join(texts), "mmgen": json.dumps(about)})
        write_json(self.path.with_suffix(".json"), about)


def grid_columns(rows: Rows) -> int:
    """One row a prompt where each has several pictures, else about a square."""
    same = next((i for i, value in enumerate(rows.values) if value != rows.values[0]), len(rows.values))
    return same if 1 < same < len(rows.values) else math.ceil(math.sqrt(len(rows.values)))


class PictureFolder:
    """00000.png, 00001.png, ... with their prompts in the metadata, and samples.json."""

    def __init__(self, path: Path, rows: Rows, about: dict):
        self.path, self._rows, self._about = path, rows, about
        path.mkdir(parents=True, exist_ok=True)
        count = len(rows.values)
        # Those before the first file that is not of this very job.
        self.done = self._count = next((index for index in range(count) if not self._has(index)), count)
        if self.done < count:
            (path / "samples.json").unlink(missing_ok=True)  # until it tells of this job
            replaced = sum((path / self._entry(index)["file"]).exists() for index in range(self.done, count))
            if replaced:
                warnings.warn(f"{replaced} pictures of another job in {path} are being replaced", stacklevel=2)

    def _entry(self, index: int) -> dict[str, Any]:
        return {"file": f"{index:05d}.png", "index": index} | self._rows.texts[index]

    def _metadata(self, index: int) -> dict[str, str]:
        return {k: str(v) for k, v in (self._about | self._entry(index)).items() if k != "file"}

    def _has(self, index: int) -> bool:
        try:
            with Image.open(self.path / self._entry(index)["file"]) as picture:
                return picture.text == self._metadata(index)
        except (OSError, SyntaxError, AttributeError):  # none, or none of ours
            return False

    def add(self, first: int, tokens: np.ndarray, pictures: UInt8[np.ndarray, "b h w 3"]) -> None:
        for index, picture in enumerate(pictures, first):
            write_png(self.path / self._entry(index)["file"], picture, self._metadata(index))
            self._count = max(self._count, index + 1)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        if not self._count:
            return
        # Also of a job that was stopped: what is there is described.
        entries = [self._entry(index) for index in range(self._count)]
        write_json(self.path / "samples.json", self._about | {"pictures": entries})
        others = {path.name for path in self.path.glob("*.png")} - {entry["file"] for entry in entries}
        if others:
            warnings.warn(
                f"{self.path} holds {len(others)} other pictures, such as {min(others)}, that were there before; samples.json "
                "lists those of this job",
                stacklevel=2,
            )


class ArrayFile:
    """One array in an .npz, a row a picture: int32 "tokens" [N, sites] with "labels" or "prompts" beside, or uint8 "arr_0"
    [N, H, W, 3], the form that FID suites read. What has come stands in FILE.part until all of it has; FILE.part.json says of
    which job it is, the archive's comment of which a whole one is."""

    def __init__(self, path: Path, rows: Rows, about: dict, name: str):
        self.path, self.name, self._rows, self.done, self._shape = path, name, rows, 0, None
        self._stream: BinaryIO | None = None  # of a file that is whole: none
        self._part, self._note = (path.with_name(path.name + end) for end in (".part", ".part.json"))
        self._job = json.loads(json.dumps(about | {"pictures": rows.texts}))  # as it is read back

    @property
    def _comment(self) -> bytes:
        return b"mmgen job " + hashlib.sha256(json.dumps(self._job, sort_keys=True).encode()).hexdigest().encode()

    @property
    def _row_bytes(self) -> int:
        return math.prod(self._shape) * self._dtype.itemsize

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(np.int32 if self.name == "tokens" else np.uint8)

    def add(self, first: int, tokens: Int[np.ndarray, "b n ..."], pictures: np.ndarray | None) -> None:
        if self._stream is None:
            return
        rows = np.ascontiguousarray(tokens if self.name == "tokens" else pictures, self._dtype)
        if self._shape is None:
            self._shape = rows.shape[1:]
            write_json(self._note, {"job": self._job, "row": self._shape})
        self._stream.truncate(first * self._row_bytes)
        self._stream.write(rows)
        self._stream.flush()

    def _is_whole(self) -> bool:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.comment == self._comment
        except (OSError, zipfile.BadZipFile):  # none, or none of ours
            return False

    def __enter__(self):
        if self._is_whole():
            self.done = len(self._rows.values)
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._part.open("ab")
        with contextlib.suppress(OSError):  # a file system without locks
            exclusive(self._stream, f"{self.path} is being written by another process: let it finish, or name another file")
        noted = read_json(self._note) if self._note.is_file() else {}
        if noted.get("job") == self._job:
            self._shape = tuple(noted["row"])
            self.done = self._part.stat().st_size // self._row_bytes
        else:
            self._stream.truncate(0)
        return self

    def __exit__(self, kind, *_) -> None:
        if self._stream is None:
            return
        with self._stream:
            if kind is None:
                self._finish()
            elif self._shape is None:
                self._part.unlink()

    def _finish(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (len(self._rows.values), *self._shape)}
        with replacing(self.path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open(f"{self.name}.npy", "w", force_zip64=True) as file, self._part.open("rb") as part:
                np.lib.format.write_array_header_1_0(file, header)
                shutil.copyfileobj(part, file, 1 << 20)
            if self.name == "tokens":
                with archive.open(f"{self._rows.name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.array(self._rows.values))
            archive.comment = self._comment
        for file in (self._note, self._part):
            file.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when all went well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
