"""A class-conditional generator judged by a classifier of its own data, where no published feature network fits: how many
pictures are recognised as the class that was asked for, and how far they are from real ones in its features (FCD)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt8
from mmgen_tokenizers.configs import to_json
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation.results import NAMES, Result
from mmgen_tokenizers.evaluation.scoring import FEWEST
from mmgen_tokenizers.files import write_json

from mmgen import __version__, config
from mmgen.config import Data
from mmgen.data import Batches, batches, open_source, parse_source
from mmgen.evaluation import generated
from mmgen.evaluation.classifier import Classifier, blurred, cards, fcd, train_classifier
from mmgen.evaluation.faithfulness import Rate
from mmgen.folders import step_of
from mmgen.generator import Generator, load
from mmgen.model.config import ClassCondition
from mmgen.parallel.distributed import first_process
from mmgen.report import Figure, Gallery, write_report

PICTURES = 500  # drawn unless another number is asked for
REFERENCE = 10_000  # training pictures that FCD is to
BATCH = 64  # of the classifier's training
SHOWN = 60  # pictures on the page
NAME_THEM = "Name the labelled pictures to train a classifier on, and those to test it with: --classifier TRAIN TEST"


class Recognised(NamedTuple):
    """What was drawn for which classes, and which of it the classifier takes for that."""

    pictures: UInt8[np.ndarray, "N H W 3"]
    labels: Int[np.ndarray, " N"]
    right: Bool[np.ndarray, " N"]


def evaluate(
    folder: str | Path,
    run: str | Path,
    out: str | Path,
    num: int | None = None,
    data: Sequence[str] = (),
    data_dir: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    tensor: int = 1,
    **settings,
) -> tuple[Result, Recognised] | None:
    """Draws `num` (500) pictures of the generator in `folder`, the classes in turn, into OUT/pictures, in pieces that are drawn
    once; writes OUT/evaluation.json and a page.

    The classifier learns from the first of `data` (see `parse_source`) and is tested on the second; without them, from what the
    experiment of `run` trained on, and on its validation data. Of several processes each draws its share, and all but the first
    return None. `settings` go to `Generator.generate`. Raises UserError for a model that draws no classes, and for data without
    pictures or labels.
    """
    generator, out = load(folder, dtype, tensor), Path(out)
    _check(generator)
    training, test = (None if each is None else _fitting(generator, each) for each in _named(run, data, data_dir))
    protocol = generated.own(generator, num or PICTURES)
    if protocol.pictures < FEWEST:
        raise UserError(f"{protocol.pictures} pictures are too few to compare: draw at least {FEWEST} (-n)")
    record, labels = generated.draw_classes(generator, out, protocol, protocol.pictures, seed, settings)
    if not first_process():
        return None
    classify = train_classifier(batches(training, BATCH, seed=1), generator.null_label, protocol.size)
    pictures = generated.drawn(out)
    found = Recognised(pictures, labels, classify(pictures) == labels)
    result = {"figures": figures(classify, found, training, test), "record": record, "labels": generator.labels}
    result |= {"classifier": {"training": to_json(training), "test": test and to_json(test)}}
    versions = {"mmgen": __version__, "jax": jax.__version__, "numpy": np.__version__}
    result |= {"model": str(folder), "step": step_of(folder), "versions": versions}
    write_json(out / "evaluation.json", result)
    write_report(out / "report.html", "Classes", table(result), [], [gallery(found, names(generator))])
    return result, found


def figures(classify: Classifier, found: Recognised, training: Data, test: Data | None) -> dict[str, dict[str, Any]]:
    """As in evaluation.json. A distance says little alone: those of as many real pictures, of these when they are blurred, and
    of noise make the scale. Real ones are of the test split, mirrored and cropped as in training: what a
    perfect model would draw."""
    rate, count = Rate(int(found.right.sum()), len(found.right)), len(found.right)
    rows = {"recognised": {"value": rate.value, "interval": list(rate.interval)}}
    reference, shown = some(training, REFERENCE, seed=2)["image"], min(count, REFERENCE)
    sets = {"fcd": found.pictures}
    if test is not None:
        unseen = some(test, REFERENCE)
        rows["classifier"] = {"value": float(np.mean(classify(unseen["image"]) == unseen["label"]))}
        sets["fcd_of_real"] = some(replace(training, source=test.source), shown, seed=3)["image"]
    real = sets.get("fcd_of_real", reference[:shown])  # without a test split they are the reference's own, at no distance
    sets["fcd_of_blurred"] = blurred(real)
    sets["fcd_of_noise"] = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    return rows | {name: fcd(classify, pictures, reference) for name, pictures in sets.items()}


def some(data: Data, count: int, seed: int = 0) -> dict[str, Any]:
    """One batch of so many examples, or of all there are."""
    source = open_source(data)
    return Batches(source, data, min(count, len(source)), seed)[0]


def table(result: Result) -> list[Figure]:
    """Each figure with its interval."""
    rows = []
    for name, figure in result["figures"].items():
        scale, end = (1, "") if name.startswith("fcd") else (100, "%")
        low, high = (f"{scale * bound:.4g}" for bound in figure.get("interval", (0, 0)))
        between = f" ({low} .. {high})" if "interval" in figure else ""
        rows.append(Figure(NAMES[name], f"{scale * figure['value']:.4g}{end}{between}"))
    return rows


def gallery(found: Recognised, names: Sequence[str]) -> Gallery:
    first = (column[:SHOWN] for column in found)
    return Gallery("Samples, the classes in turn", cards(*first, names), "The first ones, not the best.", shown=80)


def names(generator: Generator) -> Sequence[str]:
    return generator.labels or [str(label) for label in range(generator.null_label)]


def _check(generator: Generator) -> None:
    """Raises UserError where no classifier can judge what is drawn."""
    if not isinstance(generator.config.condition, ClassCondition):
        raise UserError("a classifier judges models of classes, and this one takes texts: give --suite a file of prompts")
    if generator.tokenizer is None:
        raise UserError("this model has no tokenizer to draw pictures with: convert it again with --tokenizer DIR")
    size = generator.tokenizer.config.image_size
    if size % 16:
        raise UserError(f"the classifier reads pictures whose sides are multiples of 16, this model draws {size} x {size}")


def _named(run: str | Path, data: Sequence[str], data_dir: str | None) -> tuple[Data, Data | None]:
    """What to train on and, where there is such, to test with."""
    if len(data) > 2:
        raise UserError(f"--classifier {' '.join(data)}: name the pictures to train on and, behind them, those to test with")
    if data:
        training, test = (*(Data(parse_source(spec, data_dir)) for spec in data), None)[:2]
        return training, test
    file = Path(run) / "experiment.json"
    if not file.is_file():
        raise UserError(f"{run} is no run: there is no experiment.json. {NAME_THEM}")
    experiment = config.load(file)
    return experiment.data, experiment.validation


def _fitting(generator: Generator, data: Data) -> Data:
    """The data in the size that the generator draws. Raises UserError for what has not its classes."""
    source = open_source(data)
    if missing := [told for key, told in (("image", "pictures"), ("label", "labels")) if key not in source[0]]:
        raise UserError(f"{data.source} has no {' and no '.join(missing)}. {NAME_THEM}")
    other = generator.labels and source.labels and tuple(source.labels) != tuple(generator.labels)
    if other or len(source.labels or ()) > generator.null_label:
        some = ", ".join(source.labels[:5])
        raise UserError(f"{data.source} has other classes than the model, or in another order: {some} ...")
    return replace(data, size=generator.tokenizer.config.image_size)
