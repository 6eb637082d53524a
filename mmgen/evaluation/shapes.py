"""Judging models of the embedded scenes: the checker reads reconstructions and samples, so the figures need no eye."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import mmgen_tokenizers as mt
import numpy as np
from jaxtyping import UInt8
from mmgen_tokenizers.metrics import psnr
from mmgen_tokenizers.pictures import to_float, to_uint8

from mmgen.data.shapes import ShapesSource, Verdict, parse, verify_all
from mmgen.generator import Generator
from mmgen.report import Card, Figure, Gallery

TARGETS = {"psnr_test": 24.0, "reconstructions_right": 0.95, "objects_right": 0.70, "places_right": 0.55}
NAMES = {
    "psnr_test": "PSNR of reconstructed test pictures",
    "reconstructions_right": "reconstructed test pictures that the checker reads right",
    "prompts": "prompts of unseen combinations",
    "objects_right": "samples with every named object, in colour and shape",
    "places_right": "samples with every size and place right as well",
    "seconds": "time for all of it",
}
SHOWN = 24  # of each kind of picture on the report


@dataclass(frozen=True)
class Judged:
    """Pictures made for captions of the test split, beside the true ones, and the checker's verdicts."""

    captions: Sequence[str]
    originals: UInt8[np.ndarray, "B size size 3"]
    pictures: UInt8[np.ndarray, "B size size 3"]
    verdicts: Sequence[Verdict]

    @property
    def objects_right(self) -> float:
        """Share of pictures with exactly the named objects."""
        return float(np.mean([verdict.objects_right for verdict in self.verdicts]))

    @property
    def places_right(self) -> float:
        """Share whose sizes and places are right as well."""
        return float(np.mean([verdict.places_right for verdict in self.verdicts]))

    @property
    def psnr(self) -> float:
        """dB, mean over the pictures."""
        return float(np.mean(psnr(to_float(self.pictures), to_float(self.originals))))


def reconstructions(tokenizer: mt.Tokenizer, count: int = 1000, size: int = 32) -> Judged:
    """Test pictures encoded and decoded."""
    captions, originals = _test(count, size)
    pictures = to_uint8(tokenizer.decode(tokenizer.encode(originals)))
    return Judged(captions, originals, pictures, verify_all(captions, pictures))


def samples(generator: Generator, count: int = 256, seed: int = 0, first: int = 0, **settings) -> Judged:
    """A picture for each of `count` different test combinations behind the `first`, by the recommended settings unless others
    are given."""
    size = generator.tokenizer.config.image_size
    captions, originals = _test(count, size, first)
    pictures = to_uint8(generator.generate(prompts=captions, seed=seed, **settings).images)
    return Judged(captions, originals, pictures, verify_all(captions, pictures))


def unseen(count: int) -> list[str]:
    """Captions of the first test combinations."""
    return _test(count, 32)[0]


def _test(count: int, size: int, first: int = 0) -> tuple[list[str], UInt8[np.ndarray, "count size size 3"]]:
    """The test scenes that say something new, without the `first` of them."""
    chosen, source = {}, ShapesSource("test", 20 * (first + count), size)
    for index in range(len(source)):
        if len(chosen) == first + count:
            break
        example = source[index]
        chosen.setdefault(parse(example["text"]), example)
    found = [*chosen.values()][first:]
    return [e["text"] for e in found], np.stack([e["image"] for e in found])


def score(pictures: UInt8[np.ndarray, "B size size 3"], captions: Sequence[str]) -> list[float]:
    """A scorer of embedded scenes: the share of the named things that are there, less half of one for each thing more; 1 more
    where all is right, in size and place too."""
    return [_score(c, v) for c, v in zip(captions, verify_all(captions, pictures), strict=True)]


def _score(caption: str, verdict: Verdict) -> float:
    asked = Counter((thing.colour, thing.shape) for thing in parse(caption).things)
    there = (asked & Counter((o.thing.colour, o.thing.shape) for o in verdict.found)).total()
    more = len(verdict.found) + len(verdict.unclear) - there
    return there / asked.total() - 0.5 * more + verdict.places_right


def figures(restored: Judged, drawn: Judged) -> dict[str, float | int]:
    """The figures by name, as in figures.json."""
    return {
        "psnr_test": round(restored.psnr, 3),
        "reconstructions_right": restored.places_right,
        "prompts": len(drawn.captions),
        "objects_right": drawn.objects_right,
        "places_right": drawn.places_right,
    }


def describe(found: dict[str, float | int], targets: dict[str, float] = TARGETS) -> str:
    """The figures as lines of text, each with its target."""
    rows = table(found, targets)
    return "\n".join(f"  {row.name:<{max(len(r.name) for r in rows)}}  {row.shown:>12}  {row.wanted}" for row in rows)


# The page ------------------------------------------------------------------------------------------------------------


def table(found: dict[str, float | int], targets: dict[str, float] = TARGETS) -> list[Figure]:
    """Figures beside their targets."""

    def row(name: str, value: float | int) -> Figure:
        if name == "seconds":
            minutes = targets.get(name, 0) / 60 or None
            return Figure(NAMES[name], value / 60, minutes, "minutes", less=True)
        return Figure(NAMES[name], value, targets.get(name), {"psnr_test": "dB", "prompts": ""}.get(name, "%"))

    return [row(name, value) for name, value in found.items() if name in NAMES]


def galleries(restored: Judged, drawn: Judged) -> list[Gallery]:
    """Originals beside reconstructions, samples under their prompts; of each kind the first ones, not the best."""
    pairs = [
        Card([original, picture], good=verdict.places_right, note="" if verdict.places_right else told(verdict))
        for original, picture, verdict in zip(restored.originals, restored.pictures, restored.verdicts, strict=True)
    ]
    return [
        Gallery("Originals and reconstructions", pairs[:SHOWN], "Left a test picture, right what its tokens keep of it.", 96),
        Gallery("Samples", cards(drawn)[: 2 * SHOWN], "For each prompt the picture drawn, and what the checker says of it."),
    ]


def cards(drawn: Judged) -> list[Card]:
    """Pictures under their prompts, each right or wrong."""
    return [
        Card([picture], caption, verdict.places_right, "" if verdict.places_right else told(verdict))
        for caption, picture, verdict in zip(drawn.captions, drawn.pictures, drawn.verdicts, strict=True)
    ]


def told(verdict: Verdict) -> str:
    """Why a picture is wrong, in a few words."""
    if verdict.objects_right:
        return "right objects, wrong size or place"
    found = ", ".join(str(item.thing)[2:] for item in verdict.found) or "nothing"
    return f"shows {found}" + (" and something unclear" if verdict.unclear else "")
