"""A report of a text-to-picture generator: prompts of the training and of the test data, true pictures beside the drawn ones.

    python experiments/emoji/evaluate.py runs/emoji_generator [PROMPTS]

Works for any run on captioned pictures with validation data. Writes report.html into the run folder.
"""

import sys
from pathlib import Path

import numpy as np
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.metrics import psnr
from mmgen_tokenizers.pictures import to_float, to_uint8

from mmgen import config, load
from mmgen.data import batches
from mmgen.evaluation.curves import charts
from mmgen.report import Card, Figure, Gallery, write_report


def main(run: str, prompts: str = "40") -> None:
    use_compilation_cache()
    run = Path(run)
    experiment, generator = config.load(run / "experiment.json"), load(run)
    galleries, table = [], []
    for name, data in (("training", experiment.data), ("test", experiment.validation)):
        if data is None:  # trained with --validation none
            continue
        batch = next(batches(data, int(prompts), repeat=False))
        restored = to_uint8(generator.tokenizer.decode(generator.tokenizer.encode(batch["image"])))
        quality = float(np.mean(psnr(to_float(restored), to_float(batch["image"]))))
        table.append(Figure(f"PSNR of {len(restored)} reconstructed {name} pictures", quality, unit="dB"))
        drawn = to_uint8(generator.generate(prompts=batch["text"]).images)
        cards = [Card(three, text) for *three, text in zip(batch["image"], restored, drawn, batch["text"], strict=True)]
        about = "Left the true picture, then its reconstruction, right what the model draws from the text."
        galleries.append(Gallery(f"Prompts of the {name} data", cards, about, shown=96))
    write_report(run / "report.html", "Text to picture", table, charts(experiment.task.tokenizer, run), galleries)
    for row in table:
        print(f"  {row.name:<50} {row.shown:>10}")
    print(run / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
