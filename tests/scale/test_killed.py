"""Two processes train, one of them is killed at some step, hangs, or has nothing to train: the other says so and ends, and
nothing is lost."""

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.extend(str(Path(__file__).parent.parent / name) for name in ("parallel", "training"))

import pytest
from miniatures import generator

import mmgen
from mmgen import config
from mmgen.parallel import distributed
from mmgen.parallel.watch import Watch
from mmgen.training import loop
from mmgen.training.metrics import read_metrics

STEPS, ROUNDS = 20, int(os.environ.get("MMGEN_ROUNDS", "10"))


def train(*place: str) -> None:
    """In this folder, as one of several processes or as the only one."""
    if place:
        distributed.initialize(place[0], *map(int, place[1:]), timeout=60)
        if place[2] == os.environ.get("HANGS"):
            loop.feed = hanging(loop.feed)
    Watch.ends_program = True  # as of the command
    mmgen.train(generator(Path(), steps=STEPS, every_checkpoint=3), "run")


def hanging(feed):
    """The same, until the data of step 8 do not come: as from a disk that does not answer."""
    steps = itertools.count(1)
    return lambda *inputs: time.sleep(1000) if next(steps) == 8 else feed(*inputs)


def started(folder: Path, count: int) -> list[subprocess.Popen]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    places = [[address, str(count), str(index)] for index in range(count)] if count > 1 else [[]]
    return [
        subprocess.Popen([sys.executable, __file__, *place], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        for place in places
    ]


def finished(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        told = process.communicate(timeout=300)[1]
        assert process.returncode == 0, told[-3000:]


def losses(folder: Path) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in read_metrics(folder / "run") if "loss" in entry}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    generator(folder)  # its data
    finished(started(folder, 2))
    assert list(losses(folder)) == list(range(1, STEPS + 1))
    return folder


def struck(folder: Path, victim: int, at: int, number: int) -> tuple[str, list[subprocess.Popen]]:
    """One of two processes gets a signal at that step, or none (0). What the other says within a minute, and both."""
    processes = started(folder, 2)
    deadline = time.monotonic() + 200
    while max(losses(folder), default=0) < at and time.monotonic() < deadline:
        assert processes[victim].poll() is None, processes[victim].communicate()[1][-3000:]
        time.sleep(0.01)
    processes[victim].send_signal(number)
    sent = time.monotonic()
    told = processes[1 - victim].communicate(timeout=60)[1]
    code = processes[1 - victim].returncode
    assert code == 75, (victim, at, code, told[-3000:])
    print(f"process {victim} got signal {number} at step {at}: the other ended after {time.monotonic() - sent:.1f} s")
    return told, processes


@pytest.mark.parametrize("round", range(ROUNDS))
def test_nothing_is_lost_with_a_process_that_is_killed(undisturbed, tmp_path, round):
    folder, victim, at = tmp_path / "two", round % 2, random.Random(round).randrange(1, STEPS - 1)
    shutil.copytree(undisturbed / "shards", folder / "shards")
    told, _ = struck(folder, victim, at, signal.SIGKILL)
    assert f"error: process {victim} (" in told and "is gone; start all processes again" in told

    shutil.copytree(folder, tmp_path / "one")
    finished(started(folder, 2))
    assert losses(folder) == losses(undisturbed)
    finished(started(tmp_path / "one", 1))
    assert losses(tmp_path / "one") == pytest.approx(losses(undisturbed), rel=1e-5)


HANGS = {signal.SIGSTOP: "has given no sign of life for 30 s", 0: "has not gone on for 10 s, and the others wait"}


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", HANGS, ids=["machine", "training"])
def test_who_hangs_is_named(tmp_path, number, victim, monkeypatch):
    """A machine that stands still, or only the main thread of a process."""
    generator(tmp_path)  # its data
    if not number:
        monkeypatch.setenv("MMGEN_STUCK", "10")
        monkeypatch.setenv("HANGS", str(victim))
    told, processes = struck(tmp_path, victim, 6, number)
    assert f"error: process {victim} (" in told and HANGS[number] in told
    if number:
        processes[victim].kill()  # a stopped process reads no message
    assert processes[victim].wait(60) == (-signal.SIGKILL if number else 75)


def test_a_mistake_while_loading_ends_the_other_too(tmp_path):
    """Only the first process looks at what the run folder holds; the other waits for it."""
    other = replace(generator(tmp_path), seed=7)
    (tmp_path / "run/checkpoints/3").mkdir(parents=True)
    config.save(other, tmp_path / "run/experiment.json")
    first, second = started(tmp_path, 2)
    told = second.communicate(timeout=90)[1]
    assert second.returncode == 2, told[-3000:]
    assert "process 0 " in told and "holds a run of another experiment" in told
    assert first.wait(10) == 2  # JAX would wait for the other, which is gone


if __name__ == "__main__":
    train(*sys.argv[1:])
