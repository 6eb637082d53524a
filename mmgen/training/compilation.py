"""The persistent compilation cache: the second start of a program does not compile it again."""

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs in $MMGEN_CACHE/xla (default ~/.cache/mmgen/xla), unless JAX was already told where."""
    if jax.config.jax_compilation_cache_dir is None:
        root = os.environ.get("MMGEN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmgen"
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "xla"))
