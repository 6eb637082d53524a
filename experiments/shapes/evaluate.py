"""Figures and a report of a generator of embedded scenes, on test prompts that it has not seen.

    python experiments/shapes/evaluate.py runs/shapes_generator [PROMPTS]

Writes figures.json and report.html into the run folder.
"""

import sys
from pathlib import Path

from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.files import write_json

from mmgen import config, load
from mmgen.evaluation import shapes
from mmgen.evaluation.curves import charts
from mmgen.report import write_report

TARGETS = shapes.TARGETS | {"objects_right": 0.90, "places_right": 0.80}


def main(run: str, prompts: str = "256") -> None:
    use_compilation_cache()
    run = Path(run)
    generator = load(run)
    restored = shapes.reconstructions(generator.tokenizer, 1000, generator.tokenizer.config.image_size)
    drawn = shapes.samples(generator, int(prompts))
    figures = shapes.figures(restored, drawn)
    tokenizer_run = config.load(run / "experiment.json").task.tokenizer
    pages = shapes.galleries(restored, drawn)
    write_report(run / "report.html", "Embedded scenes", shapes.table(figures, TARGETS), charts(tokenizer_run, run), pages)
    write_json(run / "figures.json", figures)
    print(shapes.describe(figures, TARGETS))
    print(run / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
