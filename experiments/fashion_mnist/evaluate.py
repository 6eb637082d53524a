"""Figures and a report of a class-conditional generator, judged by a CNN that is trained here on the real pictures.

    python experiments/fashion_mnist/evaluate.py runs/fashion_mnist_generator [SAMPLES]

Works for any run on labelled pictures with a test split as validation data. Writes figures.json and report.html into the
run folder; `mmgen evaluate RUN --classifier` gives the same judge's figures without the tokenizer's and the targets.
"""

import sys
from pathlib import Path

import numpy as np
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.metrics import psnr
from mmgen_tokenizers.pictures import to_float, to_uint8

from mmgen import config, load
from mmgen.data import batches
from mmgen.evaluation import recognition
from mmgen.evaluation.curves import charts
from mmgen.report import Card, Figure, Gallery, write_report


def main(run: str, samples: str = "500") -> None:
    use_compilation_cache()
    run = Path(run)
    experiment, generator = config.load(run / "experiment.json"), load(run)
    result, found = recognition.evaluate(run, run, run / "evaluation" / "classifier", int(samples))
    judged = {name: figure["value"] for name, figure in result["figures"].items()}

    test = next(batches(experiment.validation, 1000, repeat=False))
    restored = to_uint8(generator.tokenizer.decode(generator.tokenizer.encode(test["image"])))
    quality = float(np.mean(psnr(to_float(restored), to_float(test["image"]))))
    figures = {"psnr_test": quality, "samples": len(found.labels)} | judged
    write_json(run / "figures.json", {name: round(value, 4) for name, value in figures.items()})

    table = [
        Figure("PSNR of reconstructed test pictures", quality, 24.0, "dB"),
        Figure("real test pictures that the judging classifier gets right", judged["classifier"], 0.88, "%"),
        Figure("samples", len(found.labels)),
        Figure("samples that it recognises as the class asked for", judged["recognised"], 0.80, "%"),
        Figure("Frechet distance in its features (FCD) from training pictures", judged["fcd"]),
        Figure("that of as many real test pictures", judged["fcd_of_real"]),
        Figure("that of these, blurred", judged["fcd_of_blurred"]),
        Figure("that of noise", judged["fcd_of_noise"]),
    ]
    for row in table:
        print(f"  {row.name:<62} {row.shown:>10}  {row.wanted}")
    names = recognition.names(generator)
    pairs = [Card([a, b], names[label]) for a, b, label in zip(test["image"][:24], restored, test["label"], strict=False)]
    galleries = [Gallery("Originals and reconstructions", pairs, shown=72), recognition.gallery(found, names)]
    write_report(run / "report.html", "Classes", table, charts(experiment.task.tokenizer, run), galleries)
    print(run / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
