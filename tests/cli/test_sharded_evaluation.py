"""Two processes of two devices each find the figures of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.pictures import write_png

from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig

sys.path.insert(0, str(Path(__file__).parent))  # for sharded.py, which subprocesses run too

import sharded

PALETTE, LABELS = ((0, 0, 0), (90, 0, 0), (0, 120, 60), (180, 180, 0), (240, 240, 240)), ("cat", "dog", "eel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng, size = tmp_path_factory.mktemp("sharded"), np.random.default_rng(0), sharded.SIZE
    tokenizer, block = mt.Tokenizer(mt.Pixels(PALETTE, size), {}), BlockConfig(width=8, heads=1, mlp=8)
    config = GeneratorConfig(layout=tokenizer.layout, condition=ClassCondition(len(LABELS)), block=block, depth=1)
    shapes = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)
    Generator(config, params, tokenizer, labels=LABELS).save(folder / "model")
    np.savez(folder / "real.npz", arr_0=rng.integers(0, 256, (sharded.NUM, size, size, 3), np.uint8))
    for i in range(7):
        write_png(folder / "pictures" / LABELS[i % 3] / f"{i}.png", rng.integers(0, 256, (size + 1, size, 3), np.uint8))
    return folder


def together(folder: Path, out: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, sharded.__file__, folder, out, address, "2"]
    running = [
        subprocess.Popen([*command, str(i)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        told = [process.communicate(timeout=200)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], told[0][-2000:] + told[1][-2000:]


def test_the_same_figures_and_pictures(folder):
    sharded.evaluate(folder, folder / "one")
    together(folder, folder / "four")
    told = [json.loads((folder / name / "figures.json").read_text()) for name in ("one", "four")]
    assert [found["devices"] for found in told] == [1, 2]
    one, four = (found["figures"] for found in told)
    assert {"fid", "sfid", "inception_score", "precision", "recall", "kid", "bits_per_picture"} <= set(one) == set(four)
    for name, figure in one.items():
        assert four[name]["value"] == pytest.approx(figure["value"], rel=1e-6), name
        assert four[name].get("interval", []) == pytest.approx(figure.get("interval", []), rel=1e-6), name
    pieces = sorted((folder / "one" / "pictures").iterdir())
    assert len(pieces) == len(list((folder / "four" / "pictures").iterdir())) == 5
    for piece in pieces:
        np.testing.assert_array_equal(np.load(piece)["arr_0"], np.load(folder / "four" / "pictures" / piece.name)["arr_0"])
    held = [np.load(folder / name / "real.npz") for name in ("one", "four")]
    np.testing.assert_allclose(held[1]["features"], held[0]["features"], rtol=1e-5, atol=1e-6)
