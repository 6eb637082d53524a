"""mmgen: autoregressive image models in JAX.

    gen = mmgen.load("runs/shapes/generator")
    out = gen.generate(prompts=["a small red circle above a large blue square"])

Names are imported when they are first used, so that `import mmgen` (and `mmgen --help`) does not load JAX.
"""
import importlib

_HOMES = {
    "Experiment": "mmgen.config",
    "Generator": "mmgen.generator",
    "convert": "mmgen.pretrained",
    "load": "mmgen.generator",
    "train": "mmgen.training.loop",
}

__all__ = ["Experiment", "Generator", "convert", "load", "train"]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mmgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
