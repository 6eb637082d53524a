"""What the best of N candidates gains on the embedded scenes, with their checker as the scorer.

    python tools/bench/best_of.py runs/shapes_generator --out tools/bench/results/best_of_shapes_cpu.json

Prompts are test combinations that no training caption named. For each N: the share of pictures with every named object, and
with every size and place right too; the same where the worse half is given up half-way and once more at three quarters
(--best-at); forwards of the transformer for a batch, and seconds a picture that is kept, the first call's compilation left out.
`--temperature` makes candidates differ; the recommended one draws nearly the same picture again.

Result at temperature 1 (tools/bench/results/best_of_shapes_cpu.json): all right in 93.8% of 64 pictures, in 96.9% of the best
of 2 and in 100% of the best of 4; 96.9% where of 4 candidates half was given up twice on the way.
The scorer is the judge, and a picture is 1.6 points.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from common import report, write
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.pictures import to_uint8

from mmgen import load
from mmgen.best import BestOf, draw_best
from mmgen.data.shapes import verify_all
from mmgen.evaluation.shapes import unseen
from mmgen.generator import Generator

SCORER = "mmgen.evaluation.shapes:score"


def measured(generator: Generator, captions: list[str], count: int, at: tuple[int, ...], settings: dict) -> dict[str, Any]:
    def draw() -> tuple[Any, int]:
        if count == 1:
            made = generator.generate(prompts=captions, **settings)
            return to_uint8(made.images), made.forwards
        made = draw_best(generator, "prompts", captions, captions, BestOf(count, SCORER, at), **settings)
        return made.pictures, made.forwards

    draw()
    start = time.perf_counter()
    pictures, forwards = draw()
    seconds = time.perf_counter() - start
    verdicts = verify_all(captions, pictures)
    right = {name: sum(getattr(v, name) for v in verdicts) / len(captions) for name in ("objects_right", "places_right")}
    return {"candidates": count, "at": at, **right, "forwards": forwards, "seconds_each": round(seconds / len(captions), 4)}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("run")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    p.add_argument("--temperature", type=float)
    p.add_argument("--out", type=Path)
    arguments = p.parse_args()
    use_compilation_cache()
    generator, captions = load(arguments.run), unseen(arguments.prompts)
    sites, settings = generator.config.layout.sites, {"temperature": arguments.temperature}
    found = [measured(generator, captions, count, (), settings) for count in arguments.counts]
    found.append(measured(generator, captions, max(arguments.counts), (sites // 2, 3 * sites // 4), settings))
    write(report(f"best of N on embedded scenes, {len(captions)} prompts", {"rows": found}), arguments.out)


if __name__ == "__main__":
    main()
