"""Every order of prediction, and a tokenizer with its discriminator, on every mesh of four devices: tests/parallel tries
some of them. `sequence` and `tensor` repeat convolutional networks."""

import json
import subprocess
import sys
from pathlib import Path

sys.path.extend(str(Path(__file__).parent.parent / name) for name in ("parallel", "training"))

import pytest
from miniatures import KINDS, MESHES, ONE
from test_meshes import SCRIPT, agree, environment


@pytest.fixture(scope="module", params=KINDS)
def found(request, tmp_path_factory):
    command = [sys.executable, SCRIPT, "equal", tmp_path_factory.mktemp("equal"), request.param]
    done = subprocess.run(command, env=environment(4), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nvoluntary full rematerialization" not in done.stderr
    return json.loads(done.stdout)[request.param]


@pytest.mark.parametrize("shape", [shape for shape in MESHES if shape], ids=str)
def test_a_mesh_gives_the_losses_and_gradients_of_one_device(found, shape):
    agree(found[str(shape)], found[str(ONE)])
