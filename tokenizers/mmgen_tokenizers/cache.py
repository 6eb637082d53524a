"""What is kept on this machine from one run to the next: compiled programs, copies of token shards."""

import os
from pathlib import Path


def cache_root() -> Path:
    """$MMGEN_CACHE, else $XDG_CACHE_HOME/mmgen, else ~/.cache/mmgen."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("MMGEN_CACHE") or user / "mmgen")


def use_compilation_cache() -> None:
    """Keeps compiled programs in cache_root()/xla, unless JAX was already told where: the second start does not compile again.

    Commands and training call this; importing the library leaves JAX's settings alone.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # JAX's 1 would leave out most of a small model
