"""Fixtures for all tests. None of them needs a network, an accelerator or data that the repository does not hold."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# Before anything imports jax. Many tests, and the commands that they start, build the same small programs: compile each once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # set it to test on an accelerator
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tests compile much and compute little: without LLVM's optimisations, in one piece and by XLA's older emitters (jax 0.12 has
# them no more and ignores that word) programs compile in a third to a fifth of the time. XLA_FLAGS="" tests what users run.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
COMPILE_FAST += " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ.setdefault("XLA_FLAGS", COMPILE_FAST)
# Commands that tests start find the checkout too, installed or not.
paths = [str(REPOSITORY), str(REPOSITORY / "tokenizers"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(paths)
DATA = Path(os.environ.get("MMGEN_DATA") or REPOSITORY.parent / "shared" / "data")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Copies that tests make stay out of the user's cache."""
    if "MMGEN_CACHE" not in os.environ:
        os.environ["MMGEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared():
    """`shared("emoji/train")`: a path in the shared data ($MMGEN_DATA, else ../shared/data); skips where it is absent."""
    return lambda name="": _present(DATA / name)


@pytest.fixture(scope="session")
def parity():
    """`parity("llamagen_vq")`: a folder of numbers that published code gave, beside the shared data; skips likewise."""
    return lambda name="": _present(DATA.parent / "parity" / name)


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here (set MMGEN_DATA to the shared data folder)")
    return path
