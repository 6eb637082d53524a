"""Orders of prediction on meshes of four fake devices, as tests/parallel/test_meshes.py has them for next-token; what depth
adds to compilation."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.extend(str(Path(__file__).parent.parent / name) for name in ("parallel", "training"))

import jax
import numpy as np
import pytest
from miniatures import ONE, Miniature, compared, generator
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ
from models import write_shards
from test_meshes import environment, far

from mmgen.config import Experiment
from mmgen.model.config import NextNeighbor, NextScale

SHAPES = [ONE, (4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (1, 2, 2, 1), (1, 1, 1, 4)]
SCALES = MultiScaleVQ(size=32, dim=3, scales=(1, 3, 5, 7), phis=2)
ORDERS = {
    "scale": (NextScale(SCALES), TokenLayout("scales", 7, 7, 32, scales=SCALES.grids(7, 7))),
    "neighbor": (NextNeighbor(), TokenLayout(height=4, width=4, codebook_size=32)),
}


def experiment(folder: Path, order: str) -> Experiment:
    plan, layout = ORDERS[order]
    if not (folder / "shards").exists():
        write_shards(folder / "shards", layout=layout)
    made = generator(folder)
    return replace(made, task=replace(made.task, model=replace(made.task.model, plan=plan, layout=layout)))


def by_blocks(made: Experiment) -> Experiment:
    return replace(made, task=replace(made.task, model=replace(made.task.model, attention="blocks")))


def compile_seconds(folder: Path, depth: int) -> float:
    made = generator(folder)
    model = replace(made.task.model, depth=depth, remat=True)
    start = time.perf_counter()
    Miniature(replace(made, task=replace(made.task, model=model)), folder, (1, 4, 1, 1))
    return time.perf_counter() - start


def tried(folder: Path) -> dict:
    found = {order: compared(experiment(folder / order, order), folder / order, SHAPES) for order in ORDERS}
    found["blocks"] = compared(by_blocks(experiment(folder / "scale", "scale")), folder / "scale", [ONE, (1, 2, 2, 1)])
    jax.config.update("jax_enable_compilation_cache", False)
    return found | {"seconds": {depth: compile_seconds(folder, depth) for depth in (2, 12, 48)}}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    command = [sys.executable, __file__, tmp_path_factory.mktemp("orders")]
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nvoluntary full rematerialization" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_a_mesh_gives_the_losses_and_gradients_of_one_device(found, order, shape):
    same(found[order][str(shape)], found[order][str(ONE)])


@pytest.mark.parametrize("shape", [ONE, (1, 2, 2, 1)], ids=str)
def test_blocks_of_slots_give_the_same(found, shape):
    same(found["blocks"][str(shape)], found["scale"][str(ONE)])


def same(mine: dict, one: dict) -> None:
    for a, b in zip(mine["figures"], one["figures"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert far(mine["gradient"], one["gradient"]) < 1e-5 and np.any(one["gradient"])


def test_compilation_does_not_grow_with_depth(found):
    """Of tracing, lowering and compiling; the first of the three pays for what all share."""
    assert found["seconds"]["48"] < 1.3 * found["seconds"]["12"]


if __name__ == "__main__":
    print(json.dumps(tried(Path(sys.argv[1]))))
