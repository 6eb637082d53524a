"""InceptionV3 with random weights, a sixteenth as wide, so that tests score pictures in no time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mmgen_tokenizers.evaluation import inception, reconstruction, results, scoring
from mmgen_tokenizers.files import save_arrays, unflatten


def random_state(thin: int = 16) -> dict[str, np.ndarray]:
    """Tensors of a file, so that activations keep their size through the network."""
    rng, state = np.random.default_rng(0), {}
    for name, shape in inception.shapes(thin).items():
        spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.2
        state[name] = rng.normal(0, spread, shape).astype(np.float32)
        if name == "fc.weight":
            state[name] *= 0.05  # so that no class is sure
        if name.endswith(("bn.weight", "running_var")):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return state


def write(folder: Path) -> Path:
    """The file of its weights."""
    save_arrays(folder, unflatten(random_state()))
    return folder / "model.safetensors"


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[Path]:
    """The file of its weights. While this lasts its network is compiled once, for four pictures, and sFID is of one channel."""
    file = write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "CHANNELS", 1)
        patch.setattr(scoring, "ROWS", {"cpu": 4})
        patch.setattr(scoring, "FOLDED", 8)
        own, fresh = scoring.Extractor(file), scoring.Extractor
        for module in (results, reconstruction):
            patch.setattr(module, "Extractor", lambda other: own if str(other) == str(file) else fresh(other))
        yield file
