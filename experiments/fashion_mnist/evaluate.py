"""Figures and a report of a class-conditional generator, judged by a CNN that is trained here on the real pictures.

    python experiments/fashion_mnist/evaluate.py runs/fashion_mnist_generator [SAMPLES]

Works for any run on labelled pictures with a test split as validation data. Writes figures.json and report.html into the
run folder.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.metrics import psnr
from mmgen_tokenizers.pictures import to_float, to_uint8

from mmgen import config, load
from mmgen.data import batches
from mmgen.evaluation.classifier import cards, fcd, recognised, train_classifier
from mmgen.evaluation.curves import charts
from mmgen.report import Card, Figure, Gallery, write_report


def main(run: str, samples: str = "500") -> None:
    use_compilation_cache()
    run = Path(run)
    experiment, generator = config.load(run / "experiment.json"), load(run)
    test = next(batches(experiment.validation, 10_000, repeat=False))  # all of it: a batch is at most as large as the data

    classify = train_classifier(batches(experiment.data, 64, seed=1), generator.null_label, experiment.data.size)
    accuracy = float(np.mean(classify(test["image"]) == test["label"]))
    pictures, labels, right = recognised(generator, classify, int(samples))

    originals = test["image"][:1000]
    restored = to_uint8(generator.tokenizer.decode(generator.tokenizer.encode(originals)))
    quality = float(np.mean(psnr(to_float(restored), to_float(originals))))
    share = float(right.mean())
    # Real test pictures, mirrored and cropped as those that the model learned from: what a perfect model would draw.
    alike = next(batches(replace(experiment.data, source=experiment.validation.source), len(pictures), repeat=False))["image"]
    reference = next(batches(experiment.data, 10_000, seed=2))["image"]
    distance, floor = (fcd(classify, x, reference)["value"] for x in (pictures, alike))
    figures = {"psnr_test": round(quality, 3), "classifier": accuracy, "samples": len(labels), "recognised": share}
    figures |= {"fcd": round(distance, 3), "fcd_of_real": round(floor, 3)}
    write_json(run / "figures.json", figures)

    table = [
        Figure("PSNR of reconstructed test pictures", quality, 24.0, "dB"),
        Figure("real test pictures that the judging classifier gets right", accuracy, 0.88, "%"),
        Figure("samples", len(labels)),
        Figure("samples that it recognises as the class asked for", share, 0.80, "%"),
        Figure("Frechet distance in its features (FCD) from training pictures", distance),
        Figure("that of as many real test pictures", floor),
    ]
    for row in table:
        print(f"  {row.name:<60} {row.shown:>10}  {row.wanted}")
    names = generator.labels or [str(label) for label in range(generator.null_label)]
    pairs = [Card([a, b], names[label]) for a, b, label in zip(originals[:24], restored, test["label"], strict=False)]
    galleries = [
        Gallery("Originals and reconstructions", pairs, shown=72),
        Gallery("Samples, the classes in turn", cards(pictures, labels, right, names)[:60], shown=80),
    ]
    write_report(run / "report.html", "Classes", table, charts(experiment.task.tokenizer, run), galleries)
    print(run / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
