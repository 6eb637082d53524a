"""Tensors out of the files that `torch.save` writes, without torch and without running what the file says.

A pickle is a program. Here every name that it asks for is an inert stand-in, except an ordered dict, the storages and the
few functions that rebuild a tensor, which are ours: a hostile file can build useless objects and nothing else.
Both of torch's formats are read: a zip (since torch 1.6) and, before it, a stream of pickles followed by the storages.
"""

import io
import math
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from .errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
EXPANDED_LIMIT = 1 << 24  # elements; a tensor with stride 0 may claim any size from one stored number
DTYPES = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2, "bool": np.bool_,
    "int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8,
    "uint64": np.uint64, "uint32": np.uint32, "uint16": np.uint16, "uint8": np.uint8,
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8",
}  # fmt: skip


class Inert:
    """Stands in for every foreign class and function: accepts whatever a pickle does to it, keeps nothing, does nothing."""

    __slots__ = ()

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def _ignore(self, *_, **__):
        return None

    # All that pickle's opcodes look up on an object. __setstate__ also keeps BUILD from setting attributes.
    __setstate__ = append = extend = add = __setitem__ = _ignore

    def __call__(self, *_, **__):
        return Inert()


class _Dtype(Inert):
    """What the names torch.FloatStorage and torch.float8_e5m2 stand for in a file."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Function(Inert):
    """One of our own functions, dressed so that a pickle can call it and not alter it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    count: int  # elements

    def __setstate__(self, _):
        raise pickle.UnpicklingError("a storage has no state")


@dataclass(frozen=True)
class _Tensor:
    """A tensor that has not been read yet. In the legacy format its numbers come after the pickle."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: np.dtype

    def __setstate__(self, _):
        pass  # attributes that a user hung on the tensor

    def view(self, stored: np.ndarray) -> np.ndarray:
        """The tensor over its storage's elements, after checking that it lies inside of them."""
        stored = stored.view(self.dtype)
        size = math.prod(self.shape)
        if size == 0:
            return np.zeros(self.shape, self.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min(self.shape + self.strides + (self.offset,)) < 0 or last >= stored.size:
            raise UserError(f"a tensor of shape {self.shape} reaches outside of its {stored.size} stored elements")
        if size > max(stored.size, EXPANDED_LIMIT):
            raise UserError(f"a tensor of shape {self.shape} claims more than its {stored.size} stored elements")
        strides = [s * stored.itemsize for s in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(stored[self.offset :], self.shape, strides), order="C")


def _rebuild_tensor(storage, offset, shape, strides, *_, dtype=None, **__) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    shape, strides = (tuple(int(n) for n in value) for value in (shape, strides))
    return _Tensor(storage, int(offset), shape, strides, dtype or storage.dtype)


def _rebuild_tensor_v3(storage, offset, shape, strides, requires_grad, hooks, dtype, *_) -> _Tensor:
    return _rebuild_tensor(storage, offset, shape, strides, dtype=np.dtype(DTYPES[dtype.name]))


def _rebuild_parameter(data, *_):
    return data


def _rebuild_from_type(function, kind, args, state):
    return function(*args) if isinstance(function, Inert) else Inert()


def _size(values=()):
    return tuple(values)


FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _size,
}


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors, numbers, strings and containers of them; everything else becomes `Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in FUNCTIONS:
            return _Function(FUNCTIONS[module, name])
        if module in ("torch", "torch.storage") and name in STORAGES:
            return _Dtype(STORAGES[name])
        if module == "torch" and name in DTYPES:
            return _Dtype(name)
        # A class of its own for each name: pickle insists on a type where it makes an instance.
        return type("Inert", (Inert,), {"__slots__": ()})

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], _Dtype)):
            raise pickle.UnpicklingError("a reference that is not a storage of numbers")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("a view of a storage (torch before 0.4)")
        return _Storage(str(pid[2]), np.dtype(DTYPES[pid[1].name]), int(pid[4]))


def _materialize(value: Any, read: Callable[[_Storage], np.ndarray]) -> Any:
    """Containers with every tensor read; bfloat16 and float8, which NumPy barely knows, as float32."""
    if isinstance(value, dict):
        return {key: _materialize(item, read) for key, item in value.items()}
    if not isinstance(value, _Tensor):
        return value
    array = value.view(read(value.storage))
    return array.astype(np.float32) if array.dtype.name.startswith(("bfloat", "float8")) else array


def _array(data: bytes, storage: _Storage, order: str = sys.byteorder) -> np.ndarray:
    if len(data) != storage.count * storage.dtype.itemsize:
        raise UserError(f"storage {storage.key} holds {len(data)} bytes, not {storage.count} x {storage.dtype.itemsize}")
    array = np.frombuffer(data, storage.dtype)
    return array if order == sys.byteorder else array.byteswap()


def _read_zip(path: Path, select: Callable[[Any], Any]) -> Any:
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: name for name in archive.namelist()}
        # torch stores its records as they are; a compressed one could inflate without end.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise UserError("its records are compressed, which torch.save never does")
        if "data.pkl" not in records:
            raise UserError("it is a zip file without data.pkl, so torch.save did not write it")
        order = archive.read(records["byteorder"]).decode() if "byteorder" in records else "little"
        chosen = select(TensorUnpickler(io.BytesIO(archive.read(records["data.pkl"]))).load())
        stored: dict[str, np.ndarray] = {}  # several tensors may share one storage

        def read(storage: _Storage) -> np.ndarray:
            if storage.key not in stored:
                stored[storage.key] = _array(archive.read(records[f"data/{storage.key}"]), storage, order)
            return stored[storage.key]

        return _materialize(chosen, read)


def _legacy_storages(file: BinaryIO, keys: list, storages: dict[str, _Storage]) -> dict[str, np.ndarray]:
    """After the pickles: each storage as an int64 number of elements and the elements, little-endian."""
    stored = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        if key not in storages or count != storages[key].count:
            raise UserError(f"storage {key} does not match the tensors that use it")
        stored[key] = _array(file.read(count * storages[key].dtype.itemsize), storages[key], "little")
    return stored


def _read_legacy(path: Path, select: Callable[[Any], Any]) -> Any:
    storages: dict[str, _Storage] = {}

    class Recorder(TensorUnpickler):
        def persistent_load(self, pid: Any) -> _Storage:
            storage = super().persistent_load(pid)
            return storages.setdefault(storage.key, storage)

    with path.open("rb") as file:
        if Recorder(file).load() != LEGACY_MAGIC:
            raise UserError("it is a pickle, but not one of torch.save")
        Recorder(file).load(), Recorder(file).load()  # protocol version, sizes of C types
        content = Recorder(file).load()
        stored = _legacy_storages(file, Recorder(file).load(), storages)
    return _materialize(select(content), lambda storage: stored[storage.key])


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_torch(path: str | Path, select: Callable[[Any], Any]) -> Any:
    """Reads a file of `torch.save`, zip or legacy, and returns `select(content)` with its tensors as NumPy arrays.

    Only the tensors in what `select` returns (nested dicts) are read from a zip: an optimizer's state costs nothing.
    Raises `UserError` for a file that is damaged or that is no such file.
    """
    path = Path(path)
    try:
        return _read_zip(path, select) if zipfile.is_zipfile(path) else _read_legacy(path, select)
    except UserError as error:
        raise UserError(f"cannot read tensors from {path}: {error}") from None
    except MemoryError:
        raise UserError(f"cannot read tensors from {path}: it asks for more memory than there is") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"cannot read tensors from {path}: damaged, or not a file of torch.save ({_line(error)})") from None
