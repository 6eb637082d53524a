"""What a preflight found, with what follows from it: the time of a step at best, MFU, tokens and pictures a day."""

import math

from mmgen.parallel.chips import GIB, Topology
from mmgen.parallel.mesh import AXES
from mmgen.parallel.preflight import Needs, fits

DAY = 86_400
NO_TEXT = "this pair of jax and libtpu cannot tell what it compiled (jax 0.10.2 with libtpu 0.0.42.1 can)"


def forecast(topology: Topology, needs: Needs) -> dict:
    """All of it as JSON; "time" is there where the chip is known and the program could be read."""
    found = {
        "topology": topology.name,
        "devices": len(topology.devices),
        "exact": topology.exact,
        "mesh": dict(zip(AXES, needs.mesh, strict=True)),
        **needs.about,
        "parameters": needs.parameters,
        "bytes": needs.parts | {needs.kept[0]: needs.kept[1], "other temporaries": needs.temporaries - needs.kept[1]},
        "bytes_together": needs.total,
        "bytes_there": topology.chip.bytes if topology.chip else None,
        "fits": fits(needs, topology),
        "operations": {"hardware": needs.operations, **_model_operations(needs)},
        "collectives": needs.traffic and {kind: traffic._asdict() for kind, traffic in needs.traffic.items()},
        "copied": needs.copied,
        "compile_seconds": round(needs.seconds, 1),
        "optimized": needs.optimized,
    }
    timed = topology.chip is not None and needs.traffic is not None
    return found | ({"time": _time(topology, needs, found["operations"])} if timed else {})


def _model_operations(needs: Needs) -> dict[str, int]:
    """Of a step; where there is no formula, what the hardware does is what the model needs."""
    rows, (causal, full) = needs.about["rows"], needs.formula or (0, 0)
    return {"model_causal": rows * causal, "model_full": rows * full} if needs.formula else {}


def _time(topology: Topology, needs: Needs, operations: dict[str, int]) -> dict:
    """A roofline: products at the peak, memory and links always busy. "step": at best, all three going on at the same time, and
    without overlap, one after the other."""
    chip, devices = topology.chip, len(topology.devices)
    seconds = {
        "products": needs.operations / devices / (chip.peak * 1e12),
        "memory": needs.moved / (chip.bandwidth * 1e9),
        "links": sum(traffic.received for traffic in needs.traffic.values()) / (topology.link * 1e9),
    }
    best, apart = max(seconds.values()), sum(seconds.values())
    peak = devices * chip.peak * 1e12
    mfu = {name: [operations[f"model_{name}"] / peak / s for s in (best, apart)] for name in ("causal", "full")
           if f"model_{name}" in operations}  # fmt: skip
    rows, (unit, each) = needs.about["rows"] * DAY / best, needs.unit
    return seconds | {"step": [best, apart], "mfu": mfu, f"{unit}_a_day": rows * each, "pictures_a_day": rows}


def describe(found: dict) -> str:
    """The same for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    lines = [
        f"{found['topology']}: {found['devices']} devices, mesh {mesh}",
        _describe_rows(found),
        *([] if found["exact"] else ["an ESTIMATE: compiled by XLA for CPUs, which lays out memory in other ways"]),
        f"{found['parameters'] / 1e6:.1f}M parameters; each device holds",
        *(f"  {name:<18}{size / GIB:>10.3f} GiB" for name, size in found["bytes"].items() if size),
        f"  {'together':<18}{found['bytes_together'] / GIB:>10.3f} GiB"
        + (f" of {found['bytes_there'] / GIB:g}" if found["bytes_there"] else ""),
        "a step" if "accumulate" in found else "all forwards together",
        *(f"  {name.replace('_', ', '):<18}{count / 1e12:>10.4g} TFLOP" for name, count in found["operations"].items()),
    ]
    if found["collectives"] is None:
        lines.append(f"  collectives: {NO_TEXT if found['fits'] else 'not known, for there is no program'}")
    for kind, traffic in (found["collectives"] or {}).items():
        lines.append(f"  {kind:<18}{traffic['received'] / GIB:>10.3f} GiB received by a device, in {traffic['count']}")
    lines += [f"  copied whole to every device (involuntary full rematerialization): {name}" for name in found["copied"]]
    lines += _describe_time(found["time"]) if "time" in found else []
    quick = "" if found["optimized"] else ", with little optimization (--optimize: as a run is compiled)"
    return "\n".join([*lines, f"compiled in {found['compile_seconds']} s{quick}"])


def _describe_rows(found: dict) -> str:
    if "forwards" in found:
        guided = " with guidance" if found["guided"] else ""
        most = f" (mmgen sample takes at most {found['rows_at_once']})" if found["rows_at_once"] else ""
        return f"{found['rows']} pictures are drawn at once{most}, in {found['forwards']} forwards{guided}"
    return f"batch {found['rows']}" + (f", in {found['accumulate']} parts" if found["accumulate"] > 1 else "")


def _describe_time(time: dict) -> list[str]:
    best, apart = time["step"]
    parts = ", ".join(f"{name} {time[name]:.3g} s" for name in ("products", "memory", "links"))
    shares = [" or ".join(f"{share[i]:.0%} ({name})" for name, share in time["mfu"].items()) for i in (0, 1)]
    tokens = f"{_many(time['tokens_a_day'])} tokens, " if "tokens_a_day" in time else ""
    return [
        f"  roofline: {parts}; {best:.3g} s at best, {apart:.3g} s without overlap",
        *([f"  MFU at most {shares[0]}; {shares[1]} without overlap"] if time["mfu"] else []),
        f"  at most {tokens}{_many(time['pictures_a_day'])} pictures a day",
    ]


def _many(number: float) -> str:
    """1.73e9 -> "1.73G"."""
    power = min(4, max(0, int(math.log10(max(number, 1)) // 3)))
    return f"{number / 1000**power:.3g}{('', 'k', 'M', 'G', 'T')[power]}"
