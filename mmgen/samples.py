"""Many pictures from one model into files: a grid, one file a picture, or one array; in pieces, so that any number fits."""

import contextlib
import json
import math
import os
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import arrays_in, temporary_beside, write_json
from mmgen_tokenizers.pictures import grid, to_uint8, write_png
from mmgen_tokenizers.progress import Counter
from PIL import Image

from mmgen.decoding.choice import Choice
from mmgen.decoding.target import check_ranges, guidance_schedule
from mmgen.generator import Generator, check_seed, load
from mmgen.model.config import ClassCondition, FeatureCondition, Sampling, TextCondition

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
    draft: str | Path | None = None,
    **settings,
) -> list[Path]:
    """Draws `num` pictures for each prompt or label with the generator in a folder and returns the files written.

    `out`: FILE.png (a grid) or a folder (a file a picture), with a JSON of what was drawn beside; `tokens`: a file with
    int32 "tokens" [N, sites]; `npz`: a file with uint8 "arr_0" [N, H, W, 3]. `settings` go to `Generator.generate`,
    `dtype` to `mmgen.load`; `draft` is the folder of the generator that speculative decoding drafts with.
    """
    start = time.perf_counter()
    settings = {k: v for k, v in settings.items() if v is not None}
    out = "samples.png" if out is None and npz is None and tokens is None else out
    check_settings(num, seed, settings, draft)
    check_paths(out, tokens, npz)
    generator = load(folder, dtype)
    rows = conditions(generator, prompts, labels, num)
    check_outputs(generator, len(rows.values), out, npz)
    about = {"model": str(folder), "seed": seed, "settings": settings | ({"draft": str(draft)} if draft else {})}
    settings |= {"draft": load(draft, dtype)} if draft else {}
    with contextlib.ExitStack() as stack:
        counter = stack.enter_context(Counter(len(rows.values), "pictures"))
        sinks = [stack.enter_context(sink) for sink in outputs(rows, about, out, tokens, npz)]
        step, forwards = generator.rows_at_once, 0
        for first in range(0, len(rows.values), step):
            piece = rows.values[first : first + step]
            made = generator.generate(**{rows.name: piece}, seed=seed, first_index=first, **settings)
            pictures = None if made.images is None else to_uint8(made.images)
            for sink in sinks:
                sink.add(first, made.tokens, pictures)
            counter.add(len(piece))
            forwards = max(forwards, made.forwards)
    files = [sink.path for sink in sinks]
    work = f"{forwards} forwards for {generator.config.layout.sites} sites"
    print(f"{len(rows.values)} pictures in {time.perf_counter() - start:.1f} s, {work}: {', '.join(map(str, files))}")
    return files


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
    named = f" or one of its names.{nearest(text, names)}" if names else ""
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


def check_outputs(generator: Generator, count: int, out: str | None, npz: str | None) -> None:
    """Raises UserError, before anything is computed, for what this model or so many pictures cannot give."""
    if generator.tokenizer is None and (out or npz):
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
    """The writers that are asked for: context managers with `add(first, tokens, pictures)` and `path`."""
    count = len(rows.values)
    wanted = [
        (out, lambda: (GridFile if is_grid(out) else PictureFolder)(Path(out), rows, about)),
        (tokens, lambda: TokenFile(Path(tokens), rows)),
        (npz, lambda: PictureArray(Path(npz), count)),
    ]
    return [make() for path, make in wanted if path is not None]


class GridFile:
    """One PNG of all pictures, the prompts in its metadata, and a JSON of the same name."""

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
        texts = "\n".join(str(next(reversed(text.values()))) for text in self._rows.texts)
        write_png(self.path, grid(np.stack(self._pictures), columns), {self._rows.name: texts, "mmgen": json.dumps(about)})
        write_json(self.path.with_suffix(".json"), about)


def grid_columns(rows: Rows) -> int:
    """One row a prompt where each has several pictures, else about a square."""
    same = next((i for i, value in enumerate(rows.values) if value != rows.values[0]), len(rows.values))
    return same if 1 < same < len(rows.values) else math.ceil(math.sqrt(len(rows.values)))


class PictureFolder:
    """00000.png, 00001.png, ... with their prompts in the metadata, and samples.json."""

    def __init__(self, path: Path, rows: Rows, about: dict):
        self.path, self._rows, self._about, self._files = path, rows, about, []
        path.mkdir(parents=True, exist_ok=True)

    def add(self, first: int, tokens: np.ndarray, pictures: UInt8[np.ndarray, "b h w 3"]) -> None:
        for index, picture in enumerate(pictures, first):
            entry = {"file": f"{index:05d}.png", "index": index} | self._rows.texts[index]
            self._files.append(entry)
            write_png(self.path / entry["file"], picture, {k: str(v) for k, v in (self._about | entry).items() if k != "file"})

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        if not self._files:
            return
        # Also of a job that was stopped: what is there is described.
        write_json(self.path / "samples.json", self._about | {"pictures": self._files})
        others = {path.name for path in self.path.glob("*.png")} - {entry["file"] for entry in self._files}
        if others:
            warnings.warn(
                f"{self.path} holds {len(others)} other pictures, such as {min(others)}, that were there before; samples.json "
                "lists those of this job",
                stacklevel=2,
            )


class TokenFile:
    """int32 "tokens" [N, sites], and "labels" or "prompts" beside, in one .npz."""

    def __init__(self, path: Path, rows: Rows):
        self.path, self._rows, self._tokens = path, rows, []

    def add(self, first: int, tokens: Int[np.ndarray, "b n ..."], pictures: np.ndarray | None) -> None:
        self._tokens.append(tokens)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            with replacing(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, tokens=np.concatenate(self._tokens), **{self._rows.name: np.array(self._rows.values)})


class PictureArray:
    """uint8 "arr_0" [N, H, W, 3] in one .npz, the form that FID suites read; written piece by piece."""

    def __init__(self, path: Path, count: int):
        self.path, self._count = path, count

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(replacing(self.path))
            archive = stack.enter_context(zipfile.ZipFile(temporary, "w"))
            self._stream = stack.enter_context(archive.open("arr_0.npy", "w", force_zip64=True))
            self._stack = stack.pop_all()
        self._begun = False
        return self

    def add(self, first: int, tokens: np.ndarray, pictures: UInt8[np.ndarray, "b h w 3"]) -> None:
        if not self._begun:
            header = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *pictures.shape[1:])}
            np.lib.format.write_array_header_1_0(self._stream, header)
            self._begun = True
        self._stream.write(np.ascontiguousarray(pictures))

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)


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
