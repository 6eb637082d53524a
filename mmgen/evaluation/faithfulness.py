"""Whether pictures show what was asked, task by task as GenEval (arXiv 2310.11513) reports it, on scenes that a program reads:
the checker of the embedded ones, or that of NLVR's boxes, stands in the place of a detector."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import write_json

from mmgen import __version__
from mmgen.data import nlvr
from mmgen.data.shapes import Verdict, arrangements, parse, verify_all
from mmgen.evaluation import generated
from mmgen.evaluation.shapes import unseen
from mmgen.folders import step_of
from mmgen.generator import load
from mmgen.model.config import TextCondition
from mmgen.parallel.distributed import first_process
from mmgen.report import Card, Figure, Gallery, write_report

TASKS = {
    "single object": "the one shape asked for is there",
    "two objects": "both shapes are there",
    "counting": "there are as many objects as asked for",
    "colours": "the one shape has its colour",
    "position": "each stands where it should, or in its relation to the others",
    "colour attribution": "of two shapes each has its own colour",
}


PROMPTS = 256


class Shown(NamedTuple):
    """What a caption asks for and what is read in its picture."""

    asked: tuple[tuple[str, str], ...]  # colour and shape of each thing
    found: tuple[tuple[str, str], ...]
    unclear: int  # other things that are there, too
    placed: bool | None  # whether the things stand as asked; None: the caption does not say how


class Drawn(NamedTuple):
    captions: Sequence[str]
    pictures: UInt8[np.ndarray, "B h w 3"]
    shown: Sequence[Shown]


def evaluate(
    folder: str | Path,
    out: str | Path,
    num: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    tensor: int = 1,
    scenes: str = "shapes",
    **settings,
) -> dict[str, Any] | None:
    """Draws for `num` (256) captions of one of SCENES into OUT/pictures, in pieces that are drawn once; writes
    OUT/evaluation.json and a page.

    Of "shapes" they are combinations that no training caption named. Of several processes each draws its share, and all but the
    first return None. `settings` go to `Generator.generate`. Raises UserError for a model that does not draw such scenes.
    """
    generator, out, (captions, reader, fits) = load(folder, dtype, tensor), Path(out), SCENES[scenes]
    size = generator.tokenizer and generator.tokenizer.config.image_size
    if not isinstance(generator.config.condition, TextCondition) or not fits(size):
        raise UserError(f"{folder} does not draw pictures of {scenes} from captions, {WIDTHS[scenes]}: give --suite a file")
    prompts = captions(num or PROMPTS)
    record = generated.draw_prompts(generator, out, prompts, seed, settings)
    if not first_process():
        return None
    pictures = generated.drawn(out)
    drawn = Drawn(prompts, pictures, reader(prompts, pictures))
    found = rates(drawn.shown)
    about = {"model": str(folder), "step": step_of(folder), "versions": {"mmgen": __version__}}
    result = {"figures": figures(found), "suite": scenes, **about, "record": record}
    write_json(out / "evaluation.json", result)
    write_report(out / "report.html", "What was asked and what is shown", table(found), [], [gallery(drawn)])
    return result


# Scenes --------------------------------------------------------------------------------------------------------------


def shown_by_shapes(caption: str, verdict: Verdict) -> Shown:
    """Of an embedded scene."""
    said, found = parse(caption), [(o.thing.colour, o.thing.shape) for o in verdict.found]
    asked = tuple((thing.colour, thing.shape) for thing in said.things)
    cells = dict(zip(found, (o.cell for o in verdict.found), strict=True))
    placed = tuple(cells.get(thing) for thing in asked) in arrangements(said)
    return Shown(asked, tuple(found), len(verdict.unclear), placed)


def shown_by_box(caption: str, picture: UInt8[np.ndarray, "h w 3"]) -> Shown:
    """Of a box of NLVR's; things that should stand apart may touch each other."""
    said, (objects, unclear) = nlvr.parse(caption), nlvr.read(picture)
    places, placed = {item.thing: item for item in objects}, None
    if said.relation:
        one, other = (places.get(thing) for thing, _ in said.things)
        placed = None not in (one, other) and nlvr.stands(one, said.relation, other, slack=3)
    asked = tuple(tuple(thing) for thing, count in said.things for _ in range(count))
    return Shown(asked, tuple(tuple(item.thing) for item in objects), int(unclear), placed)


def _read_shapes(captions: Sequence[str], pictures: UInt8[np.ndarray, "B h w 3"]) -> list[Shown]:
    return [shown_by_shapes(c, v) for c, v in zip(captions, verify_all(captions, pictures), strict=True)]


def _read_boxes(captions: Sequence[str], pictures: UInt8[np.ndarray, "B h w 3"]) -> list[Shown]:
    return [shown_by_box(c, p) for c, p in zip(captions, pictures, strict=True)]


# How so many captions are made, what reads the pictures, whether it reads those of so many pixels.
SCENES: dict[str, tuple[Callable, Callable, Callable]] = {
    "shapes": (unseen, _read_shapes, lambda size: size in (32, 64)),
    "nlvr": (nlvr.prompts, _read_boxes, lambda size: bool(size) and size >= nlvr.SMALLEST),
}
WIDTHS = {"shapes": "32 or 64 pixels wide", "nlvr": f"at least {nlvr.SMALLEST} pixels wide"}


# Rates ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """How many of those asked passed."""

    passed: int
    asked: int

    @property
    def value(self) -> float:
        return self.passed / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95%, of Wilson (1927), which stays within 0 .. 1 for few pictures and for rates near its ends."""
        if not self.asked:
            return 0.0, 1.0
        z, n, p = 1.959964, self.asked, self.value
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f}% ({100 * low:.1f} .. {100 * high:.1f} of {self.asked})"


def passed(shown: Shown) -> dict[str, bool]:
    """Which of the tasks that a caption sets its picture passed; a caption sets several."""
    asked, found = Counter(shown.asked), Counter(shown.found)
    present = Counter(shape for _, shape in shown.asked) <= Counter(shape for _, shape in shown.found)
    results = {"counting": len(shown.found) + shown.unclear == len(shown.asked)}
    if shown.placed is not None:
        results["position"] = shown.placed
    if len(shown.asked) == 1:
        results |= {"single object": present, "colours": asked <= found}
    if len(shown.asked) == 2 == len(asked):
        results |= {"two objects": present, "colour attribution": asked <= found}
    return results


def rates(shown: Sequence[Shown]) -> dict[str, Rate]:
    """The pass rate of each task."""
    results = [passed(one) for one in shown]
    return {task: Rate(sum(r[task] for r in results if task in r), sum(task in r for r in results)) for task in TASKS}


def overall(found: dict[str, Rate]) -> float:
    """The mean of the tasks' rates, as GenEval has it."""
    values = [rate.value for rate in found.values() if rate.asked]
    return sum(values) / len(values)


def figures(found: dict[str, Rate]) -> dict[str, dict[str, Any]]:
    """As in evaluation.json."""
    rows = {task: {"value": rate.value, "interval": list(rate.interval), "asked": rate.asked} for task, rate in found.items()}
    return rows | {"overall": {"value": overall(found)}}


def table(found: dict[str, Rate]) -> list[Figure]:
    rows = [Figure(f"{task}: {TASKS[task]}", str(rate)) for task, rate in found.items()]
    return [*rows, Figure("overall: the mean of these", f"{100 * overall(found):.1f}%")]


def gallery(drawn: Drawn, shown: int = 48) -> Gallery:
    """The first pictures under their prompts, each with the tasks that it failed."""
    cards = []
    for caption, picture, one in list(zip(*drawn, strict=True))[:shown]:
        failed = [task for task, right in passed(one).items() if not right]
        note = f"fails {', '.join(failed)}: {told(one)}" if failed else ""
        cards.append(Card([picture], caption, not failed, note))
    return Gallery("Samples", cards, "For each prompt the first picture drawn, not the best.")


def told(shown: Shown) -> str:
    """What a picture shows, in a few words."""
    found = ", ".join(" ".join(thing) for thing in shown.found) or "nothing"
    return f"shows {found}" + (" and something unclear" if shown.unclear else "")
