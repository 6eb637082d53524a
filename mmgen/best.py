"""The best of several candidates, by a scorer of the user's: of whole pictures and, if asked for, on the way, where the worse
half is given up (in the spirit of PARM, arXiv 2501.13926). Each round draws anew what the one before has kept, so that few
candidates are decoded to pictures at the end, but no forwards are saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import to_uint8

from mmgen.evaluation.suites import load_scorer, scores_of
from mmgen.generator import Generator


@dataclass(frozen=True)
class BestOf:
    """`scorer`: "module:function" of (pictures, texts). `at`: after which steps of the plan half of the candidates go on."""

    count: int
    scorer: str
    at: tuple[int, ...] = ()

    def __post_init__(self):
        if self.count < 2:
            raise UserError(f"--best-of {self.count}: the best of fewer than 2 candidates needs no scorer: leave it out")
        if list(self.at) != sorted({t for t in self.at if t > 0}):
            raise UserError(f"--best-at {' '.join(map(str, self.at))}: give steps from 1 on, each larger than the one before")


class Best(NamedTuple):
    """Of each value the best candidate, and the scores of all that were drawn to their end."""

    tokens: Int[np.ndarray, "b n ..."]
    pictures: UInt8[np.ndarray, "b h w 3"]
    scores: Float[np.ndarray, "b candidates"]
    forwards: int  # of the transformer, all rounds together


def draw_best(
    generator: Generator, name: str, values: Sequence[Any], texts: Sequence[str], best: BestOf, first_index: int = 0, **settings
) -> Best:
    """Draws `best.count` candidates for each of `values`, which are `generate`'s argument `name` (labels, prompts); `texts` are
    what the scorer reads. Candidate j of value i has sample index (first_index + i) alive + j, `alive` those of a value in
    its round: whatever else is drawn with it. Raises UserError where the model's order or tokens show no partial pictures."""
    scorer, given, alive, forwards = load_scorer(best.scorer), {}, best.count, 0

    def each(items: Sequence[Any]) -> list:
        return [item for item in items for _ in range(alive)]

    def scored(pictures: np.ndarray) -> Float[np.ndarray, "b candidates"]:
        return scores_of(scorer, pictures, each(texts), best.scorer).reshape(len(values), alive)

    for time in best.at:
        seen = next(generator.stream(**{name: each(values)}, every=time, first_index=first_index * alive, **given, **settings))
        pictures = to_uint8(generator.tokenizer.decode(_filled(generator, seen.tokens, seen.done), generator.config.layout))
        rows, alive = _better(scored(pictures)), -(-alive // 2)
        given, forwards = {"known": seen.tokens[rows], "known_mask": seen.done[rows]}, forwards + time
    made = generator.generate(**{name: each(values)}, first_index=first_index * alive, **given, **settings)
    pictures = to_uint8(made.images)
    scores = scored(pictures)
    rows = scores.argmax(1) + alive * np.arange(len(values))
    return Best(made.tokens[rows], pictures[rows], scores, forwards + made.forwards)


def _better(scores: Float[np.ndarray, "b candidates"]) -> Int[np.ndarray, " rows"]:
    """Rows of the better half of each value's candidates, in their order; of equal ones the first."""
    values, count = scores.shape
    chosen = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : -(-count // 2)], axis=1)
    return (chosen + count * np.arange(values)[:, None]).reshape(-1)


def _filled(
    generator: Generator, tokens: Int[np.ndarray, "b n ..."], done: Bool[np.ndarray, "b n"]
) -> Int[np.ndarray, "b n ..."]:
    """Tokens that can be decoded: what is not there yet is what the picture has most of, background where there is one."""
    if generator.config.layout.scales:
        raise UserError("a partial picture of several scales cannot be scored: leave --best-at out")
    filled = np.array(tokens)
    for row, seen in zip(filled, done, strict=True):
        kinds, counts = np.unique(row[seen], axis=0, return_counts=True)
        row[~seen] = kinds[counts.argmax()]
    return filled
