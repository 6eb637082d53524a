"""Parts of a picture drawn anew, and pictures continued beyond their edges, as far as the model's plan can keep the rest."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import center_crop, fit, read_picture, resize_shorter, to_uint8, write_png

from mmgen.generator import Generator, load
from mmgen.model.config import ClassCondition, FeatureCondition
from mmgen.samples import check_settings, number

SIDES = {"left": (1, False), "right": (1, True), "top": (0, False), "bottom": (0, True)}  # axis, whether at its end
Picture = UInt8[np.ndarray, "H W 3"]


def edit(
    folder: str | Path,
    image: str | Path,
    mask: str | Path | None = None,
    extend: Sequence[tuple[str, int]] = (),
    prompt: str | None = None,
    label: str | None = None,
    out: str | Path = "edited.png",
    seed: int = 0,
    dtype: str | None = None,
    tensor: int = 1,
    **settings,
) -> Path:
    """Writes the picture in `image`, drawn anew where `mask` (of the same size) is white, and then continued at the sides that
    `extend` names by so many pixels. What is kept keeps its pixels; without prompt and label only it says what is drawn.

    `settings` go to `Generator.generate`. Raises UserError for what the model or its plan cannot do.
    """
    check_settings(None, seed, settings, None)
    start, generator = time.perf_counter(), load(folder, dtype, tensor)
    size = picture_size(generator)
    given = _condition(generator, prompt, label) | {"seed": seed} | settings
    picture = read_picture(image)
    if mask is not None:
        anew = _marked(mask, picture.shape[:2], size)
        picture = redraw(generator, fit(picture, size), anew, **given)
    for side, pixels in extend:
        picture = continue_at(picture, side, pixels, size, lambda window, anew: redraw(generator, window, anew, **given))
    about = {"model": str(folder), "image": str(image), "prompt": prompt, "label": label, "seed": seed, "settings": settings}
    write_png(out, picture, {"mmgen": json.dumps({name: value for name, value in about.items() if value is not None})})
    print(f"{out}: {picture.shape[1]} x {picture.shape[0]} pixels in {time.perf_counter() - start:.1f} s")
    return Path(out)


def redraw(generator: Generator, picture: Picture, anew: Bool[np.ndarray, "H W"], **given) -> Picture:
    """The picture, of the model's size, with other pixels where `anew` says; `given` goes to `generate`."""
    known = generator.tokenizer.encode(picture[None])
    kept = kept_sites(generator.config.layout, anew)
    out = generator.generate(known=known, known_mask=kept[None], **given)
    return np.where(anew[..., None], to_uint8(out.images[0]), picture)


def kept_sites(layout: TokenLayout, anew: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "N"]:
    """Which tokens stay where these pixels are to be drawn anew: those whose cell has none of them. A cell of a coarser scale,
    which speaks of much that stays, is drawn anew where they are more than half of it."""
    grids = layout.scales or ((layout.height, layout.width),)
    kept = []
    for scale, (rows, columns) in enumerate(grids, 1):
        part = _cells(rows, anew.shape[0]) @ anew.astype(np.float64) @ _cells(columns, anew.shape[1]).T
        kept.append(part <= (0 if scale == len(grids) else 0.5) + 1e-9)
    return np.concatenate([k.reshape(-1) for k in kept])


def continue_at(
    picture: Picture, side: str, pixels: int, size: int, draw: Callable[[Picture, Bool[np.ndarray, "H W"]], Picture]
) -> Picture:
    """The picture, scaled to `size` pixels across, with `pixels` more at a side. `draw(window, anew)` sees as much of the
    picture as a window of the model's size holds beside them."""
    axis, at_end = SIDES[side]
    if not 0 < pixels < size:
        raise UserError(f"--extend {side}={pixels}: the model's pictures are {size} pixels wide; continue by 1 to {size - 1}")
    picture = resize_shorter(picture, size)
    picture = picture if picture.shape[1 - axis] == size else center_crop(picture, size)
    upright = np.moveaxis(picture, axis, 0)
    upright = upright if at_end else upright[::-1]  # continued at its end, whatever the side
    window = np.concatenate([upright[pixels - size :], np.repeat(upright[-1:], pixels, axis=0)])
    anew = np.zeros((size, size), bool)
    anew[size - pixels :] = True

    def back(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array if at_end else array[::-1], 0, axis)

    drawn = np.moveaxis(draw(np.ascontiguousarray(back(window)), back(anew)), axis, 0)
    drawn = drawn if at_end else drawn[::-1]
    return np.ascontiguousarray(back(np.concatenate([upright, drawn[size - pixels :]])))


def picture_size(generator: Generator) -> int:
    """Side of the model's pictures in pixels."""
    tokenizer, layout = generator.tokenizer, generator.config.layout
    if tokenizer is None:
        raise UserError("this model has no tokenizer to read pictures with: convert it again with --tokenizer DIR")
    if layout.kind == "sequence":
        raise UserError("the tokens of this model's tokenizer have no place in the picture: none can be kept for a part of it")
    return tokenizer.config.image_size * layout.height // tokenizer.layout.height


def _cells(count: int, size: int) -> Float[np.ndarray, "count size"]:
    """The share that each pixel has of each of `count` equal cells."""
    begin, pixel = np.arange(count)[:, None] * size / count, np.arange(size)
    overlap = np.minimum(begin + size / count, pixel + 1) - np.maximum(begin, pixel)
    return np.clip(overlap, 0, None) * count / size


def _marked(mask: str | Path, shape: tuple[int, int], size: int) -> Bool[np.ndarray, "H W"]:
    """Where the mask is white, fitted to the model's size as its picture is."""
    marks = read_picture(mask)
    if marks.shape[:2] != shape:
        (height, width), (rows, columns) = shape, marks.shape[:2]
        raise UserError(f"{mask} is {columns} x {rows} pixels, the picture {width} x {height}: they must have the same size")
    white = fit(marks, size).mean(-1) > 127.5
    if not white.any():
        raise UserError(f"{mask} marks nothing: what is to be drawn anew must be white")
    return white


def _condition(generator: Generator, prompt: str | None, label: str | None) -> dict[str, list]:
    """The argument of `generate`; without prompt and label the null condition."""
    condition = generator.config.condition
    if isinstance(condition, FeatureCondition):
        raise UserError("this model takes features of a text model as arrays: use generate(features=..., known=...)")
    if isinstance(condition, ClassCondition) and prompt is None:
        return {"labels": [generator.null_label if label is None else number(label, generator)]}
    if label is not None or isinstance(condition, ClassCondition):
        raise UserError(f"this model takes {'labels, not prompts' if prompt is not None else 'prompts, not labels'}")
    return {"prompts": [prompt or ""]}
