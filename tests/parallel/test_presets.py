"""The presets at scale: what a device holds of their state, by hand, by the table of axes, and as their docstrings print it."""

import ast
import functools
import re
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from mmgen import config
from mmgen.parallel.chips import GIB
from mmgen.parallel.mesh import AXES, resolve
from mmgen.parallel.rules import bytes_each
from mmgen.training import tasks
from mmgen.training.state import abstract_state

EXPERIMENTS = Path(__file__).resolve().parent.parent.parent / "experiments"
# Devices of the pod; numbers of matrices that fsdp and tensor split (layers, tables of tokens, head), and of those that fsdp
# alone splits (classes, places, what modulates). Norms and biases are left out.
BY_HAND = {
    "imagenet256/llamagen_3b": (256, 24 * (4 * 3200**2 + 3 * 3200 * 8704) + 2 * 16384 * 3200, 1001 * 3200),
    "imagenet256/var_d30": (64, 30 * (4 * 1920**2 + 2 * 1920 * 7680) + 4096 * 1920, 182 * 1920**2 + (1001 + 680 + 32) * 1920),
    "text256/parti_20b": (512, 64 * (4 * 5120**2 + 3 * 5120 * 13824) + (16384 + 2 * 8192) * 5120, 0),
}
MESH = re.compile(r"replica (\d+) x fsdp (\d+) x tensor (\d+) x sequence (\d+)\n")
BYTES = re.compile(r"\n +parameters +([\d.]+) GiB\n +optimizer +([\d.]+) GiB\n")


def by_hand(name: str, mesh: tuple[int, ...]) -> float:
    """Bytes of the parameters on each device; AdamW keeps twice as much."""
    _, fsdp, tensor, _ = mesh
    _, both, one = BY_HAND[name]
    return 4 * (both / (fsdp * tensor) + one / fsdp)


@functools.cache
def by_table(name: str, mesh: tuple[int, ...]) -> tuple[int, int]:
    """Bytes of parameters and optimizer on each device, as preflight counts them."""
    experiment = config.load_experiment(EXPERIMENTS / f"{name}.py")
    task = tasks.make(experiment, None)
    state = abstract_state(task, task.optimizer(experiment), 0, False, AbstractMesh(mesh, AXES))
    return bytes_each(state.params), bytes_each(state.opt_state)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_device_holds_its_pieces_of_a_preset(name):
    mesh = resolve(config.load_experiment(EXPERIMENTS / f"{name}.py").mesh, BY_HAND[name][0])
    parameters, optimizer = by_table(name, mesh)
    assert parameters == pytest.approx(by_hand(name, mesh), rel=0.01)
    assert optimizer == pytest.approx(2 * by_hand(name, mesh), rel=0.01)


@pytest.mark.parametrize("name", BY_HAND)
def test_docstrings_print_what_a_device_holds(name):
    text = ast.get_docstring(ast.parse((EXPERIMENTS / f"{name}.py").read_text()))
    prints = [part for part in text.split(" devices, mesh ")[1:] if "optimizer" in part]
    assert prints, "what preflight printed of the training step is to stand in the docstring"
    for part in prints:
        mesh = tuple(map(int, MESH.match(part).groups()))
        expected = pytest.approx((by_hand(name, mesh), 2 * by_hand(name, mesh)), rel=0.01)
        assert by_table(name, mesh) == expected
        assert tuple(float(size) * GIB for size in BYTES.search(part).groups()) == expected
