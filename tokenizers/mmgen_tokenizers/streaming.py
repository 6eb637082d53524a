"""Any number of pictures -> token shards -> pictures, a few at a time in memory."""

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .api import Tokenizer
from .errors import UserError
from .files import arrays_in
from .image_folder import ImageFolderSource
from .layout import TokenLayout
from .pictures import PictureError, cover, fit, write_png
from .progress import Counter
from .shards import ShardReader, ShardWriter

EVERY = 300.0  # seconds of work that a kill may cost
LONGEST = 4  # shorter sides: of what is longer still, the middle is taken
AHEAD = 4  # batches that may be read before the first of them has to be written

T, U = TypeVar("T"), TypeVar("U")


def groups(load: Callable[[int], T], total: int, size: int) -> Iterator[list[T]]:
    """load(0), load(1), ... in lists of `size` (the last one shorter); threads read the next list meanwhile."""
    with ThreadPoolExecutor() as threads:
        waiting: list = []
        for start in range(0, total, size):
            reading = [threads.submit(load, index) for index in range(start, min(start + size, total))]
            if waiting:
                yield [future.result() for future in waiting]
            waiting = reading
        if waiting:
            yield [future.result() for future in waiting]


def in_batches(
    items: Iterable[T], key: Callable[[T], Hashable], run: Callable[[list[T]], Iterable[U]], batch: int
) -> Iterator[tuple[T, U]]:
    """Each item with its result, in the order of `items`; those of one key are run `batch` at a time.

    At most AHEAD * batch items wait, so a rare key is run in smaller batches.
    """
    waiting: dict[Hashable, dict[int, T]] = defaultdict(dict)  # its first key is the one whose items wait longest
    ready: dict[int, tuple[T, U]] = {}
    given = 0

    def finish(kind: Hashable) -> None:
        chosen = waiting.pop(kind)
        results = run(list(chosen.values()))
        ready.update({place: pair for place, *pair in zip(chosen, chosen.values(), results, strict=True)})

    for place, item in enumerate(items):
        kind = key(item)
        waiting[kind][place] = item
        if len(waiting[kind]) == batch:
            finish(kind)
        if place + 1 - given >= AHEAD * batch and given not in ready:
            finish(next(iter(waiting)))
        while given in ready:
            yield tuple(ready.pop(given))
            given += 1
    while waiting:
        finish(next(iter(waiting)))
    yield from (tuple(ready[place]) for place in sorted(ready))


# Pictures -> shards ------------------------------------------------------------------------------------------------


def shape_near(height: int, width: int, size: int, factor: int) -> tuple[int, int]:
    """The shape that a picture of height x width is encoded in: `size` pixels on the shorter side, the longer one to scale.

    The longer side goes in steps of about a quarter of the shorter, so that few shapes are compiled.
    """
    step = max(factor, size // 4 // factor * factor)
    longer = round(size * max(height, width) / min(height, width) / step) * step
    longer = min(max(longer, size), LONGEST * size)
    return (longer, size) if height > width else (size, longer)


def encode_folder(
    tokenizer: Tokenizer,
    folder: str | Path,
    out: str | Path,
    size: int | None = None,
    square: bool = False,
    caption: str = "text",
    batch: int = 64,
    every: float = EVERY,
) -> tuple[int, int]:
    """Encodes the pictures of a folder (see ImageFolderSource) into token shards; returns how many, and how many were skipped.

    The shorter side is scaled to `size` (the training resolution unless given). Where the tokenizer takes other shapes,
    pictures keep theirs (see shape_near) unless `square`; else the middle square is taken. `batch`: pictures encoded at once; a
    few times as many are in memory. A picture that cannot be read is named on stderr and left out. Run again after it was
    stopped, it goes on where it was at most `every` seconds before. Raises UserError where the tokenizer cannot take the size,
    for a folder without pictures or without a good one, and where `out` holds other shards.
    """
    source, size = ImageFolderSource(folder, caption), size or tokenizer.config.image_size
    layout, factor = tokenizer.layout_for(size, size), None if square else tokenizer.factor
    total = len(source)

    def run(examples: list[dict[str, Any]]) -> np.ndarray:
        return tokenizer.encode(np.stack([example.pop("image") for example in examples]))

    origin = {"pictures": _digest(source), "size": size, "square": factor is None, "caption": caption}
    writer = ShardWriter(out, tokenizer.fingerprint, layout, "center", source.labels, origin=origin, resume=True)
    first = writer.progress.get("pictures", 0)
    if first:
        print(f"{out}: going on at picture {first} of {total}", file=sys.stderr)
    with writer, Counter(total - first, "pictures") as counter:
        examples, saved, seen = _readable(source, first, size, factor, batch), time.monotonic(), first
        for example, ids in in_batches(examples, lambda e: e["image"].shape, run, batch):
            shape = tokenizer.layout_for(*example["shape"])
            writer.add(
                ids[None], example.get("label"), example.get("text"), *example["original"], name=example["name"], layout=shape
            )
            counter.add(example["index"] + 1 - seen)
            seen = example["index"] + 1
            if time.monotonic() - saved >= every:
                writer.checkpoint(pictures=seen)
                saved = time.monotonic()
        if not writer.count:
            raise UserError(f"none of the pictures in {folder} can be read")
    return writer.count, total - writer.count


def _readable(source: ImageFolderSource, first: int, size: int, factor: int | None, batch: int) -> Iterator[dict[str, Any]]:
    """The pictures from the `first` on, in the shape to encode them in; those that cannot be read are named on stderr."""

    def load(place: int) -> dict[str, Any] | PictureError:
        index = first + place
        try:
            example = dict(source[index])
        except PictureError as error:
            return error
        height, width = example["image"].shape[:2]
        shape = (size, size) if factor is None else shape_near(height, width, size, factor)
        image = fit(example["image"], size) if shape == (size, size) else cover(example["image"], *shape)
        about = {"index": index, "name": source.name(index), "shape": shape, "original": (height, width)}
        return {**example, "image": image, **about}

    for loaded in groups(load, len(source) - first, batch):
        for example in loaded:
            if isinstance(example, PictureError):
                print(f"skipped: {example}", file=sys.stderr)
            else:
                yield example


def _digest(source: ImageFolderSource) -> str:
    """16 hexadecimal digits of the pictures' names in their order: a run that goes on must find the same."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


# Shards -> pictures ------------------------------------------------------------------------------------------------


def decode_shards(tokenizer: Tokenizer, folder: str | Path, out: str | Path, batch: int = 64) -> int:
    """Draws the pictures of token shards, each crop as OUT/NUMBER_NAME.png; returns how many.

    Raises UserError where another tokenizer made the shards.
    """
    reader = ShardReader(folder)
    if reader.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"{folder} was made by another tokenizer ({reader.tokenizer}) than the one given ({tokenizer.fingerprint}): "
            "name that one (`mmgen-tokenizers info` shows fingerprints), or encode the pictures again"
        )

    def crops_of(index: int) -> Iterator[tuple[str, TokenLayout, np.ndarray]]:
        record = reader[index]
        stem = f"{index:0{max(5, len(str(len(reader))))}d}"
        if "name" in record:
            stem += "_" + Path(record["name"]).stem
        layout = layout_of(tokenizer, *record["grid"]) if "grid" in record else reader.layout
        for crop, ids in enumerate(record["ids"]):
            yield f"{stem}.{crop}" if len(record["ids"]) > 1 else stem, layout, ids

    def run(items: list[tuple[str, TokenLayout, np.ndarray]]) -> np.ndarray:
        return tokenizer.decode(np.stack([ids for _, _, ids in items]), items[0][1])

    drawn, crops = 0, len(reader[0]["ids"]) if len(reader) else 1
    with Counter(len(reader) * crops, "pictures") as counter:
        items = (item for index in range(len(reader)) for item in crops_of(index))
        for (stem, _, _), picture in in_batches(items, lambda item: item[1], run, batch):
            write_png(Path(out) / f"{stem}.png", picture)
            drawn += 1
            counter.add(1)
    return drawn


def decode_array(tokenizer: Tokenizer, path: str | Path, out: str | Path, batch: int = 64) -> int:
    """Draws the pictures of the array "tokens" of an .npz as OUT/NUMBER.png; returns how many.

    Raises UserError where there is none, or where its ids are not the tokenizer's.
    """
    names = arrays_in(path)
    if "tokens" not in names:
        raise UserError(f"{path} has no array 'tokens' (it has {', '.join(names) or 'none'}): name an .npz with one, or shards")
    with np.load(path) as arrays:
        tokens = arrays["tokens"]
    with Counter(len(tokens), "pictures") as counter:
        for first in range(0, len(tokens), batch):
            pictures = tokenizer.decode(tokens[first : first + batch])
            for index, picture in enumerate(pictures, first):
                write_png(Path(out) / f"{index:05d}.png", picture)
            counter.add(len(pictures))
    return len(tokens)


def layout_of(tokenizer: Tokenizer, height: int, width: int) -> TokenLayout:
    """The layout that has so many rows and columns of ids."""
    factor = tokenizer.factor
    return tokenizer.layout if factor is None else tokenizer.layout_for(height * factor, width * factor)
