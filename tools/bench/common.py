"""What the benchmarks of this folder share: time, the machine's rate, and the file that their figures go to."""

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest call, after one that is not counted."""
    return best_of_each({"": run}, repeats)[""]


def best_of_each(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The same of several, which take turns: where the machine is slower for a while, it is so for all of them."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in times.items()}


def matmul_rate(size: int = 2048, dtype: jnp.dtype = jnp.float32) -> float:
    """GFLOP/s of a square product."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    f = jax.jit(lambda a: jnp.matmul(a, a, precision="highest" if a.dtype == jnp.float32 else None))
    return 2 * size**3 / best_of(lambda: f(a).block_until_ready(), 10) / 1e9


def read_rate() -> float:
    """GB/s of a sum over more than any cache holds."""
    size = 1 << (26 if jax.default_backend() == "cpu" else 29)
    x, f = jnp.ones((size // 1024, 1024)), jax.jit(lambda x: jnp.sum(x, axis=1))
    return 4 * size / best_of(lambda: f(x).block_until_ready(), 10) / 1e9


def report(what: str, figures: Mapping[str, Any], peer: str | None = None, name: str = "") -> dict[str, Any]:
    """`figures` with the machine, the versions, the date and the command. `peer`: a path in it to call by its `name`."""
    words = [name if word == peer else word for word in sys.argv[1:]]
    packages = ["jax", "flax", "optax"] + ["torch"] * ("torch" in sys.modules)
    return {
        "what": what,
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {len(jax.devices())} device(s)",
        "versions": {package: version(package) for package in packages},
        "date": date.today().isoformat(),
        "command": " ".join([f"python tools/bench/{Path(sys.argv[0]).name}", *words]),
        "figures": figures,
    }


def write(found: Mapping[str, Any], out: Path | None) -> None:
    """Prints a report, and writes it where it is asked for."""
    text = json.dumps(found, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
