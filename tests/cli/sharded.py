"""Evaluates a generator on all devices of one process, or of several: `sharded.py FOLDER OUT ADDRESS COUNT INDEX`.

FOLDER has model/, real.npz and pictures/; OUT/figures.json tells what the first process found. A product with the pixels stands
for InceptionV3, so that little is compiled.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from mmgen_tokenizers.evaluation import inception

from mmgen.evaluation import generated, likelihood
from mmgen.parallel import distributed

NUM, SIZE = 10, 8


def weights(file) -> dict:
    return {"product": {"w": np.random.default_rng(0).normal(0, 0.01, (SIZE * SIZE * 3, 12)).astype(np.float32)}}


def features(params: dict, pictures) -> inception.Features:
    found = pictures.reshape(len(pictures), -1) / 255 @ params["product"]["w"]
    return inception.Features(found[:, :5], found[:, 5:8], jax.nn.softmax(found[:, 8:]))


def evaluate(folder: Path, out: Path, index: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load", weights)
        patch.setattr(inception, "features", features)
        patch.setattr(generated, "PIECE", 2)  # so that everyone has something to do, and not as much
        patch.setattr(likelihood, "ROWS", 1)
        drawn = generated.evaluate(folder / "model", folder / "real.npz", "network", out, num=NUM, statistics=out / "real.npz")
        likely = likelihood.evaluate(folder / "model", str(folder / "pictures"), out / "likelihood")
    if index == 0:
        (out / "figures.json").write_text(json.dumps(drawn["figures"] | likely["figures"]))


if __name__ == "__main__":
    folder, out, address, count, index = sys.argv[1:]
    distributed.initialize(address, int(count), int(index), timeout=60)
    evaluate(Path(folder), Path(out), int(index))
