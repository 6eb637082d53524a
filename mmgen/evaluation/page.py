"""One page of one run, or of several side by side: what `mmgen evaluate` found, how training went, what was drawn."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation.results import NAMES
from mmgen_tokenizers.files import read_json

from mmgen.evaluation.curves import curve
from mmgen.report import COLOURS, Card, Chart, Gallery, Table, write_report

CURVES = {
    "loss": "Loss in training", "validation/loss": "Loss on unseen pictures", "validation/accuracy": "Likeliest token right",
    "validation/psnr": "PSNR in dB", "validation/usage": "Share of the codebook in use",
}  # fmt: skip
SHOWN = 48  # pictures of an evaluation


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.json. `name`: of the folder under RUN/evaluation, whatever the checkpoint; `step`: of the weights."""

    name: str
    step: int | None
    folder: Path
    figures: dict[str, dict[str, Any]]


def write_page(runs: Sequence[str | Path], out: str | Path) -> None:
    """Raises UserError where there is nothing to show, or too much."""
    if len(runs) > COLOURS:
        raise UserError(f"{len(runs)} runs do not fit on one page: name at most {COLOURS}")
    folders = named(runs)
    found = {name: evaluations(folder) for name, folder in folders.items()}
    charts = [*training(folders), *over_checkpoints(found)]
    latest = {run: newest(each) for run, each in found.items()}
    if not charts and not any(latest.values()):
        raise UserError(f"{', '.join(found)}: there is neither a metrics.jsonl nor an evaluation/ to show")
    tables = [table(latest)] if any(latest.values()) else []
    about = "Figures are those of the newest weights that were evaluated, with their intervals of 95%."
    write_report(out, " and ".join(found), [], charts, list(galleries(latest)), about, tables)


def named(runs: Sequence[str | Path]) -> dict[str, Path]:
    """By their paths without the folders that they share."""
    paths = [Path(run).absolute() for run in runs]
    shared = os.path.commonpath([path.parent for path in paths])
    return {str(path.relative_to(shared)): path for path in paths}


def evaluations(run: Path) -> list[Evaluation]:
    """Those below RUN/evaluation, in the order of their names and steps."""
    found = []
    for file in sorted((run / "evaluation").rglob("evaluation.json")):
        result = read_json(file)
        name = file.relative_to(run / "evaluation").parts[0]
        found.append(Evaluation(name, result.get("step"), file.parent, result["figures"]))
    return sorted(found, key=lambda each: (each.name, each.step or 0))


def newest(found: Sequence[Evaluation]) -> dict[str, Evaluation]:
    """The last of each name."""
    return {each.name: each for each in found}


def table(latest: dict[str, dict[str, Evaluation]]) -> Table:
    """A row for each figure that a run has, a column for each run."""
    rows = []
    for name in _all(latest.values()):
        own = [each[name].figures if name in each else {} for each in latest.values()]
        rows += [[f"{name}: {NAMES.get(key, key)}", *(_cell(figures.get(key)) for figures in own)] for key in _all(own)]
    return Table("Figures", ["", *latest], rows)


def _all(several: Sequence[dict[str, Any]]) -> list[str]:
    """Names that any of them has, in their order."""
    return list(dict.fromkeys(name for one in several for name in one))


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    bounds = figure.get("interval")
    return f"{figure['value']:.4g}" + (f" ({bounds[0]:.4g} .. {bounds[1]:.4g})" if bounds else "")


def training(runs: dict[str, Path]) -> list[Chart]:
    """What the runs' metrics.jsonl tell, a curve for each run."""
    charts = [Chart(title, {run: curve(folder, name) for run, folder in runs.items()}) for name, title in CURVES.items()]
    return [chart for chart in charts if any(steps for steps, _ in chart.curves.values())]


def over_checkpoints(found: dict[str, list[Evaluation]]) -> list[Chart]:
    """Each figure that was evaluated at several steps of a run."""
    charts = []
    for name in dict.fromkeys(each.name for own in found.values() for each in own):
        stepped = {run: [e for e in own if e.name == name and e.step is not None] for run, own in found.items()}
        for key in _all([e.figures for own in stepped.values() for e in own]):
            curves = {run: _points(own, key) for run, own in stepped.items()}
            if any(len(steps) > 1 for steps, _ in curves.values()):
                charts.append(Chart(f"{name}: {NAMES.get(key, key)}", curves))
    return charts


def _points(found: Sequence[Evaluation], key: str) -> tuple[list[int], list[float]]:
    having = [each for each in found if key in each.figures]
    return [each.step for each in having], [each.figures[key]["value"] for each in having]


def galleries(latest: dict[str, dict[str, Evaluation]]) -> Iterator[Gallery]:
    """The first pictures of each evaluation; those of several runs in one card where the same was asked for."""
    for name in _all(latest.values()):
        drawn = {run: first_pictures(own[name].folder) for run, own in latest.items() if name in own}
        drawn = {run: made for run, made in drawn.items() if made is not None}
        if len({asked for _, asked in drawn.values()}) == 1:
            pictures, (asked, *_) = zip(*(made for made, _ in drawn.values()), strict=True), (a for _, a in drawn.values())
            cards = [Card(list(row), text) for row, text in zip(pictures, asked, strict=True)]
            yield Gallery(name, cards, f"From left to right: {', '.join(drawn)}." if len(drawn) > 1 else "", 96)
        else:
            for run, (pictures, asked) in drawn.items():
                yield Gallery(f"{name}: {run}", [Card([p], text) for p, text in zip(pictures, asked, strict=True)], "", 96)


def first_pictures(folder: Path) -> tuple[tuple[UInt8[np.ndarray, "h w 3"], ...], tuple[str, ...]] | None:
    """Some, with the class or prompt that each was drawn for; None where the evaluation drew none into files."""
    pictures, asked, labels = [], [], read_json(folder / "evaluation.json").get("labels")
    for piece in sorted((folder / "pictures").glob("*.npz")):
        with np.load(piece, allow_pickle=False) as held:
            pictures += list(held["arr_0"][: SHOWN - len(pictures)])
            asked += [str(value) if labels is None else labels[value] for value in held["arr_1"][: SHOWN - len(asked)]]
        if len(pictures) == SHOWN:
            break
    return (tuple(pictures), tuple(asked)) if pictures else None
