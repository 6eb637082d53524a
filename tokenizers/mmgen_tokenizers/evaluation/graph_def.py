"""The constants of a frozen TensorFlow graph (GraphDef, a protocol buffer), without TensorFlow: nothing else in it is read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError

FLOAT = 1  # the number of float32 among TensorFlow's types

Field = int | memoryview


def read_constants(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> float32 array of each constant. Raises UserError for a file that is no such graph."""
    try:
        nodes = [value for number, value in _fields(memoryview(Path(path).read_bytes())) if number == 1]
        pairs = [pair for node in nodes if (pair := _constant(node))]
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no frozen TensorFlow graph, or a damaged one ({error})") from None
    if not pairs:
        raise UserError(f"{path} holds no constants: it is no frozen TensorFlow graph")
    return dict(pairs)


def _constant(node: memoryview) -> tuple[str, np.ndarray] | None:
    """NodeDef: name 1, op 2, attr 5 (a map: key 1, value 2, whose tensor is 8)."""
    fields = list(_fields(node))
    text = {number: bytes(value) for number, value in fields if number in (1, 2)}
    if text.get(2) != b"Const":
        return None
    for attribute in (dict(_fields(value)) for number, value in fields if number == 5):
        if bytes(attribute[1]) == b"value":
            tensor = _tensor(dict(_fields(attribute[2]))[8])
            return None if tensor is None else (text[1].decode(), tensor)
    return None


def _tensor(data: memoryview) -> np.ndarray | None:
    """TensorProto: dtype 1, shape 2 (dim 2, whose size is 1), content 4, or its numbers 5. None of other types than float32."""
    fields = dict(_fields(data))
    if fields.get(1) != FLOAT:
        return None
    shape = [dict(_fields(dim)).get(1, 0) for number, dim in _fields(fields.get(2, memoryview(b""))) if number == 2]
    numbers = np.frombuffer(fields.get(4, fields.get(5, b"")), "<f4")
    return np.broadcast_to(numbers, shape) if numbers.size == 1 else numbers.reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Field]]:
    """(number, value) of a message's fields: integers, or the bytes of anything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or _varint(data, at)
            value, at = data[at : at + size], at + size
        if key & 7 not in (0, 1, 2, 5) or at > len(data):
            raise ValueError(f"a field that cannot be, at byte {at}")
        yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the value, and the place behind it."""
    value = shift = 0
    while data[at] & 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1
