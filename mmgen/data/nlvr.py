"""Boxes of NLVR (Suhr et al. 2017): circles, squares and triangles on grey, in words, drawn, and read back by a program.

Captions count what a box holds, "two blue triangles, one yellow circle", or say how two things stand: "one black square above
one yellow circle".

As data a folder is read that has a metadata.jsonl like an imagefolder, with the objects of the three boxes of each picture of
100 x 400 pixels. (The release, lil-lab/nlvr, says the same in other words, as "structured_rep" in a .json of each split.)

{"file_name": "dev-0-0.png", "split": "dev",
 "boxes": [[{"shape": "circle", "color": "blue", "size": "medium", "x": 40, "y": 10}, ...], [...], [...]]}
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.image_folder import read_metadata
from mmgen_tokenizers.pictures import PictureError, read_picture
from PIL import Image

from mmgen.data.shapes import RELATIONS, SQUARE, cover, opposite

COLOURS = {"black": (0, 0, 0), "blue": (0, 153, 255), "yellow": (255, 255, 0)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 10, "medium": 20, "large": 30}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
SIDE = 100  # units of a box; as many pixels in NLVR's pictures, in which boxes begin at 0, 150 and 300
STARTS = (0, 150, 300)
SMALLEST = 32  # pixels of a picture that can be read: a small object has three
_BACKGROUND = 211


class Thing(NamedTuple):
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Object:
    """`x`, `y`: of its upper left corner, in hundredths of the box."""

    thing: Thing
    size: str
    x: int
    y: int

    @property
    def pixels(self) -> int:
        return SIZES[self.size]


# In words ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a caption asks for: so many of each thing; with a `relation`, that the first stands so to the second."""

    things: tuple[tuple[Thing, int], ...]
    relation: str | None = None

    def __str__(self) -> str:
        parts = [f"{NUMBERS[count - 1]} {thing}{'s' if count > 1 else ''}" for thing, count in self.things]
        return f" {self.relation} ".join(parts) if self.relation else ", ".join(parts)


_GROUP = rf"({'|'.join(NUMBERS)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})s?"


def parse(caption: str) -> Said:
    """What a caption says. Raises UserError for a sentence that is none of these."""
    words = " ".join(caption.lower().rstrip(" .").split())
    relation = next((r for r in RELATIONS if f" {r} " in words), None)
    matches = [re.fullmatch(_GROUP, part) for part in words.split(f" {relation} " if relation else ", ")]
    if None in matches or (relation and [m[1] for m in matches] != ["one"] * 2):
        raise UserError(f"cannot check {caption!r}: write it like 'two blue triangles, one yellow circle'.")
    return Said(tuple((Thing(m[2], m[3]), NUMBERS.index(m[1]) + 1) for m in matches), relation)


def counted(objects: Sequence[Object]) -> Said:
    """What a box holds, in NLVR's own order."""
    return Said(tuple(sorted(Counter(item.thing for item in objects).items())))


def related(objects: Sequence[Object], turned: bool = False) -> Said | None:
    """How two different things stand, if one is wholly above the other or left of it; `turned`: from the other one's side."""
    if len(objects) != 2 or objects[0].thing == objects[1].thing:
        return None
    one, other = objects[::-1] if turned else objects
    found = next((relation for relation in RELATIONS if stands(one, relation, other)), None)
    return found and Said(((one.thing, 1), (other.thing, 1)), found)


def stands(one: Object, relation: str, other: Object, slack: int = 0) -> bool:
    """Whether the relation is true, but for an overlap of `slack`."""
    if relation in ("below", "right of"):
        return stands(other, opposite(relation), one, slack)
    axis = "y" if relation == "above" else "x"
    return getattr(one, axis) + one.pixels <= getattr(other, axis) + slack


def prompts(count: int) -> list[str]:
    """Captions of four kinds in turn: one thing, several of one, two things, how two things stand."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    kinds = [
        [Said(((thing, 1),)) for thing in things],
        [Said(((thing, number),)) for thing in things for number in (2, 3, 4)],
        [Said(((one, 1), (other, 1))) for one, other in itertools.combinations(things, 2)],
        [Said(((one, 1), (other, 1)), r) for one, other in itertools.permutations(things, 2) for r in RELATIONS],
    ]
    mixed = [np.random.default_rng(0).permutation(len(kind)) for kind in kinds]
    return [str(kinds[i % 4][mixed[i % 4][i // 4 % len(mixed[i % 4])]]) for i in range(count)]


# Drawn ---------------------------------------------------------------------------------------------------------------


def draw(objects: Sequence[Object]) -> UInt8[np.ndarray, "100 100 3"]:
    """The picture of a box, as NLVR has it but for a few pixels of edges."""
    picture = np.full((SIDE, SIDE, 3), _BACKGROUND, float)
    for item in objects:
        place = np.s_[item.y : item.y + item.pixels, item.x : item.x + item.pixels]
        cover = cover_of(item.thing.shape, item.pixels)[..., None]
        picture[place] += cover * (np.array(COLOURS[item.thing.colour]) - picture[place])
    return np.rint(picture).astype(np.uint8)


@functools.cache
def cover_of(shape: str, pixels: int) -> Float[np.ndarray, "pixels pixels"]:
    """The share of each pixel that the shape covers; all are as wide as high."""
    radius = pixels / 2 / (SQUARE if shape == "square" else 1)
    return cover(shape, radius, (pixels / 2, pixels / 2), pixels, pixels)


# Read back -----------------------------------------------------------------------------------------------------------

_LIKE = 0.5  # an object is there where it explains at least this share of what it would look like
_UNCLEAR = 0.25  # mean squared difference from what was read, over a small object's size, that is something else


def read(picture: UInt8[np.ndarray, "size size 3"]) -> tuple[tuple[Object, ...], bool]:
    """The objects of a box, and whether something else is there, too. Pictures of other sizes are scaled to 100 pixels.

    Matching pursuit (Mallat and Zhang 1993): the object whose colour, shape, size and place explain most of what is left is
    taken away, until none explains enough of itself.
    """
    left, found = _difference(picture), []
    while (item := _best(left)) is not None:
        found.append(item)
        left -= (draw([item]).astype(np.float32) - _BACKGROUND) / 255
    energy = np.fft.rfft2(np.square(left).sum(-1))
    blocks = np.fft.irfft2(energy * _spectra()[("square", "small")][0], (SIDE, SIDE)) / SIZES["small"] ** 2
    return tuple(found), bool(blocks.max() > _UNCLEAR)


def _difference(picture: UInt8[np.ndarray, "size size 3"]) -> Float[np.ndarray, "100 100 3"]:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 3:
        raise UserError(f"the checker reads square pictures uint8 [H, H, 3], not {picture.dtype} {list(picture.shape)}")
    if picture.shape[0] != SIDE:
        picture = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (picture.astype(np.float32) - _BACKGROUND) / 255


def _best(left: Float[np.ndarray, "100 100 3"]) -> Object | None:
    """|left|^2 - |left - cover x colour|^2 = 2 <left, cover x colour> - |cover|^2 |colour|^2, at all places at once."""
    best, gain = None, 0.0
    for colour, rgb in COLOURS.items():
        offset = (np.array(rgb, np.float32) - _BACKGROUND) / 255
        projected = np.fft.rfft2(left @ offset)
        for (shape, size), (spectrum, norm) in _spectra().items():
            whole, room = norm * float(offset @ offset), SIDE - SIZES[size] + 1
            gains = 2 * np.fft.irfft2(projected * spectrum, (SIDE, SIDE))[:room, :room] - whole
            place = int(gains.argmax())
            if gains.flat[place] > max(gain, _LIKE * whole):
                y, x = divmod(place, room)
                best, gain = Object(Thing(colour, shape), size, x, y), float(gains.flat[place])
    return best


@functools.cache
def _spectra() -> dict[tuple[str, str], tuple[np.ndarray, float]]:
    """(shape, size) -> what multiplies a spectrum to give <picture, cover> for every place, and |cover|^2."""
    found = {}
    for shape in SHAPES:
        for size, pixels in SIZES.items():
            cover = cover_of(shape, pixels).astype(np.float32)
            found[shape, size] = np.conj(np.fft.rfft2(cover, (SIDE, SIDE))), float(np.square(cover).sum())
    return found


# As data -------------------------------------------------------------------------------------------------------------


class NLVRSource:
    """Boxes of an NLVR folder by index: {"image": uint8 [100, 100, 3], "text": str}. A box of two different things comes twice,
    the second time with their relation. "test" has the pictures of that name in metadata.jsonl, "train" all others."""

    labels = None

    def __init__(self, folder: str | Path, split: Literal["train", "test"] = "train"):
        self._folder, self._boxes = Path(folder), []
        metadata = self._folder / "metadata.jsonl"
        if not metadata.is_file():
            raise UserError(f"{self._folder} is no folder of NLVR: there is no metadata.jsonl with boxes")
        for _, row in read_metadata(metadata):
            if (row.get("split") == "test") == (split == "test"):
                self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        for start, objects in zip(STARTS, objects_of(row), strict=True):
            said = [counted(objects), related(objects, len(self._boxes) % 2 == 0)]
            self._boxes += [(row["file_name"], start, str(one)) for one in said if one is not None]

    def __len__(self) -> int:
        return len(self._boxes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, start, caption = self._boxes[index]
        return {"image": box_of(read_picture(self._folder / name), start), "text": caption}

    def caption(self, index: int) -> str:
        return self._boxes[index][2]


def box_of(picture: UInt8[np.ndarray, "H W 3"], start: int) -> UInt8[np.ndarray, "100 100 3"]:
    if picture.shape[:2] != (SIDE, STARTS[-1] + SIDE):
        raise PictureError(f"a picture of {picture.shape[0]} x {picture.shape[1]} pixels is none of NLVR's")
    return picture[:, start : start + SIDE]


def objects_of(row: dict[str, Any]) -> list[tuple[Object, ...]]:
    """The objects of each box, of a row of metadata.jsonl with "boxes". Raises UserError where it has another form."""
    try:
        boxes = [tuple(map(_object, box)) for box in row["boxes"]]
        if len(boxes) != len(STARTS):
            raise ValueError(f"{len(boxes)} boxes, not {len(STARTS)}")
    except (KeyError, TypeError, ValueError) as error:
        about = f"metadata.jsonl has no NLVR boxes in the row of {row.get('file_name')} ({type(error).__name__}: {error})"
        raise UserError(f'{about}: mmgen/data/nlvr.py shows how "boxes" are written') from None
    return boxes


def _object(told: dict[str, Any]) -> Object:
    """Raises KeyError, TypeError or ValueError for what is none."""
    found = Object(Thing(told["color"], told["shape"]), told["size"], int(told["x"]), int(told["y"]))
    if found.thing.colour not in COLOURS or found.thing.shape not in SHAPES or found.size not in SIZES:
        raise ValueError(f"no {found.size} {found.thing}")
    return found
