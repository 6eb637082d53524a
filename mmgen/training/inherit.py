"""What a generator inherits from another one where its training starts from it (task.start_from), whatever its condition."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import flatten, unflatten

from mmgen import generator
from mmgen.data.text import TextTokenizer
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, GeneratorConfig, TextCondition
from mmgen.training.state import Tree

CONDITION, TABLE = "ends.condition.", "ends.condition.table"
FREE = (CONDITION, "ends.unread")  # may be new, or left out
SHOWN = 8  # names of classes in a line


def load(folder: str) -> Generator:
    """The generator to start from."""
    try:
        return generator.load(folder)
    except UserError as error:
        raise UserError(f"task.start_from: {error}") from error


def text_model(folder: str, condition: TextCondition) -> TextTokenizer | None:
    """That of the generator to start from, where its vocabulary is the one that is asked for."""
    source = load(folder)
    return source.text if _same_words(source, condition) else None


def fitted(source: Generator, name: str, c: GeneratorConfig, labels: Sequence[str] | None) -> tuple[Tree, list[str]]:
    """Parameters of `source` for a model of `c`, without those that are new, and lines that say what of its condition is kept.

    The row of a class is known by its name, or by its number where one side has no names (`labels`: those of `c`); a new class
    begins as the null class does. Codes are those of the tokenizer. Raises UserError that lists what does not fit.
    """
    has, wants, axes = flatten(source.params), flatten(_shapes(c)), flatten(transformer.axes(c))
    codes = {key for key, names in axes.items() if "frozen" in names and key.startswith("ends.input.")}
    taken = {key: has[key] for key in wants if key in has and key not in codes and has[key].shape == wants[key].shape}
    _refuse(name, source.config, c, has, wants, taken.keys() | codes)
    lines = []
    if isinstance(c.condition, ClassCondition) and isinstance(source.config.condition, ClassCondition):
        rows = class_rows(source.null_label, c.condition.classes, source.labels, labels)
        lines = told(rows, source.null_label, source.labels, labels)
        # The last row, the null class, is that of the classes which `source` does not know: -1 in `rows`.
        taken[TABLE] = has[TABLE][np.append(rows, -1)]
    elif not _same_words(source, c.condition):
        taken = {key: value for key, value in taken.items() if not key.startswith(CONDITION)}
    new = sorted(key for key in wants if key.startswith(CONDITION) and key not in taken)
    lines += [f"new, for another condition: {', '.join(new)}"] if new else []
    return unflatten({key: np.asarray(value, np.float32) for key, value in taken.items()}), lines


def class_rows(
    there: int, here: int, labels_there: Sequence[str] | None, labels_here: Sequence[str] | None
) -> Int[np.ndarray, "c"]:
    """For each of the classes `here` its row among those `there`; -1 for a new one."""
    if labels_there and labels_here:
        known = {label: row for row, label in enumerate(labels_there)}
        return np.array([known.get(label, -1) for label in labels_here])
    number = np.arange(here)
    return np.where(number < there, number, -1)


def told(
    rows: Int[np.ndarray, "c"], there: int, labels_there: Sequence[str] | None, labels_here: Sequence[str] | None
) -> list[str]:
    """Which classes are known, new and left out, in words."""
    here = labels_here or range(len(rows))
    kinds = {
        "classes that keep their row": [here[i] for i in np.flatnonzero(rows >= 0)],
        'new classes, which begin as "no class"': [here[i] for i in np.flatnonzero(rows < 0)],
        "classes left out": [(labels_there or range(there))[i] for i in sorted({*range(there)} - {*rows.tolist()})],
    }
    return [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def _listed(names: Sequence[str | int]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown if len(shown) <= SHOWN else [*shown[: SHOWN - 2], "...", shown[-1]])


@functools.cache
def _shapes(c: GeneratorConfig) -> Tree:
    return jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))


def _same_words(source: Generator, condition: object) -> bool:
    """Whether prompts are read with the same vocabulary."""
    theirs = source.config.condition
    texts = isinstance(theirs, TextCondition) and isinstance(condition, TextCondition) and source.text is not None
    return texts and theirs.vocabulary == condition.vocabulary


def _refuse(name: str, there: GeneratorConfig, here: GeneratorConfig, has: Tree, wants: Tree, fine: set[str]) -> None:
    """Raises UserError that lists what of the two models differs, but for what may."""
    block = vars(there.block)
    wrong = [
        f"block.{key} is {block[key]} there, {value} here" for key, value in vars(here.block).items() if value != block[key]
    ]
    for key in sorted(has.keys() | wants.keys()):
        if key in fine or key.startswith(FREE):
            continue
        sizes = [list(side[key].shape) if key in side else "nothing" for side in (has, wants)]
        wrong.append(f"{key} is {sizes[0]} there, {sizes[1]} here")
    if wrong:
        lines = "".join(f"\n  {line}" for line in wrong)
        raise UserError(f"task.start_from {name} is another model than task.model, set them alike:{lines}")
