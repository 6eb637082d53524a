"""What a program costs, counted: operations and activations in what JAX traced, traffic in what XLA made of it."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}  # others: 4
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"


def operations(jaxpr: Jaxpr) -> int:
    """Multiplications and additions of all matrix products and convolutions, on all devices together; loops count as often as
    they run, of branches the largest. (XLA's own count takes the body of a loop once.)"""
    return sum(_operations(equation) for equation in jaxpr.eqns)


def _operations(equation: JaxprEqn) -> int:
    inner = [operations(body) for body in _bodies(equation)]
    match equation.primitive.name:
        case "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
            return 2 * shared * equation.outvars[0].aval.size
        case "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            return 2 * equation.outvars[0].aval.size * kernel.size // outputs
        case "scan":
            return equation.params["length"] * sum(inner)
        case "cond":
            return max(inner)
        case "shard_map":  # its body is what one device does, or those together that share what it says nothing of
            return math.prod(equation.params["mesh"].shape[axis] for axis in equation.params["newly_manual_axes"]) * sum(inner)
        case "pallas_call":  # and a kernel's, one tile
            return math.prod(equation.params["grid_mapping"].grid) * sum(inner)
    return sum(inner)


def activations(jaxpr: Jaxpr) -> int:
    """Bytes, on all devices together, that loops over layers keep for the way back: what forward loops stack."""
    return sum(_activations(equation) for equation in jaxpr.eqns)


def _activations(equation: JaxprEqn) -> int:
    inner = sum(activations(body) for body in _bodies(equation))
    if equation.primitive.name != "scan" or equation.params["reverse"]:
        return inner
    (body,) = _bodies(equation)  # what a step gives has one axis less than what the loop stacks of it; the carry has not
    stacked = [out.aval for out, one in zip(equation.outvars, body.outvars, strict=True) if out.aval.shape != one.aval.shape]
    return inner + sum(array.size * array.dtype.itemsize for array in stacked)


def _bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


class Traffic(NamedTuple):
    """Collectives of one kind in a step, and the bytes that one device gets from others in them."""

    count: int = 0
    received: float = 0

    def plus(self, count: int, received: float) -> "Traffic":
        return Traffic(self.count + count, self.received + received)


def collectives(text: str) -> dict[str, Traffic]:
    """By kind, in a compiled program's text, loops counted out. XLA may make rings of gathers and scatters, which send while it
    multiplies: those are collective-permutes."""
    bodies, entry = _computations(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    found: dict[str, Traffic] = {}
    written: dict[str, str] = {}  # libtpu writes a collective into every fusion that it runs beside: the first one counts

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if match := re.search(rf"= (.*?) ({KINDS})(-start)?\(", line):
                channel = re.search(r"channel_id=\d+", line)
                if channel is None or written.setdefault(channel[0], line) == line:
                    scatters = "all-reduce-scatter" in name  # libtpu's form of it: all is reduced, of which each keeps a piece
                    kind = "reduce-scatter" if scatters else match[2]
                    group = _group(line, int(partitions[1]) if partitions else 1)
                    size = _bytes(match[1], bool(match[3]) and kind != "all-reduce") / (group if scatters else 1)
                    found[kind] = found.get(kind, Traffic()).plus(times, times * size * _received(kind, group))
            trips = _trips(line, bodies)
            for called in re.findall(r"(?:body|calls|to_apply|_computations?)=\{?(%[^,)}\s]+(?:, ?%[^,)}\s]+)*)", line):
                for one in called.split(","):
                    visit(one.strip(), times * trips)

    visit(entry, 1)
    return dict(sorted(found.items()))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one that runs."""
    bodies, name, entry = {}, "", ""
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?(%\S+) .*\{$", line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often the loop on this line runs: as XLA says, or (libtpu does not) from 0 up to what its condition compares with."""
    if said := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(said[1])
    if not (loop := re.search(r" while\(.*condition=(%[^,\s]+), body=(%[^,\s]+)", line)):
        return 1
    condition, body = (_definitions(bodies.get(name, [])) for name in loop.groups())
    compared = re.search(r"compare\((%[^,\s]+), (%[^,)\s]+)\), direction=LT", condition.get("ROOT", ""))
    counter = compared and re.search(r"get-tuple-element\(.*index=(\d+)", condition.get(compared[1], ""))
    limit = _constant(condition, compared[2]) if counter else None
    if limit is None:
        return 1
    carried = re.search(r" tuple\((.*?)\)", re.sub(r"/\*.*?\*/", "", body.get("ROOT", "")))
    added = carried and re.search(r" add\(\S+, (%[^,)\s]+)\)", body.get(carried[1].split(", ")[int(counter[1])], ""))
    return limit // ((_constant(body, added[1]) if added else None) or 1)


def _definitions(lines: list[str]) -> dict[str, str]:
    """The line of each name, and that of the result as "ROOT"."""
    found = {match[2]: line for line in lines if (match := re.match(r"\s+(ROOT )?(%\S+) = ", line))}
    return found | {"ROOT": next((line for line in lines if line.lstrip().startswith("ROOT ")), "")}


def _constant(definitions: dict[str, str], name: str) -> int | None:
    match = re.search(r" constant\((\d+)\)", definitions.get(name, ""))
    return int(match[1]) if match else None


def _group(line: str, partitions: int) -> int:
    """How many devices take part together, in the ways in which XLA writes it."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    match = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(match[1].split(",")) if match else partitions


def _received(kind: str, group: int) -> float:
    """Bytes that a device gets from others, for each byte of its result."""
    rest = (group - 1) / group
    return {"all-gather": rest, "all-reduce": 2 * rest, "reduce-scatter": group - 1, "all-to-all": rest}.get(kind, 1)


def _bytes(result: str, holds_inputs: bool) -> int:
    """Of an HLO type, "f32[2,3]{1,0}" or a tuple of them; those of asynchronous ones hold inputs, results, and counters."""
    found = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result)
    arrays = [math.prod(int(n) for n in shape.split(",") if n) * BYTES.get(kind, 4) for kind, shape in found]
    if not holds_inputs:
        return sum(arrays)
    arrays = [size for size, (_, shape) in zip(arrays, found, strict=True) if shape]
    return sum(arrays[len(arrays) // 2 :])
