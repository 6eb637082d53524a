"""Prompt suites, in the files that their authors publish: drawn, shown on a sheet a category, scored by a user's function."""

import csv
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.evaluation.sets import open_pictures
from mmgen_tokenizers.evaluation.statistics import interval
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.pictures import grid, with_captions, write_png

from mmgen import __version__
from mmgen.evaluation import generated
from mmgen.folders import step_of
from mmgen.generator import load
from mmgen.model.config import TextCondition
from mmgen.parallel.distributed import first_process
from mmgen.report import Card, Figure, Gallery, write_report

Scorer = Callable[[UInt8[np.ndarray, "B H W 3"], list[str]], Float[np.ndarray, " B"]]

TEXTS = ("prompt", "Prompt", "caption", "text")  # of a row: GenEval, DPG-Bench, ImageReward; PartiPrompts; TIFA; our own
CATEGORIES = ("tag", "Category", "category")  # GenEval; PartiPrompts


COLUMNS, ROWS = 8, 6  # of a sheet


class Prompt(NamedTuple):
    text: str
    category: str


def read_suite(paths: Sequence[str | Path]) -> list[Prompt]:
    """The prompts of .tsv (PartiPrompts), .jsonl (GenEval, DPG-Bench), .json (TIFA, ImageReward) and .txt (T2I-CompBench: one a
    line) files. Where rows have no category, the file's name is theirs. Raises UserError for a file without prompts."""
    found = []
    for path in map(Path, paths):
        prompts = list(_read(path))
        if not prompts:
            raise UserError(f"{path} holds no prompts: rows need one of {', '.join(TEXTS)}, a .txt file one a line")
        found += prompts
    return found


def _read(path: Path) -> Iterator[Prompt]:
    try:
        rows = list(_rows(path, path.read_text(encoding="utf-8-sig")))
    except (ValueError, OSError) as error:  # ValueError: JSON and UTF-8
        raise UserError(f"{path} is no file of prompts ({error})") from None
    for row in rows:
        row = {"text": row} if isinstance(row, str) else row
        text = next((row[key] for key in TEXTS if isinstance(row.get(key), str) and row[key].strip()), None)
        if text is not None:
            yield Prompt(text.strip(), next((str(row[key]) for key in CATEGORIES if row.get(key)), path.stem))


def _rows(path: Path, text: str) -> Iterable[Any]:
    lines = [line for line in text.splitlines() if line.strip()]
    if path.suffix == ".tsv":
        return csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if path.suffix == ".jsonl":
        return [row for row in map(json.loads, lines) if isinstance(row, dict)]
    if path.suffix == ".json":
        held = json.loads(text)
        return [row for row in held if isinstance(row, dict | str)] if isinstance(held, list) else []
    return lines


def load_scorer(name: str) -> Scorer:
    """The function that "module:function" names, of a module that Python finds here or in the working folder.

    It takes pictures uint8 [B, H, W, 3] and their prompts, and gives B numbers.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(f"--scorer {name!r}: write module:function, of a module that Python finds here")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not module.startswith(str(error.name)):  # of what it imports itself
            raise
        raise UserError(f"--scorer {name}: there is no module {error.name} here or in Python's path") from None
    if not callable(getattr(home, function, None)):
        raise UserError(f"--scorer {name}: {module} has no function {function}.{nearest(function, vars(home))}")
    return getattr(home, function)


def scores_of(
    scorer: Scorer, pictures: UInt8[np.ndarray, "B H W 3"], prompts: list[str], name: str = "the scorer"
) -> Float[np.ndarray, " B"]:
    """Its scores. Raises UserError where they are not one finite number a picture."""
    scores = np.asarray(scorer(pictures, prompts), np.float64)
    if scores.shape != (len(prompts),) or not np.isfinite(scores).all():
        got = f"{len(scores)} scores" if scores.ndim == 1 else f"an array {list(scores.shape)}"
        raise UserError(f"{name} gave {got} for {len(prompts)} pictures: it must give one finite number for each")
    return scores


# Drawing a suite -----------------------------------------------------------------------------------------------------


def evaluate(
    folder: str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    num: int | None = None,
    scorer: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    tensor: int = 1,
    **settings,
) -> dict[str, Any] | None:
    """Draws `num` (1) pictures for each prompt of a suite into OUT/pictures, in pieces that are drawn once; writes a sheet for
    each category, report.html and evaluation.json with the means of the scores that `scorer` ("module:function") gives.

    Of several processes each draws its share, and all but the first return None. `settings` go to `Generator.generate`.
    """
    score, generator, out = scorer and load_scorer(scorer), load(folder, dtype, tensor), Path(out)
    if generator.tokenizer is None or not isinstance(generator.config.condition, TextCondition):
        raise UserError(f"{folder} does not draw pictures from texts: prompt suites are for models that do")
    prompts = [prompt for prompt in read_suite(paths) for _ in range(num or 1)]
    texts = [prompt.text for prompt in prompts]
    record = generated.draw_prompts(generator, out, texts, seed, settings)
    if not first_process():
        return None
    scores, shown = _go_through(out / "pictures", prompts, score, scorer)
    result = {"figures": _figures(prompts, scores), "suite": [str(path) for path in paths], "scorer": scorer, "record": record}
    result |= {"model": str(folder), "step": step_of(folder), "versions": {"mmgen": __version__}, "scores": scores}
    write_json(out / "evaluation.json", result)
    _sheets(out, shown, result["figures"])
    return result


def _go_through(
    folder: Path, prompts: list[Prompt], score: Scorer | None, name: str | None
) -> tuple[list[float] | None, dict[str, list[tuple[str, np.ndarray]]]]:
    """The score of each picture, and the first pictures of each category under their prompts."""
    scores, shown, place = [], {}, 0
    for pictures in open_pictures(folder).batches(generated.PIECE):
        rows = prompts[place : place + len(pictures)]
        if score is not None:
            scores += scores_of(score, pictures, [row.text for row in rows], name).tolist()
        for row, picture in zip(rows, pictures, strict=True):
            own = shown.setdefault(row.category, [])
            if len(own) < COLUMNS * ROWS:
                own.append((row.text, picture))
        place += len(pictures)
    return (scores if score is not None else None), shown


def _figures(prompts: list[Prompt], scores: list[float] | None) -> dict[str, dict[str, Any]]:
    """The mean score of each category and of all."""
    if scores is None:
        return {}
    found = {}
    for category in (*dict.fromkeys(prompt.category for prompt in prompts), None):
        own = [s for s, prompt in zip(scores, prompts, strict=True) if category in (prompt.category, None)]
        mean = float(np.mean(own))
        found[category or "all"] = {"value": mean, "interval": list(interval(mean, own)), "pictures": len(own)}
    return found


def _sheets(out: Path, shown: dict[str, list[tuple[str, np.ndarray]]], figures: dict[str, dict[str, Any]]) -> None:
    galleries = []
    for category, items in shown.items():
        name = re.sub(r"\W+", "_", category).strip("_") or "prompts"
        texts, pictures = zip(*items, strict=True)
        page = grid(with_captions(pictures, texts), min(COLUMNS, len(pictures)), gap=6)
        write_png(out / f"{name}.png", page, {"prompts": "\n".join(texts)})
        galleries.append(Gallery(category, [Card([picture], text) for text, picture in items]))
    rows = [Figure(name, found["value"]) for name, found in figures.items()]
    write_report(out / "report.html", "Prompt suite", rows, [], galleries, "The first pictures of each category, not the best.")
