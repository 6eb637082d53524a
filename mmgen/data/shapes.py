"""Captioned scenes drawn from their index alone, and the program that reads a picture back into objects.

A scene stands on 2 x 2 cells; one to three cells hold a small or large shape in one of six colours, moved by up to a
pixel. Its caption is English with an exact meaning, so whether a picture shows what was asked is decided by program:

    one     a small red circle in the top left
    two     a small red circle above a large blue square                    the columns are free
    three   a small red circle above a large blue square and left of a small green triangle

A *combination* is what a caption says, not how: "A above B" and "B below A" are one. Every combination belongs, by a
hash of its number, to the training or to the test split (about one in ten), so a test prompt asks for something that no
training caption said. No two objects of a scene share both colour and shape.
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from mmgen_tokenizers.errors import UserError

COLOURS = {
    "red": (222, 55, 48),
    "yellow": (250, 200, 28),
    "green": (38, 162, 84),
    "blue": (42, 98, 222),
    "purple": (154, 68, 196),
    "black": (44, 46, 56),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
PLACES = ("top left", "top right", "bottom left", "bottom right")
RELATIONS = ("above", "below", "left of", "right of")  # the opposite of relation r is r ^ 1

SQUARE = 0.875  # half a square's side, of the radius of a circle that looks as large
_RADIUS = {"small": 4.0, "large": 6.5}  # pixels of the 32 x 32 picture
_SPLITS = ("train", "test")
_TEST_SHARE = 10  # one combination in this many is kept for the test split
_SHARES = (20, 45, 35)  # percent of the scenes with one, two, three objects
_BACKGROUND = np.array((248, 247, 244))

# ---------------------------------------------------------------------------------------------------- what a caption says


@dataclass(frozen=True, order=True)
class Thing:
    """An object as a caption names it."""

    colour: str
    shape: str
    size: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Combination:
    """What a caption says, in canonical form.

    One thing with a place; or a thing and, for each of the others, (relation, thing): the first stands in that
    relation to the other. Two things are told by "above" or "left of"; three have their vertical relation first.
    """

    thing: Thing
    place: str | None = None
    others: tuple[tuple[str, Thing], ...] = ()

    @property
    def things(self) -> tuple[Thing, ...]:
        return (self.thing, *(other for _, other in self.others))


def combination(thing: Thing, place: str | None = None, others: Sequence[tuple[str, Thing]] = ()) -> Combination:
    """The canonical form of what was said: turned for two things, sorted for three."""
    if len(others) == 1:
        relation, other = others[0]
        if RELATIONS.index(relation) % 2:
            return Combination(other, None, ((opposite(relation), thing),))
    return Combination(thing, place, tuple(sorted(others, key=lambda o: (RELATIONS.index(o[0]), _number(o[1])))))


def opposite(relation: str) -> str:
    """What holds from the other thing's side."""
    return RELATIONS[RELATIONS.index(relation) ^ 1]


def _number(thing: Thing) -> int:
    """0..47; things that share colour and shape differ in the last bit only."""
    colour, shape = tuple(COLOURS).index(thing.colour), SHAPES.index(thing.shape)
    return (colour * len(SHAPES) + shape) * 2 + SIZES.index(thing.size)


@functools.cache
def _thing(number: int) -> Thing:
    kind, size = divmod(int(number), 2)
    colour, shape = divmod(kind, len(SHAPES))
    return Thing(tuple(COLOURS)[colour], SHAPES[shape], SIZES[size])


# Every combination has a number (a, b, c: things): one object a * 4 + place; two (a * 48 + b) * 2 + (above, left of);
# three ((a * 48 + b) * 48 + c) * 8 + pair of relations. Not every number is a combination: see _numbers.
_THINGS = len(COLOURS) * len(SHAPES) * len(SIZES)
_PAIRS = tuple((v, h) for v in RELATIONS[:2] for h in RELATIONS[2:]) + tuple((r, r) for r in RELATIONS)


@functools.cache
def _numbers(objects: int, split: str) -> Int[np.ndarray, " count"]:
    """The numbers of the combinations of so many objects that belong to the split, ascending."""
    if objects == 1:
        numbers = np.arange(_THINGS * len(PLACES))
    elif objects == 2:
        a, b, _ = np.indices((_THINGS, _THINGS, 2)).reshape(3, -1)
        numbers = np.flatnonzero(a // 2 != b // 2)
    else:
        a, b, c, pair = np.indices((_THINGS, _THINGS, _THINGS, len(_PAIRS)), dtype=np.int16).reshape(4, -1)
        differ = (a // 2 != b // 2) & (a // 2 != c // 2) & (b // 2 != c // 2)
        numbers = np.flatnonzero(differ & ((pair < 4) | (b < c)))
    return numbers[_is_test(objects, numbers) == (split == "test")]


def _is_test(objects: int, numbers: Int[np.ndarray, " count"]) -> Bool[np.ndarray, " count"]:
    """SplitMix64's finaliser as a stable hash."""
    z = numbers.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * objects) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) % np.uint64(_TEST_SHARE) == 0


def _combination(objects: int, number: int) -> Combination:
    number = int(number)
    if objects == 1:
        return Combination(_thing(number // 4), PLACES[number % 4])
    if objects == 2:
        a, b = divmod(number // 2, _THINGS)
        return Combination(_thing(a), None, ((RELATIONS[2 * (number % 2)], _thing(b)),))
    ab, c = divmod(number // len(_PAIRS), _THINGS)
    a, b = divmod(ab, _THINGS)
    first, second = _PAIRS[number % len(_PAIRS)]
    return Combination(_thing(a), None, ((first, _thing(b)), (second, _thing(c))))


def combinations(split: str, objects: Sequence[int] = (1, 2, 3)) -> Iterator[Combination]:
    """Every combination of the split ("train" or "test") with so many objects."""
    for count in objects:
        for number in _numbers(count, _known(split)):
            yield _combination(count, number)


def _known(split: str) -> str:
    if split not in _SPLITS:
        raise UserError(f"shapes has no split {split!r}: use 'train' or 'test'.")
    return split


# ---------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Object:
    """A thing that stands in a cell (0..3, in the order of PLACES), `moved` by (right, down) times one pixel."""

    thing: Thing
    cell: int
    moved: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]
    caption: str


class _Choices:
    """Choices that are a pure function of a name: digits of its hash."""

    def __init__(self, name: str):
        self.rest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=32).digest(), "little")

    def below(self, count: int) -> int:
        self.rest, choice = divmod(self.rest, count)
        return choice


def scene(index: int, split: str = "train") -> Scene:
    """The scene with this index: what it says, how it says so, and what the caption leaves open."""
    choose = _Choices(f"{_known(split)} {index}")
    share = choose.below(100)
    objects = 1 + (share >= _SHARES[0]) + (share >= _SHARES[0] + _SHARES[1])
    numbers = _numbers(objects, split)
    said = _combination(objects, numbers[choose.below(len(numbers))])
    cells = arrangements(said)
    return Scene(
        tuple(
            Object(thing, cell, (choose.below(2), choose.below(2)))
            for thing, cell in zip(said.things, cells[choose.below(len(cells))], strict=True)
        ),
        wordings(said)[choose.below(2)],
    )


def wordings(said: Combination) -> tuple[str, str]:
    """Both ways to say it (the same for one object): from the other thing's side, or in the other order."""
    if said.place:
        return (f"{said.thing} in the {said.place}",) * 2
    if len(said.others) == 1:
        relation, other = said.others[0]
        return f"{said.thing} {relation} {other}", f"{other} {opposite(relation)} {said.thing}"
    first, second = (f"{relation} {other}" for relation, other in said.others)
    return f"{said.thing} {first} and {second}", f"{said.thing} {second} and {first}"


def arrangements(said: Combination) -> tuple[tuple[int, ...], ...]:
    """Every way to give each thing a cell of its own so that the combination is true."""
    return _arrangements(said.place, tuple(relation for relation, _ in said.others))


@functools.cache
def _arrangements(place: str | None, relations: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    cells = np.stack(np.indices((4,) * (1 + len(relations))), -1).reshape(-1, 1 + len(relations)).tolist()
    return tuple(tuple(c) for c in cells if len(set(c)) == len(c) and _holds(place, relations, c))


def _holds(place: str | None, relations: Sequence[str], cells: Sequence[int]) -> bool:
    if place is not None and PLACES[cells[0]] != place:
        return False
    return all(_stands(cells[0], relation, cell) for relation, cell in zip(relations, cells[1:], strict=True))


def _stands(cell: int, relation: str, other: int) -> bool:
    (row, column), (other_row, other_column) = divmod(cell, 2), divmod(other, 2)
    return {
        "above": row < other_row,
        "below": row > other_row,
        "left of": column < other_column,
        "right of": column > other_column,
    }[relation]


# --------------------------------------------------------------------------------------------------------------- drawing


def draw(scene: Scene, size: int = 32) -> UInt8[np.ndarray, "size size 3"]:
    """The picture of a scene, 32 or 64 pixels wide."""
    if size not in (32, 64):
        raise UserError(f"shapes draws pictures of 32 or 64 pixels, not {size}: set size to one of them.")
    half = size // 2
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = _BACKGROUND
    for item in scene.objects:
        row, column = divmod(item.cell, 2)
        cover = _cover(item.thing.shape, item.thing.size, item.moved, half)[..., None]
        cell = _BACKGROUND + cover * (np.asarray(COLOURS[item.thing.colour]) - _BACKGROUND)
        picture[row * half : (row + 1) * half, column * half : (column + 1) * half] = np.rint(cell)
    return picture


@functools.cache
def _cover(shape: str, size: str, moved: tuple[float, float], pixels: int) -> Float[np.ndarray, "pixels pixels"]:
    """The share of each pixel of a cell that the shape covers. A cell is 16 units wide whatever its pixels."""
    return cover(shape, _RADIUS[size], (7.5 + moved[0], 7.5 + moved[1]), pixels, 16)


def cover(
    shape: str, radius: float, centre: tuple[float, float], pixels: int, width: float
) -> Float[np.ndarray, "pixels pixels"]:
    """The share of each pixel of a square `width` units wide that a shape around `centre` (right, down) covers."""
    samples = 8  # a side, in every pixel
    at = (np.arange(pixels * samples) + 0.5) * width / (pixels * samples)
    inside = _inside(shape, at[None, :] - centre[0], at[:, None] - centre[1], radius)
    return inside.reshape(pixels, samples, pixels, samples).mean((1, 3))


def _inside(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    if shape == "circle":
        return x**2 + y**2 < radius**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < SQUARE * radius
    if shape == "triangle":  # upright: the apex at -radius, the base as wide as high
        return (abs(y) < radius) & (2 * abs(x) < y + radius)
    arm = 0.34 * radius
    return (np.minimum(abs(x), abs(y)) < arm) & (np.maximum(abs(x), abs(y)) < radius)


# -------------------------------------------------------------------------------------------------------------- checking

_NAMED = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"{_NAMED}(?: in the ({'|'.join(PLACES)})| ({'|'.join(RELATIONS)}) {_NAMED}(?: and ({'|'.join(RELATIONS)}) {_NAMED})?)"
)


def parse(caption: str) -> Combination:
    """What a caption says. UserError for a sentence that shapes does not speak, or that no picture can show."""
    words = " ".join(caption.lower().rstrip(" .").split())
    match = _CAPTION.fullmatch(words)
    if not match:
        raise UserError(f"cannot check {caption!r}: write it like 'a small red circle above a large blue square'.")
    found = match.groups()
    thing = Thing(found[1], found[2], found[0])
    others = [(found[i], Thing(found[i + 2], found[i + 3], found[i + 1])) for i in (4, 8) if found[i]]
    said = combination(thing, found[3], others)
    if not arrangements(said) or len({(t.colour, t.shape) for t in said.things}) < len(said.things):
        raise UserError(f"cannot check {caption!r}: it contradicts itself or names the same thing twice.")
    return said


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one picture. `found` has the objects read, `unclear` the cells that it cannot read.

    objects_right: exactly the named things are there, in colour and shape. places_right: in size and place as well.
    """

    objects_right: bool
    places_right: bool
    found: tuple[Object, ...]
    unclear: tuple[int, ...] = ()


def verify(caption: str, picture: UInt8[np.ndarray, "size size 3"]) -> Verdict:
    """Does the picture show what the caption says, and nothing else?"""
    return verify_all([caption], np.asarray(picture)[None])[0]


def verify_all(captions: Sequence[str], pictures: UInt8[np.ndarray, "B size size 3"]) -> list[Verdict]:
    read = read_cells(pictures)
    return [_judge(parse(caption), *cells) for caption, cells in zip(captions, read, strict=True)]


def _judge(said: Combination, found: tuple[Object, ...], unclear: tuple[int, ...]) -> Verdict:
    asked = Counter((thing.colour, thing.shape) for thing in said.things)
    shown = {(o.thing.colour, o.thing.shape): o for o in found}
    objects_right = not unclear and asked == Counter((o.thing.colour, o.thing.shape) for o in found)
    if not objects_right:
        return Verdict(False, False, found, unclear)
    stand = [shown[thing.colour, thing.shape] for thing in said.things]
    sizes_right = all(o.thing.size == thing.size for o, thing in zip(stand, said.things, strict=True))
    holds = _holds(said.place, [relation for relation, _ in said.others], [o.cell for o in stand])
    return Verdict(True, sizes_right and holds, found)


_BLANK = 0.012  # mean squared difference from the background below which a cell is empty (1 = black on white)
_EXPLAINED = 0.3  # a template must leave at most this share of the cell's difference from the background
_CLEARER = 0.8  # and at most this share of what the best other thing leaves


def read_cells(pictures: UInt8[np.ndarray, "B size size 3"]) -> list[tuple[tuple[Object, ...], tuple[int, ...]]]:
    """For each picture the objects read and the cells that hold something else.

    Each cell is compared with every thing in every position. It is empty if it is nearly background; an object if the
    best template explains most of what differs from the background and no other thing explains it about as well.
    """
    energy, left = _unexplained(_cells(pictures))
    position, best = left.argmin(-1), left.min(-1)
    winner = best.argmin(-1)
    first, second = np.moveaxis(np.partition(best, 1, axis=-1)[..., :2], -1, 0)
    filled = energy >= _BLANK
    clear = filled & (first < _EXPLAINED * energy) & (first < _CLEARER * second)
    moves = _masks()[0]
    return [
        (
            tuple(Object(_thing(winner[b, c]), c, moves[position[b, c, winner[b, c]]]) for c in range(4) if clear[b, c]),
            tuple(c for c in range(4) if filled[b, c] and not clear[b, c]),
        )
        for b in range(len(winner))
    ]


def _unexplained(
    cells: Float[np.ndarray, "B 4 256 3"],
) -> tuple[Float[np.ndarray, "B 4"], Float[np.ndarray, "B 4 things positions"]]:
    """Mean squared difference of each cell from the background, and from every thing at every position.

    The template of a thing is its mask times the colour's difference from the background, so one product with the
    masks serves all colours: |cell - mask x colour|^2 = |cell|^2 - 2 colour . (mask . cell) + |mask|^2 |colour|^2.
    """
    masks = _masks()[1]  # [forms, positions, 256]
    colours = np.array([(np.array(c) - _BACKGROUND) / 255 for c in COLOURS.values()], np.float32)
    energy = np.square(cells).sum((2, 3))
    overlap = np.einsum("fpx,bcxk->bcfpk", masks, cells, optimize=True) @ colours.T
    size = np.square(masks).sum(-1)[..., None] * np.square(colours).sum(-1)
    left = energy[..., None, None, None] - 2 * overlap + size  # [B, 4, forms, positions, colours]
    left = np.moveaxis(left, -1, 2).reshape(*energy.shape, _THINGS, -1)
    return energy / (256 * 3), left / (256 * 3)


@functools.cache
def _masks() -> tuple[list[tuple[int, int]], Float[np.ndarray, "forms positions 256"]]:
    """Every shape and size at every position that drawing uses and one pixel around, sharp and soft.

    Soft, because blur turns a small square into something nearer to a sharp circle than to a sharp square.
    """
    moves = [(right, down) for right in range(-1, 3) for down in range(-1, 3)]
    masks = [
        [soften(_cover(shape, size, move, 16)).reshape(-1) for soften in (np.asarray, _blurred) for move in moves]
        for shape in SHAPES
        for size in SIZES
    ]
    return moves * 2, np.array(masks, np.float32)


def _blurred(cover: Float[np.ndarray, "16 16"]) -> Float[np.ndarray, "16 16"]:
    """Gaussian blur with a standard deviation of one pixel."""
    weights = np.exp(-np.square(np.arange(-3, 4)) / 2)
    for axis in (0, 1):
        cover = np.apply_along_axis(np.convolve, axis, cover, weights / weights.sum(), "same")
    return cover


def _cells(pictures: UInt8[np.ndarray, "B size size 3"]) -> Float[np.ndarray, "B 4 256 3"]:
    """How much each cell of 16 x 16 pixels differs from the background, in [-1, 1]; a picture of 64 pixels is halved."""
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] not in ((32, 32, 3), (64, 64, 3)):
        raise UserError(f"the checker reads uint8 [B, 32 or 64, same, 3], not {pictures.dtype} {list(pictures.shape)}.")
    fold = pictures.shape[1] // 32
    small = (pictures.reshape(-1, 32, fold, 32, fold, 3).mean((2, 4), dtype=np.float32) - _BACKGROUND.astype(np.float32)) / 255
    return small.reshape(-1, 2, 16, 2, 16, 3).swapaxes(2, 3).reshape(-1, 4, 256, 3)


# ---------------------------------------------------------------------------------------------------------------- source


class ShapesSource:
    """`count` scenes of a split, by index: {"image": uint8 [size, size, 3], "text": str}."""

    labels = None

    def __init__(self, split: str = "train", count: int = 100_000, size: int = 32):
        self.split, self.count, self.size = _known(split), count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        made = scene(int(index), self.split)
        return {"image": draw(made, self.size), "text": made.caption}

    def caption(self, index: int) -> str:
        return scene(int(index), self.split).caption
