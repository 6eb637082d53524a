"""Meshes of four fake devices give what one device gives. One process does all of it; the tests read what it found."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from miniatures import GENERATOR, ONE, RESTORED, SAVED, TOKENIZER

SCRIPT = Path(__file__).parent / "miniatures.py"
MESHES = [("generator", shape) for shape in GENERATOR if shape] + [("tokenizer", shape) for shape in TOKENIZER if shape]


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    # Compiles these programs three times as fast; later versions have no such flag.
    flags += " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    command = [sys.executable, SCRIPT, "meshes", folder]
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) | {"stderr": done.stderr}


def far(a: list[float], b: list[float]) -> float:
    """Distance of a from b as a share of the length of b."""
    return float(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))


@pytest.mark.parametrize(("kind", "shape"), MESHES, ids=str)
def test_a_mesh_gives_the_losses_and_gradients_of_one_device(found, kind, shape):
    """To float32 rounding: sums over a batch or over a contraction are made in another order."""
    mine, one = found[kind][str(shape)], found[kind][str(ONE)]
    assert len(one["figures"]) == 3 and one["figures"][2]["loss"] < one["figures"][0]["loss"]
    for a, b in zip(mine["figures"], one["figures"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-6) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
    assert far(mine["start"], one["start"]) < 1e-6
    assert far(mine["gradient"], one["gradient"]) < 2e-6
    assert far(mine["ema"], one["ema"]) < 1e-5


def test_the_state_is_kept_in_pieces(found):
    """fsdp 4 keeps a quarter of everything but a few vectors; replicas keep all of it."""
    shares = [("generator", (1, 4, 1, 1), 0.26), ("generator", (1, 2, 2, 1), 0.27), ("tokenizer", (2, 2, 1, 1), 0.53)]
    for kind, shape, most in shares:
        for mine, one in zip(found[kind][str(shape)]["bytes"], found[kind][str(ONE)]["bytes"], strict=True):
            assert mine < most * one, (kind, shape)
    assert found["generator"]["(4, 1, 1, 1)"]["bytes"] == found["generator"][str(ONE)]["bytes"]


def test_fsdp_gathers_parameters_one_layer_at_a_time(found):
    """Weights of a layer have two axes; stacked ones of all layers would have three, the first of size 2."""
    shapes = found["generator"][str(SAVED)]["gathers"]
    assert [16, 8] in shapes and [16, 16] in shapes
    assert not [shape for shape in shapes if len(shape) > 2 and shape[0] == 2]
    assert "nvoluntary full rematerialization" not in found["stderr"]
    assert not found["generator"]["(4, 1, 1, 1)"]["gathers"]


@pytest.mark.parametrize("shape", RESTORED, ids=str)
def test_a_checkpoint_continues_on_another_mesh(found, shape):
    again, straight = found["restored"][str(shape)], found["generator"][str(SAVED)]["figures"]
    assert again["step"] == 2 and again["lies"]
    assert again["figures"][0]["loss"] == pytest.approx(straight[2]["loss"], rel=2e-6)
    assert again["figures"][0]["grad_norm"] == pytest.approx(straight[2]["grad_norm"], rel=1e-5)
