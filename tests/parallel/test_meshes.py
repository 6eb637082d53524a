"""Meshes of four fake devices, and two processes of two, give what one device gives.

One process tries all meshes, so that each program is compiled once; the tests read what it found. Other orders of prediction
are in tests/scale.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from miniatures import MESHES, ONE, RESTORED, SAVED, STEPS, TOKENIZER, generator

from mmgen.model.flops import training_operations
from mmgen.training.metrics import read_metrics

SCRIPT = Path(__file__).parent / "miniatures.py"
TRIED = [("generator", shape) for shape in MESHES if shape] + [("tokenizer", shape) for shape in TOKENIZER if shape]


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    command = [sys.executable, SCRIPT, "meshes", folder]
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout) | {"stderr": done.stderr, "folder": str(folder)}


def far(a: list[float], b: list[float]) -> float:
    """Distance of a from b as a share of the length of b."""
    return float(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(b))


@pytest.mark.parametrize(("kind", "shape"), TRIED, ids=str)
def test_a_mesh_gives_the_losses_and_gradients_of_one_device(found, kind, shape):
    agree(found[kind][str(shape)], found[kind][str(ONE)])


def agree(mine: dict, one: dict) -> None:
    """To float32 rounding: sums over a batch or over a contraction are made in another order."""
    assert len(one["figures"]) == STEPS and one["figures"][-1]["loss"] < one["figures"][0]["loss"]
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


def test_what_is_inherited_lies_in_pieces_and_is_no_second_copy(found):
    assert found["inherited"] == {"lies": True, "taken over": True, "right": True}


def test_fsdp_gathers_parameters_one_layer_at_a_time(found):
    """Weights of a layer have two axes; stacked ones of all layers would have three, the first of size 2."""
    shapes = found["generator"][str(SAVED)]["gathers"]
    assert [16, 8] in shapes and [16, 16] in shapes
    assert not [shape for shape in shapes if len(shape) > 2 and shape[0] == 2]
    assert "nvoluntary full rematerialization" not in found["stderr"]
    assert not found["generator"]["(4, 1, 1, 1)"]["gathers"]


def test_what_xla_copies_whole_is_heard(found):
    assert len(found["heard"]) == 1


def test_the_program_does_not_grow_with_depth(found):
    """And so, neither does the time to compile it."""
    assert found["lines"]["12"] == found["lines"]["48"] > 1000


def test_heads_and_units_that_are_split_are_summed_twice_a_layer(found):
    few, many = found["sums"]
    assert many - few == 2 * 3


def test_operations_are_those_of_the_formula_on_every_mesh(found):
    """By hand: 3 (forward, and two backward) x 2 x rows x slots x the matrices, and attention's two products."""
    rows, slots, D, F, V = 8, 4, 16, 8, 32
    layer = slots * (4 * D * D + 3 * D * F) + 2 * slots * slots * D
    by_hand = 3 * 2 * rows * (2 * layer + slots * D * V)
    assert {run["operations"] for run in found["generator"].values()} == {by_hand}
    assert rows * training_operations(generator(Path(found["folder"])).task.model).full == by_hand


def test_collectives_are_those_of_the_mesh(found):
    """On fsdp 4, each of both layers gathers its weights once for each direction: three quarters come from others."""
    runs, layer = found["generator"], 4 * (4 * 16 * 16 + 3 * 16 * 8)
    assert runs[str(ONE)]["collectives"] == {}
    assert set(runs["(4, 1, 1, 1)"]["collectives"]) == {"all-reduce"}
    count, received = runs["(1, 4, 1, 1)"]["collectives"]["all-gather"]
    assert count >= 2 * 2 * 7 and 2 * 2 * layer * 3 / 4 <= received < 2 * (2 * 2 * layer * 3 / 4)


@pytest.mark.parametrize("shape", RESTORED, ids=str)
def test_a_checkpoint_continues_on_another_mesh(found, shape):
    again, straight = found["restored"][str(shape)], found["generator"][str(SAVED)]["figures"]
    assert again["step"] == 2 and again["lies"]
    for mine, expected in zip(again["figures"], straight[2:], strict=True):
        assert mine["loss"] == pytest.approx(expected["loss"], rel=2e-6)
        assert mine["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def start(devices: int, *arguments) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, "process", *map(str, arguments)]
    return subprocess.Popen(command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told_by(process: subprocess.Popen, code: int) -> str:
    try:
        told = process.communicate(timeout=200)[1]
    finally:
        process.kill()
    assert process.returncode == code, told[-3000:]
    return told


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Two processes of two devices each train until the second is told to stop; then one process of one device continues."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    together = [start(2, folder, 50, address, 2, index) for index in range(2)]
    told = [told_by(process, 143) for process in together]
    return folder, [*told, told_by(start(1, folder, 4), 0)]


def test_processes_train_as_one_and_stop_at_the_same_step(found, processes):
    """The signal came before the first step of the second process: it is read with that step, two steps later."""
    folder, (first, _, alone) = processes
    assert "stopped by SIGTERM: saved at step 3;" in first and "continues at step 3" in alone
    entries = [entry for entry in read_metrics(folder / "run") if "loss" in entry]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    for entry, expected in zip(entries, found["generator"][str(ONE)]["figures"], strict=False):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=2e-6)
        assert entry["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


def test_a_mistake_of_one_process_reaches_all(processes):
    first, second, _ = processes[1]
    assert "mistake 0\nprocess 1 ended: mistake 1\n" in first
    assert "process 0 ended: mistake 0\nmistake 1\n" in second


def test_only_the_first_process_tells(processes):
    _, (first, second, alone) = processes
    assert "2 processes, 4 devices (cpu), mesh replica 1 x fsdp 4 x tensor 1 x sequence 1" in first and "step 2/50" in first
    assert "step 2" not in second and "MiB" not in second
    assert "mesh" not in alone
