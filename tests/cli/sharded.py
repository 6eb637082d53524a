"""Evaluates a generator on all devices of one process, or of several: `sharded.py FOLDER OUT ADDRESS COUNT INDEX`.

FOLDER has model/, real.npz and pictures/; OUT/figures.json tells what the first process found, and how many devices it drew on.
A product with the pixels stands for InceptionV3 and random ids for those that the model would draw: little is compiled.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from mmgen_tokenizers.evaluation import inception, scoring

from mmgen.evaluation import generated, likelihood
from mmgen.generator import Output
from mmgen.parallel import distributed
from mmgen.parallel.mesh import parts_of

NUM, SIZE, CODES = 10, 4, 5
USED = set()  # numbers of devices that share the rows


def weights(file) -> dict:
    return {"product": {"w": np.random.default_rng(0).normal(0, 0.01, (SIZE * SIZE * 3, 12)).astype(np.float32)}}


def features(params: dict, pictures) -> inception.Features:
    found = pictures.reshape(len(pictures), -1) / 255 @ params["product"]["w"]
    return inception.Features(found[:, :5], found[:, 5:8], jax.nn.softmax(found[:, 8:]))


def generate(self, labels, seed: int, first_index: int, **sampling) -> Output:
    """Ids that depend on what those of a model depend on."""
    USED.add(parts_of(self._mesh))
    each = [np.random.default_rng((seed, first_index + i, label)) for i, label in enumerate(labels)]
    tokens = np.stack([rng.integers(0, CODES, SIZE * SIZE) for rng in each])
    return Output(tokens, self.tokenizer.decode(tokens), 0)


def evaluate(folder: Path, out: Path, index: int = 0) -> None:
    with (
        mock.patch.multiple(inception, load=weights, features=features),
        mock.patch.object(generated.Generator, "generate", generate),
        mock.patch.object(scoring, "ROWS", {"cpu": 2}),  # so that everyone has something to do, and not as much
        mock.patch.object(generated, "PIECE", 2),
        mock.patch.object(likelihood, "ROWS", 1),
    ):
        drawn = generated.evaluate(folder / "model", folder / "real.npz", "network", out, num=NUM, statistics=out / "real.npz")
        likely = likelihood.evaluate(folder / "model", str(folder / "pictures"), out / "likelihood")
    if index == 0:
        (out / "figures.json").write_text(json.dumps({"figures": drawn["figures"] | likely["figures"], "devices": max(USED)}))


if __name__ == "__main__":
    folder, out, address, count, index = sys.argv[1:]
    distributed.initialize(address, int(count), int(index), timeout=60)
    evaluate(Path(folder), Path(out), int(index))
