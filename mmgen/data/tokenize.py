"""Pictures -> token shards: every picture is encoded once, in one or more crops, for generators to train on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import mmgen_tokenizers as mt
import numpy as np
from jaxtyping import UInt8
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.pictures import fit, ten_crop
from mmgen_tokenizers.progress import Counter
from mmgen_tokenizers.shards import ShardWriter, is_complete, join, part_of, remove_parts
from mmgen_tokenizers.streaming import EVERY, groups

from mmgen.config import Data
from mmgen.data import open_source, parse_source

TOGETHER = 64  # crops encoded at once, for each device

Crop = Callable[[UInt8[np.ndarray, "H W 3"], int], UInt8[np.ndarray, "crops size size 3"]]


def tokenize(
    tokenizer: str | Path,
    data: str,
    out: str | Path,
    crops: str = "center",
    flip: bool = False,
    count: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    part: tuple[int, int] | None = None,
) -> int:
    """Encodes the pictures that `data` names (see `parse_source`) with the tokenizer in a folder; returns their number.

    Stopped and started again it goes on. `part` (i, n): of n processes that see the same `out` this is number i, from 0, and
    takes its share of the pictures; the last one to finish puts the parts together.

    `crops`: "center" (one of each), "random:K" (K random ones, half of them mirrored with `flip`), "random:K:1.125" (of that
    margin all, as VAR's, arXiv 2404.02905), "ten" (LlamaGen's and RAR's, arXiv 2406.06525 and 2411.00776) or "ten:1.1,1.05"
    (ten for each margin: all that LlamaGen trains on). Picture i gives the same crops whatever the count. Damaged pictures are
    replaced and counted. All devices of the process encode. Raises UserError for an unknown crop, source or tokenizer, and
    where `out` holds shards already, or some of other pictures or settings.
    """
    if count is not None and count < 1:
        raise UserError(f"--count {count}: ask for at least one picture")
    if part is not None and is_complete(out):
        remove_parts(out)  # a kill may have left them
        raise UserError(f"{out} already holds all parts: choose another folder or delete it")
    tok, devices = mt.load(tokenizer), jax.local_devices()
    tok = tok.over(devices) if len(devices) > 1 else tok
    policy, crop = crop_policy(crops, tok.config.image_size, flip, seed)
    source = open_source(Data(parse_source(data, data_dir), size=tok.config.image_size))
    if "image" not in source[0]:
        raise UserError(f"{data} holds no pictures: `mmgen tokenize` reads pictures, not token shards")
    total = len(source) if count is None else min(count, len(source))
    index, parts = part or (0, 1)
    first, last = (total * i // parts for i in (index, index + 1))

    def load(index: int) -> dict[str, Any]:
        example = dict(source[index])
        height, width = example["image"].shape[:2]
        return example | {"image": crop(example["image"], index), "height": height, "width": width}

    place = Path(out) if part is None else part_of(out, index, parts)
    if part is None or not is_complete(place):
        origin = {"data": data, "crops": crops, "flip": flip, "seed": seed, "pictures": [first, last]}
        with ShardWriter(place, tok.fingerprint, tok.layout, policy, source.labels, origin=origin, resume=True) as writer:
            _encode(tok, load, first, last, writer)
    replaced = f", {len(source.damaged)} damaged pictures replaced" if source.damaged else ""
    print(f"{place}: {last - first} pictures ({crops}), {tok.layout.sites} tokens each{replaced}")
    if part is not None and join(out, [part_of(out, i, parts) for i in range(parts)]):
        print(f"{out}: {total} pictures, of {parts} parts")
    return last - first


def _encode(tok: mt.Tokenizer, load: Callable[[int], dict[str, Any]], first: int, last: int, writer: ShardWriter) -> None:
    """Pictures `first` to `last` (without it), from where `writer` goes on; a kill costs the work of EVERY seconds."""
    start, saved = writer.progress.get("next", first), time.monotonic()
    with Counter(last - start, "pictures") as counter:
        together = max(1, TOGETHER * jax.local_device_count() // len(load(0)["image"]))
        for examples in groups(lambda i: load(start + i), last - start, together):
            ids = tok.encode(np.concatenate([example["image"] for example in examples]))
            for example, rows in zip(examples, np.split(np.asarray(ids), len(examples)), strict=True):
                writer.add(rows, example.get("label"), example.get("text"), example["height"], example["width"])
            counter.add(len(examples))
            if time.monotonic() - saved > EVERY:
                writer.checkpoint(next=first + writer.count)
                saved = time.monotonic()


def crop_policy(crops: str, size: int, flip: bool, seed: int) -> tuple[str, Crop]:
    """The manifest's name of a policy, and the function (picture, index) -> its crops uint8 [crops, size, size, 3]."""
    name, _, rest = crops.partition(":")
    number, _, own = rest.partition(":")
    if name == "random" and number.isdigit() and int(number) > 0:
        margin = _margin(crops, own) if own else None

        def random(picture: np.ndarray, index: int) -> np.ndarray:
            rng = np.random.default_rng([seed, index])
            return np.stack([fit(picture, size, "random", flip, rng, margin) for _ in range(int(number))])

        return "random", random
    if flip:
        raise UserError("--flip goes with --crops random:K; ten crops hold mirror images already")
    if crops == "center":
        return "center", lambda picture, index: fit(picture, size)[None]
    if name == "ten":
        margins = [_margin(crops, text) for text in rest.split(",")] if rest else [1.1]
        return "ten", lambda picture, index: np.concatenate([ten_crop(picture, size, margin) for margin in margins])
    near = nearest(name, ("center", "random", "ten"))
    raise UserError(f"unknown crops {crops!r}: center, random:K (K crops of each picture) or ten.{near}")


def _margin(crops: str, text: str) -> float:
    try:
        margin = float(text)
    except ValueError:
        margin = 0.0
    if not 1 <= margin <= 2:
        raise UserError(f"--crops {crops}: margins around crops are 1 to 2, as in ten:1.1,1.05 and random:10:1.125")
    return margin
