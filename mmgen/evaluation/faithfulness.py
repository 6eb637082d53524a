"""Whether pictures show what was asked, task by task as GenEval (arXiv 2310.11513) reports it, with the embedded scenes' own
checker in the place of a detector."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import write_json

from mmgen import __version__
from mmgen.data.shapes import Verdict, arrangements, parse
from mmgen.evaluation.shapes import Judged, samples, told
from mmgen.generator import load
from mmgen.model.config import TextCondition
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


def evaluate(
    folder: str | Path, out: str | Path, num: int | None = None, seed: int = 0, dtype: str | None = None, **settings
) -> dict[str, Any]:
    """Draws for `num` (256) captions of combinations that no training caption named; writes OUT/evaluation.json and a page.

    `settings` go to `Generator.generate`. Raises UserError for a model that does not draw such scenes.
    """
    generator, out = load(folder, dtype), Path(out)
    size = generator.tokenizer and generator.tokenizer.config.image_size
    if not isinstance(generator.config.condition, TextCondition) or size not in (32, 64):
        raise UserError(f"{folder} does not draw the embedded scenes from captions, 32 or 64 pixels wide: give --suite a file")
    given = {name: value for name, value in settings.items() if value is not None}
    judged = samples(generator, num or PROMPTS, seed, **given)
    found = rates(judged)
    about = {
        "model": str(folder),
        "seed": seed,
        "sampling": asdict(generator.sampling) | given,
        "pictures": len(judged.captions),
    }
    result = {"figures": figures(found), "suite": "shapes", **about, "versions": {"mmgen": __version__}}
    write_json(out / "evaluation.json", result)
    write_report(out / "report.html", "What was asked and what is shown", table(found), [], [gallery(judged)])
    return result


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


def passed(caption: str, verdict: Verdict) -> dict[str, bool]:
    """Which of the tasks that a caption sets its picture passed; a caption sets several."""
    said, found = parse(caption), verdict.found
    cells = {(o.thing.colour, o.thing.shape): o.cell for o in found}
    stand = [cells.get((thing.colour, thing.shape)) for thing in said.things]
    shapes = Counter(thing.shape for thing in said.things)
    present = shapes <= Counter(o.thing.shape for o in found)
    named = None not in stand
    results = {
        "counting": len(found) + len(verdict.unclear) == len(said.things),
        "position": named and tuple(stand) in arrangements(said),
    }
    if len(said.things) == 1:
        results |= {"single object": present, "colours": named}
    if len(said.things) == 2:
        results |= {"two objects": present, "colour attribution": named}
    return results


def rates(judged: Judged) -> dict[str, Rate]:
    """The pass rate of each task."""
    results = [passed(c, v) for c, v in zip(judged.captions, judged.verdicts, strict=True)]
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


def gallery(judged: Judged, shown: int = 48) -> Gallery:
    """The first pictures under their prompts, each with the tasks that it failed."""
    cards = []
    rows: Sequence = list(zip(judged.captions, judged.pictures, judged.verdicts, strict=True))[:shown]
    for caption, picture, verdict in rows:
        failed = [task for task, right in passed(caption, verdict).items() if not right]
        note = f"fails {', '.join(failed)}: {told(verdict)}" if failed else ""
        cards.append(Card([picture], caption, not failed, note))
    return Gallery("Samples", cards, "For each prompt the first picture drawn, not the best.")
