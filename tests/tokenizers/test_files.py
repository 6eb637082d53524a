import errno
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from mmgen_tokenizers import files
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import flatten, load_arrays, read_checkpoint, rename, save_arrays, unflatten, write_atomically
from mmgen_tokenizers.torch_files import LEGACY_MAGIC

PARAMS = {
    "encoder": {"conv": {"kernel": np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)}, "0": {"scale": np.ones(3)}},
    "t": np.int32(7),
}

# ---------------------------------------------------------------------------------- files of torch.save, made without torch


def op(value) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(kind: str, key: str, count: int, legacy: bool) -> bytes:
    view = op(None) if legacy else b""
    return b"(" + op("storage") + named("torch", kind) + op(key) + op("cpu") + op(count) + view + b"tQ"


def tensor(kind, key, count, shape, strides, offset=0, legacy=False) -> bytes:
    rest = op(offset) + op(shape) + op(strides) + op(False) + named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(kind, key, count, legacy) + rest + b"tR"


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(op(key) + value for key, value in items.items()) + b"u"


def write_zip(path, content: bytes, storages: dict[str, bytes], compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)


def write_legacy(path, content: bytes, storages: dict[str, tuple[int, bytes]]):
    with path.open("wb") as file:
        for value in (LEGACY_MAGIC, 1001, {"little_endian": True}):
            file.write(pickle.dumps(value, 2))
        file.write(b"\x80\x02" + content + b"." + pickle.dumps(list(storages), 2))
        for count, data in storages.values():
            file.write(struct.pack("<q", count) + data)


FLOATS = np.arange(12, dtype="<f4")


def write(path, legacy: bool, state: dict[str, bytes], **beside: bytes):
    content = mapping({"ema": mapping(state), **beside})
    if legacy:
        write_legacy(path, content, {"0": (12, FLOATS.tobytes())})
    else:
        write_zip(path, content, {"0": FLOATS.tobytes()})


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_strides_and_offsets_of_both_formats(tmp_path, legacy):
    state = {
        "module.whole": tensor("FloatStorage", "0", 12, (3, 4), (4, 1), legacy=legacy),
        "module.turned": tensor("FloatStorage", "0", 12, (4, 2), (1, 4), 4, legacy=legacy),
        "module.scalar": tensor("FloatStorage", "0", 12, (), (), 5, legacy=legacy),
        "module.none": tensor("FloatStorage", "0", 12, (0, 3), (3, 1), legacy=legacy),
        "step": op(3),
    }
    write(
        tmp_path / "x.pt", legacy, state, optimizer=named("some.package", "Adam") + b")\x81" + op({"lr": 1}) + b"b", epoch=op(3)
    )
    read = read_checkpoint(tmp_path / "x.pt")
    assert sorted(read) == ["none", "scalar", "turned", "whole"]
    assert np.array_equal(read["whole"], FLOATS.reshape(3, 4))
    assert np.array_equal(read["turned"], FLOATS.reshape(3, 4)[1:].T)
    assert read["scalar"].shape == () and read["scalar"] == 5 and read["none"].shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "dtype", "as_read"),
    [
        ("BFloat16Storage", ml_dtypes.bfloat16, np.float32),
        ("HalfStorage", "<f2", np.float16),
        ("DoubleStorage", "<f8", np.float64),
        ("LongStorage", "<i8", np.int64),
        ("IntStorage", "<i4", np.int32),
        ("ByteStorage", "u1", np.uint8),
        ("BoolStorage", "?", np.bool_),
    ],
)
def test_reads_number_types(tmp_path, kind, dtype, as_read):
    values = np.array([0, 1, 1, 0], dtype)
    write_zip(tmp_path / "x.pt", mapping({"w": tensor(kind, "0", 4, (4,), (1,))}), {"0": values.tobytes()})
    read = read_checkpoint(tmp_path / "x.pt")["w"]
    assert read.dtype == as_read and np.array_equal(read, values.astype(as_read))


@pytest.mark.parametrize("nest", ["ema", "model", "module", "state_dict", None])
def test_finds_the_weights(tmp_path, nest):
    state = mapping({"_orig_mod.module.w": tensor("FloatStorage", "0", 12, (12,), (1,))})
    write_zip(tmp_path / "x.ckpt", mapping({nest: state, "epoch": op(1)}) if nest else state, {"0": FLOATS.tobytes()})
    assert np.array_equal(read_checkpoint(tmp_path / "x.ckpt")["w"], FLOATS)


def test_takes_the_ema_of_several(tmp_path):
    first, second = (mapping({"w": tensor("FloatStorage", "0", 12, (2,), (1,), offset)}) for offset in (0, 6))
    write_zip(tmp_path / "x.pt", mapping({"model": first, "ema": second}), {"0": FLOATS.tobytes()})
    assert read_checkpoint(tmp_path / "x.pt")["w"].tolist() == [6, 7]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "weight", "beside", "key", "state"])
def test_a_malicious_pickle_runs_nothing(tmp_path, legacy, place):
    mark = tmp_path / "mark"
    evil = named("os", "system") + b"(" + op(f"touch {mark}") + b"tR"
    also = named("builtins", "exec") + b"(" + op(f"open({str(mark)!r}, 'w')") + b"tR"
    good = tensor("FloatStorage", "0", 12, (12,), (1,), legacy=legacy)
    path, rebuild = tmp_path / "x.pt", named("torch._utils", "_rebuild_tensor_v2")
    contents = {
        "top": evil,
        "weight": mapping({"model": mapping({"w": evil, "v": also})}),
        "beside": mapping({"model": mapping({"w": good}), "callbacks": evil, "x": also}),
        "key": b"}(" + evil + good + b"u",
        # BUILD with a state that sets attributes, on a stand-in and on one of our own functions
        "state": mapping({"a": rebuild + op({"function": 1}) + b"b", "w": good, "b": evil + op({"x": 1}) + b"b"}),
    }
    if legacy:
        write_legacy(path, contents[place], {"0": (12, FLOATS.tobytes())} if "Float" in str(contents[place]) else {})
    else:
        write_zip(path, contents[place], {"0": FLOATS.tobytes()})
    if place in ("beside", "state"):
        assert np.array_equal(read_checkpoint(path)["w"], FLOATS)
    else:
        with pytest.raises(UserError, match="x.pt"):
            read_checkpoint(path)
    assert not mark.exists()


def test_a_dict_that_holds_itself_does_not_hang(tmp_path):
    itself = b"}q\x01" + op("model") + b"h\x01s"  # x = {}; x["model"] = x
    write_zip(tmp_path / "x.pt", itself, {})
    with pytest.raises(UserError, match="x.pt holds no tensors"):
        read_checkpoint(tmp_path / "x.pt")


def test_reduce_of_a_real_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"state_dict": OrderedDict(w=Evil())}))
    with pytest.raises(UserError, match="not one of torch.save"):
        read_checkpoint(tmp_path / "x.pkl")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"state_dict": OrderedDict(w=Evil())}))
    with pytest.raises(UserError, match="no tensors"):
        read_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "count"),
    [
        ((13,), (1,), 0, 12),
        ((2,), (1,), 11, 12),
        ((2,), (-1,), 5, 12),
        ((2, 2), (12, 1), 0, 12),
        ((1 << 40,), (0,), 0, 12),
        ((3,), (1,), 0, 1 << 40),
    ],
)
def test_refuses_tensors_outside_of_their_storage(tmp_path, shape, strides, offset, count):
    write_zip(
        tmp_path / "x.pt", mapping({"w": tensor("FloatStorage", "0", count, shape, strides, offset)}), {"0": FLOATS.tobytes()}
    )
    with pytest.raises(UserError, match="cannot read tensors from"):
        read_checkpoint(tmp_path / "x.pt")


def test_refuses_compressed_and_truncated_and_foreign_files(tmp_path):
    content = mapping({"w": tensor("FloatStorage", "0", 12, (12,), (1,))})
    write_zip(tmp_path / "x.pt", content, {"0": FLOATS.tobytes()}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "x.pt")
    write_zip(tmp_path / "x.pt", content, {"0": FLOATS.tobytes()})
    for size in (0, 1, 7, 100, 300):
        (tmp_path / "y.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:size])
        with pytest.raises(UserError, match=r"y\.pt"):
            read_checkpoint(tmp_path / "y.pt")
    (tmp_path / "z.pt").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"z\.pt"):
        read_checkpoint(tmp_path / "z.pt")
    with pytest.raises(UserError, match=r"Did you mean 'z\.pt'"):
        read_checkpoint(tmp_path / "zz.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_what_torch_writes(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    state |= {
        "b": torch.randn(5, 3).bfloat16().t(),
        "f8": torch.randn(3).to(torch.float8_e4m3fn),
        "p": torch.nn.Parameter(torch.randn(2)),
    }
    torch.save(
        {"model": state, "optimizer": torch.optim.Adam(model.parameters())},
        tmp_path / "x.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    read = read_checkpoint(tmp_path / "x.pt")
    assert sorted(read) == sorted(key.removeprefix("module.") for key in state)
    for key, value in state.items():
        assert np.array_equal(read[key.removeprefix("module.")], value.detach().float().numpy()), key


# ------------------------------------------------------------------------------------------------------- safetensors


def assert_same(left, right):
    left, right = flatten(left), flatten(right)
    assert sorted(left) == sorted(right)
    for name, value in left.items():
        other = np.asarray(right[name])
        assert other.dtype == np.asarray(value).dtype and other.shape == np.shape(value) and np.array_equal(value, other)


def test_flat_names():
    assert sorted(flatten(PARAMS)) == ["encoder.0.scale", "encoder.conv.kernel", "t"]
    assert_same(unflatten(flatten(PARAMS)), PARAMS)
    for bad in ({"a.b": 1}, {0: 1}):
        with pytest.raises(ValueError, match="without dots"):
            flatten(bad)


def test_save_and_load(tmp_path):
    save_arrays(tmp_path / "new", PARAMS)
    assert os.listdir(tmp_path / "new") == ["model.safetensors"]
    assert_same(load_arrays(tmp_path / "new"), PARAMS)
    assert_same(unflatten(read_checkpoint(tmp_path / "new" / "model.safetensors")), PARAMS)
    turned = {"w": np.arange(6.0).reshape(2, 3).T}  # not contiguous
    save_arrays(tmp_path / "new", turned | {"none": np.zeros((0, 3), np.float32)})
    assert_same(load_arrays(tmp_path / "new"), turned | {"none": np.zeros((0, 3), np.float32)})


def test_parts(tmp_path, monkeypatch):
    save_arrays(tmp_path, {"old": np.ones(3)})
    monkeypatch.setattr(files, "PART_BYTES", 100)
    save_arrays(tmp_path, PARAMS)
    assert sorted(os.listdir(tmp_path)) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert_same(load_arrays(tmp_path), PARAMS)
    assert_same(unflatten(read_checkpoint(tmp_path)), PARAMS)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 96 + 24 + 4
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is missing"):
        load_arrays(tmp_path)


def test_parts_are_replaced_at_one_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 100)
    more = {name: np.full_like(array, 7) for name, array in flatten(PARAMS).items()}
    save_arrays(tmp_path, PARAMS)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", _killed_before_the_index)
        with pytest.raises(KeyboardInterrupt):
            save_arrays(tmp_path, unflatten(more))
    assert_same(load_arrays(tmp_path), PARAMS)
    for params in (unflatten(more), PARAMS, unflatten(more)):
        save_arrays(tmp_path, params)
        assert_same(load_arrays(tmp_path), params)
        assert len(os.listdir(tmp_path)) == 3
    monkeypatch.setattr(files, "PART_BYTES", 1000)
    save_arrays(tmp_path, PARAMS)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def _killed_before_the_index(path, data, write=files.write_atomically):
    if path.suffix == ".json":
        raise KeyboardInterrupt
    write(path, data)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    save_arrays(tmp_path, PARAMS)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError) as caught:
        save_arrays(tmp_path, {"a": np.zeros(9)})
    assert caught.value.errno == errno.ENOSPC and str(tmp_path) in str(caught.value.filename)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert_same(load_arrays(tmp_path), PARAMS)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match="no model.safetensors in"):
        load_arrays(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      and more")
    with pytest.raises(UserError, match="damaged"):
        load_arrays(tmp_path)
    (tmp_path / "empty.safetensors").write_bytes(files.save({}))
    with pytest.raises(UserError, match="holds no tensors"):
        read_checkpoint(tmp_path / "empty.safetensors")


def test_bfloat16_safetensors_come_as_float32(tmp_path):
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    write_atomically(tmp_path / "x.safetensors", files.save({"module.w": values}))
    read = read_checkpoint(tmp_path / "x.safetensors")["w"]
    assert read.dtype == np.float32 and read.tolist() == [1.5, -2]


# ------------------------------------------------------------------------------------------------------- renaming

ROWS = [
    ("enc.{i}.conv.weight", "encoder.level{i}.kernel", "conv"),
    ("enc.{i}.conv.bias", "encoder.level{i}.bias", ""),
    ("head.weight", "head.kernel", "linear"),
    ("loss.{a}.{b}", "", ""),
]
EXPECTED = {"encoder.level0.kernel": (3, 3, 2, 4), "encoder.level0.bias": (4,), "head.kernel": (4, 5)}


def published():
    rng = np.random.default_rng(0)
    shapes = {"enc.0.conv.weight": (4, 2, 3, 3), "enc.0.conv.bias": (4,), "head.weight": (5, 4)}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def test_rename_there_and_back():
    theirs = published()
    ours = rename(theirs | {"loss.vgg.weight": np.zeros(3)}, ROWS, EXPECTED)
    assert {name: value.shape for name, value in ours.items()} == EXPECTED
    assert ours["encoder.level0.kernel"][1, 2, 0, 3] == theirs["enc.0.conv.weight"][3, 0, 1, 2]
    assert ours["head.kernel"][1, 2] == theirs["head.weight"][2, 1]
    back = rename(ours, ROWS, {name: value.shape for name, value in theirs.items()}, back=True)
    assert_same(unflatten(back), unflatten(theirs))


def test_rename_lists_what_does_not_fit():
    theirs = published()
    del theirs["enc.0.conv.bias"]
    theirs |= {"enc.7.conv.bias": np.zeros(4), "what.is.this": np.zeros(1), "head.weight": np.zeros((6, 4))}
    with pytest.raises(UserError) as caught:
        rename(theirs, ROWS, EXPECTED)
    message = str(caught.value)
    assert "missing: enc.0.conv.bias;" in message and "not known: enc.7.conv.bias, what.is.this;" in message
    assert "of another shape: head.weight [6, 4] (for head.kernel [4, 5])" in message and "\n" not in message


def test_nearest():
    assert nearest("trian", ["train", "test"]) == " Did you mean 'train'?"
    assert nearest("Train", ["TRAIN"]) == " Did you mean 'TRAIN'?"
    assert nearest("xyz", ["train", "test"]) == nearest("x", []) == nearest("", ["train"]) == ""
    assert nearest("cta", ["cat"]) and nearest("maximum", ["maximal"])
    assert not nearest("--verbos", ["--version"]) and not nearest("quickstart", ["quick", "restart"])


def test_no_temporary_file_stays_behind(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", b"1")
    write_atomically(tmp_path / "a" / "b.txt", b"2")
    assert os.listdir(tmp_path / "a") == ["b.txt"] and (tmp_path / "a" / "b.txt").read_text() == "2"


def test_what_a_killed_process_left_is_removed(tmp_path):
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    left, folder = tmp_path / f".x.json.{dead}.tmp", tmp_path / f".tok.{dead}.tmp"
    left.write_text("half")
    folder.mkdir()
    alive = tmp_path / ".x.json.1.tmp"  # process 1 lives as long as the machine
    alive.write_text("at work")
    write_atomically(tmp_path / "x.json", b"{}")
    assert not left.exists() and alive.exists() and folder.exists()
    assert files.temporary_beside(tmp_path / "tok").name.startswith(".tok.") and not folder.exists()
