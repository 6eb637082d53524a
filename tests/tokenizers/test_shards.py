import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry
from mmgen_tokenizers import shards
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.shards import ShardReader, ShardWriter, import_llamagen_codes, is_shards, join, part_of, remove_parts

LAYOUT = TokenLayout(height=2, width=3, codebook_size=1000)


def some_ids(count: int = 20, crops: int = 10, layout: TokenLayout = LAYOUT) -> np.ndarray:
    groups = (layout.groups,) if layout.groups > 1 else ()
    return np.random.default_rng(0).integers(0, layout.codebook_size, (count, crops, layout.sites, *groups))


def write(folder, ids, layout=LAYOUT, **options):
    with ShardWriter(folder, "f00d", layout, "ten", labels=("cat", "dog"), **options) as writer:
        for i, row in enumerate(ids):
            writer.add(row, label=i % 2, caption=f"bild {i}\nзакат", height=30 + i, width=40)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_layout_with_scales_survives(tmp_path):
    layout = TokenLayout("scales", 2, 2, 1000, scales=((1, 1), (2, 2)))
    write(tmp_path / "s", some_ids(2, 1, layout), layout)
    assert ShardReader(tmp_path / "s").layout == layout and ShardReader(tmp_path / "s")[1]["ids"].shape == (1, 5)


@pytest.mark.parametrize("where", [None, "ram", "disk"])
def test_read_what_was_written(tmp_path, cache, where):
    ids = some_ids()
    write(tmp_path / "s", ids, records_per_file=7)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "manifest.json",
        *(f"shard-0000{i}.array_record" for i in range(3)),
    ]
    reader = ShardReader(tmp_path / "s", where)
    assert (len(reader), reader.layout, reader.tokenizer, reader.manifest["crops"], reader.labels) == (
        20,
        LAYOUT,
        "f00d",
        "ten",
        ("cat", "dog"),
    )
    for i in (19, 0, 6, 7, 13, 14):  # both sides of each border of files
        read = reader[i]
        assert read.pop("ids").tolist() == ids[i].tolist()
        assert read == {"label": i % 2, "caption": f"bild {i}\nзакат", "height": 30 + i, "width": 40} == reader.about(i)
    assert reader[3]["ids"].dtype == np.int32
    for bad in (-1, 20):
        with pytest.raises(IndexError):
            reader[bad]


@pytest.mark.parametrize(("size", "groups"), [(1 << 16, 1), ((1 << 16) + 1, 1), (1 << 20, 3)])
def test_large_codebooks_and_groups(tmp_path, size, groups):
    layout = TokenLayout(height=2, width=3, codebook_size=size, groups=groups)
    ids = some_ids(3, 1, layout)
    ids[0, 0, 0] = size - 1
    write(tmp_path, ids, layout)
    assert all(np.array_equal(ShardReader(tmp_path)[i]["ids"], ids[i]) for i in range(3))


def test_optional_fields_stay_away(tmp_path):
    with ShardWriter(tmp_path, "", LAYOUT) as writer:
        writer.add(some_ids()[0])
    reader = ShardReader(tmp_path)
    assert sorted(reader[0]) == ["ids"] and reader.labels is None and reader.manifest["crops"] == "center"


def test_the_copy_on_disk_is_read_when_the_original_is_slow(tmp_path, cache):
    write(tmp_path / "s", some_ids())
    ShardReader(tmp_path / "s", "disk")
    (copy,) = (cache / "shards").iterdir()
    (copy / "shard-00000.array_record").rename(copy / "moved")
    with pytest.raises(UserError, match=str(copy)):  # the copy is what a second reader opens
        ShardReader(tmp_path / "s", "disk")
    (copy / "moved").rename(copy / "shard-00000.array_record")
    assert len(ShardReader(tmp_path / "s", "disk")) == 20 and len(list((cache / "shards").iterdir())) == 1


def test_shards_written_anew_are_copied_anew(tmp_path, cache):
    ids = some_ids()
    for written in (ids, ids[::-1]):  # as with another --seed: the manifests are the same
        write(tmp_path / "s", written)
        assert np.array_equal(ShardReader(tmp_path / "s", "disk")[3]["ids"], written[3])
        shutil.rmtree(tmp_path / "s")


def test_shards_of_a_bucket_are_read_through_the_copy(tmp_path, cache, monkeypatch):
    """A file system stands in for the bucket; gcsfs is asked for by name where it is missing."""
    monkeypatch.delitem(_registry, "gs", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="gs://bucket/s: .*gcsfs"):
        ShardReader("gs://bucket/s")

    class Bucket(LocalFileSystem):
        @classmethod
        def _strip_protocol(cls, path):
            return str(path).replace("gs://bucket", str(tmp_path))

    for name in ("gs", "gcs"):
        monkeypatch.setitem(_registry, name, Bucket)
    write(tmp_path / "s", some_ids())
    assert np.array_equal(ShardReader("gs://bucket/s", "disk")[3]["ids"], some_ids()[3])
    with pytest.raises(UserError, match="the token shards of gs://bucket/t are not here"):
        (tmp_path / "t").mkdir()
        ShardReader("gs://bucket/t")


def test_ids_that_do_not_fit_are_refused(tmp_path):
    with ShardWriter(tmp_path, "", LAYOUT) as writer:
        for bad in (some_ids()[0][:, :5], some_ids()[0, 0], some_ids()[0][:0], some_ids()[0][..., None]):
            with pytest.raises(UserError, match=r"are not \[crops, 6\]"):
                writer.add(bad)
        for bad in (-1, 1000):
            with pytest.raises(UserError, match="outside of the codebook of 1000"):
                writer.add(np.full((1, 6), bad))
        writer.add(some_ids()[0])
    assert len(ShardReader(tmp_path)) == 1


def test_an_unfinished_run_is_seen_and_started_anew(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path, "", LAYOUT, records_per_file=1) as writer:
        writer.add(some_ids()[0])
        writer.add(some_ids()[1])
        raise KeyError
    assert is_shards(tmp_path)
    with pytest.raises(UserError, match="are not complete"):
        ShardReader(tmp_path)
    write(tmp_path, some_ids(1))
    assert len(ShardReader(tmp_path)) == 1 and not (tmp_path / "shard-00001.array_record").exists()
    with pytest.raises(UserError, match="already holds"):
        write(tmp_path, some_ids(1))


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN", 2)
    ids, before = some_ids(), len(os.listdir("/dev/fd"))
    write(tmp_path, ids, records_per_file=2)
    for cache, allowed in (("ram", 0), (None, 2)):
        reader = ShardReader(tmp_path, cache)
        assert all(np.array_equal(reader[i]["ids"], ids[i]) for i in (*range(20), 3, 16))
        assert len(os.listdir("/dev/fd")) <= before + allowed


@pytest.fixture
def parts(tmp_path):
    """Two parts of a set in tmp_path / "s", of 3 and 2 pictures."""
    found = [part_of(tmp_path / "s", i, 2) for i in (0, 1)]
    for part, ids in zip(found, np.split(some_ids(5), [3]), strict=True):
        write(part, ids, origin={"data": "some", "pictures": []})
    return found


def is_joined(folder) -> bool:
    names = sorted(path.name.split("-")[0] for path in folder.iterdir())
    ids = [record["ids"] for record in map(ShardReader(folder).__getitem__, range(5))]
    return names == ["manifest.json", "shard", "shard"] and np.array_equal(ids, some_ids(5))


def test_where_files_cannot_be_locked_several_join_the_same(tmp_path, parts, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def late(part):
        monkeypatch.setattr(shards, "_read_manifest", real)
        assert join(tmp_path / "s", parts)  # by another process, meanwhile
        return real(part)

    monkeypatch.setattr(shards.fcntl, "flock", unsupported)
    real = shards._read_manifest
    monkeypatch.setattr(shards, "_read_manifest", late)
    assert not join(tmp_path / "s", parts) and is_joined(tmp_path / "s")


@pytest.mark.parametrize("at", ["write_atomically", "remove_parts"])
def test_what_was_killed_is_joined_again(tmp_path, parts, monkeypatch, at):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(shards, at, killed)
        join(tmp_path / "s", parts)
    assert parts[0].is_dir()
    assert join(tmp_path / "s", parts) == (at == "write_atomically")
    remove_parts(tmp_path / "s")
    assert is_joined(tmp_path / "s")


def test_errors_name_the_folder(tmp_path):
    (tmp_path / "codes").mkdir()
    with pytest.raises(UserError, match="Did you mean 'codes'"):
        ShardReader(tmp_path / "code")
    with pytest.raises(UserError, match="are not here"):
        ShardReader(tmp_path / "codes")
    (tmp_path / "codes" / "manifest.json").write_text('{"files": []}')
    with pytest.raises(UserError, match="no manifest of token shards"):
        ShardReader(tmp_path / "codes")
    (tmp_path / "codes" / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        ShardReader(tmp_path / "codes")


def test_damaged_shards_are_refused(tmp_path):
    write(tmp_path, some_ids())
    shard = tmp_path / "shard-00000.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="shard-00000.array_record"):
        ShardReader(tmp_path)
    shard.write_bytes(data)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"][0]["count"] = 21
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 20 records, its manifest says 21"):
        ShardReader(tmp_path)


def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("INTERNAL: write() failed: No space left on device; writing x")

        def close(self):
            pass

    monkeypatch.setattr(shards, "ArrayRecordWriter", Full)
    with pytest.raises(UserError, match=f"no space left on the disk of {tmp_path}"):
        write(tmp_path, some_ids())


# -------------------------------------------------------------------------------------------------- LlamaGen's codes


def llamagen(folder, ids, labels=True, name="imagenet256"):
    """What LlamaGen's extract_codes_c2i.py leaves behind."""
    for kind in ("codes", "labels") if labels else ("codes",):
        (folder / f"{name}_{kind}").mkdir(parents=True)
    for i, row in enumerate(ids):
        np.save(folder / f"{name}_codes" / f"{i}.npy", row[None])
        if labels:
            np.save(folder / f"{name}_labels" / f"{i}.npy", np.array([i * 3]))


def test_import_of_ten_crops_in_the_order_of_their_numbers(tmp_path):
    ids = np.random.default_rng(0).integers(0, 16384, (12, 10, 16))
    llamagen(tmp_path / "ten", ids)
    assert import_llamagen_codes(tmp_path / "ten", tmp_path / "out", tokenizer="abc") == 12
    reader = ShardReader(tmp_path / "out")
    assert (reader.manifest["crops"], reader.tokenizer, reader.layout) == (
        "ten",
        "abc",
        TokenLayout(height=4, width=4, codebook_size=16384),
    )
    assert all(np.array_equal(reader[i]["ids"], ids[i]) and reader[i]["label"] == i * 3 for i in range(12))


def test_import_of_two_crop_ranges_and_of_mirrored_pairs(tmp_path):
    ids = np.random.default_rng(0).integers(0, 16384, (2, 3, 10, 4))
    for folder, part in zip(("a", "b"), ids, strict=True):
        llamagen(tmp_path / folder, part)
    import_llamagen_codes([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert np.array_equal(ShardReader(tmp_path / "both")[1]["ids"], np.concatenate(ids[:, 1]))
    llamagen(tmp_path / "flip", ids[0, :, :2], labels=False)
    import_llamagen_codes(tmp_path / "flip", tmp_path / "pairs")
    reader = ShardReader(tmp_path / "pairs")
    assert reader.manifest["crops"] == "mirror" and reader[2]["ids"].shape == (2, 4) and "label" not in reader[2]


def test_import_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"has no folders named \*_codes"):
        import_llamagen_codes(tmp_path, tmp_path / "out")
    llamagen(tmp_path / "a", np.zeros((1, 10, 5), int))
    with pytest.raises(UserError, match="no square grid"):
        import_llamagen_codes(tmp_path / "a", tmp_path / "out")
    llamagen(tmp_path / "b", np.zeros((2, 10, 4), int))
    np.save(tmp_path / "b" / "imagenet256_codes" / "1.npy", np.zeros((10, 4), int))
    with pytest.raises(UserError, match=r"1\.npy has shape \[10, 4\]"):
        import_llamagen_codes(tmp_path / "b", tmp_path / "out")
    with pytest.raises(UserError, match="are not complete"):
        ShardReader(tmp_path / "out")
    os.remove(tmp_path / "b" / "imagenet256_labels" / "0.npy")
    with pytest.raises(UserError, match=r"labels/0\.npy"):
        import_llamagen_codes(tmp_path / "b", tmp_path / "out2")
    evil = np.empty(1, object)
    np.save(tmp_path / "b" / "imagenet256_codes" / "0.npy", evil, allow_pickle=True)
    with pytest.raises(UserError, match=r"codes/0\.npy"):
        import_llamagen_codes(tmp_path / "b", tmp_path / "out3")
