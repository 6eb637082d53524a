"""What devices can do, by their makers' data sheets, and pods of them that are not there."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass

import jax
from mmgen_tokenizers.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX sees it. `kinds`: how its device_kind begins."""

    kinds: tuple[str, ...]
    memory: float  # GiB that a program can use
    peak: float  # TFLOP/s of dense bfloat16 products
    bandwidth: float  # GB/s of its memory
    link: float  # GB/s that it receives from other devices, over all its links

    @property
    def bytes(self) -> float:
        return self.memory * GIB


# TPUs: memory as libtpu's compiler counts it, one device a chip; link is a half of what is published for both directions.
CHIPS = {
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), 15.75, 197, 819, 200),
    "v5p": Chip(("TPU v5p", "TPU v5"), 95.74, 459, 2765, 600),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), 31.25, 918, 1640, 400),
    "a100": Chip(("NVIDIA A100",), 79, 312, 2039, 300),
    "h100": Chip(("NVIDIA H100",), 79, 989, 3350, 450),
    "h200": Chip(("NVIDIA H200",), 139, 989, 4800, 450),
}
BETWEEN_NODES = 50  # GB/s a GPU, where there are more than the eight of a node (400 Gbit/s each)
TPUS = ("v5e", "v5p", "v6e")


def chip_of(kind: str) -> Chip | None:
    """The chip whose device_kind is `kind`; None where nothing is known of it."""
    found = [(len(start), chip) for chip in CHIPS.values() for start in chip.kinds if kind.startswith(start)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


@dataclass(frozen=True)
class Topology:
    """Devices to compile for. `chip` None: nothing is known of them but their number. `exact`: the compiler is theirs."""

    name: str
    devices: tuple
    chip: Chip | None
    exact: bool

    @property
    def link(self) -> float:
        return BETWEEN_NODES if not self.exact and len(self.devices) > 8 else self.chip.link


def topology(name: str) -> Topology:
    """ "v5p:2x2x1": by libtpu's compiler, which needs no TPU; "h200:8", "cpu:8": fake CPU devices that stand for them. Must run
    before JAX is first used. Raises UserError at a name that is not known, and without libtpu."""
    kind, _, grid = name.partition(":")
    if kind not in (*CHIPS, "cpu") or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", grid):
        raise UserError(
            f"--topology {name}: name a chip and a grid, such as v5e:4x4, v5p:2x2x1, v6e:8x8, h200:8 or cpu:4 "
            f"(chips: {', '.join(CHIPS)}, cpu)"
        )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # of what is read from there nobody is warned
    if kind in TPUS:
        return Topology(name, _tpus(name), CHIPS[kind], exact=True)
    jax.config.update("jax_num_cpu_devices", math.prod(int(size) for size in grid.split("x")))
    return Topology(name, tuple(jax.devices()), CHIPS.get(kind), exact=kind == "cpu")


def _tpus(name: str) -> tuple:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology {name} is compiled by libtpu, which is not here: pip install 'mmgen[tpu]'; cpu:N compiles for N fake "
            "CPU devices"
        )
    # This machine is no TPU: libtpu asks nobody which one it is, and does not complain.
    alone = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    alone |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # nor is there anything that two of them could not share
    warns = {"TPU_MIN_LOG_LEVEL": "1", "TPU_STDERR_LOG_LEVEL": "1"}  # for `overheard`
    os.environ.update(alone | warns | os.environ)
    from jax.experimental import topologies

    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # libtpu's own kinds
        raise UserError(f"--topology {name}: {(str(error).splitlines() or [repr(error)])[0][:200]}") from error
