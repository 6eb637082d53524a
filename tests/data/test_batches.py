import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import fit, png_bytes
from mmgen_tokenizers.shards import ShardWriter

from mmgen.config import TFDS, Data, ImageFolder, Shapes, TokenShards
from mmgen.data import Batches, batches, open_source, parse_source
from mmgen.data.batches import AHEAD


class Numbered:
    """Example i is a picture and a caption that say i."""

    labels = None

    def __init__(self, count: int):
        self.count, self.threads, self.visits = count, set(), []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.threads.add(threading.current_thread().name)
        self.visits.append(index)
        y, x = np.mgrid[:12, :16]
        return {
            "image": np.stack([np.full_like(x, index), x * 15, y * 20], -1).astype(np.uint8),
            "label": index,
            "text": f"no. {index}",
        }


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


def take(stream, count: int) -> list[dict]:
    return list(itertools.islice(stream, count))


DATA = Data(size=8, crop="random", flip=True)


def test_shapes_and_types():
    batch = next(batches(DATA, 4, source=Numbered(10)))
    assert batch["image"].shape == (4, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    assert batch["text"] == [f"no. {i}" for i in batch["label"]]
    assert np.array_equal(batch["image"][:, 0, 0, 0], batch["label"])  # picture, label and text belong together


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_stream_from_k_is_the_stream_that_never_stopped(shuffle):
    whole = take(batches(DATA, 4, seed=7, shuffle=shuffle, source=Numbered(10)), 30)
    for k in (1, 2, 5, 13, 29):
        again = take(batches(DATA, 4, seed=7, start=k, shuffle=shuffle, source=Numbered(10)), 30 - k)
        assert all(equal(a, b) for a, b in zip(again, whole[k:], strict=True))
    direct = Batches(Numbered(10), DATA, 4, seed=7, shuffle=shuffle)
    assert equal(direct[17], whole[17]) and equal(direct[0], whole[0])


def test_every_epoch_visits_all_in_its_own_order():
    labels = np.concatenate([b["label"] for b in take(batches(DATA, 4, seed=1, source=Numbered(10)), 10)]).reshape(4, 10)
    assert (np.sort(labels) == np.arange(10)).all() and len({tuple(row) for row in labels.tolist()}) == 4
    other = np.concatenate([b["label"] for b in take(batches(DATA, 4, seed=2, source=Numbered(10)), 10)]).reshape(4, 10)
    assert (labels != other).any()
    plain = take(batches(DATA, 4, shuffle=False, source=Numbered(10)), 3)
    assert np.concatenate([b["label"] for b in plain]).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_crops_differ_between_visits_and_not_without_options():
    stream = batches(DATA, 1, source=Numbered(1))
    assert len({next(stream)["image"].tobytes() for _ in range(30)}) > 15
    plain = batches(Data(size=8), 1, source=Numbered(1))
    images = [next(plain)["image"] for _ in range(5)]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert np.array_equal(images[0][0], fit(Numbered(1)[0]["image"], 8))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_another_number_of_hosts_changes_nothing(hosts):
    whole = Batches(Numbered(10), DATA, 8, seed=5)[3]
    parts = [Batches(Numbered(10), DATA, 8, seed=5, rows=range(i * 8 // hosts, (i + 1) * 8 // hosts))[3] for i in range(hosts)]
    assert np.array_equal(np.concatenate([part["image"] for part in parts]), whole["image"])
    assert sum((part["text"] for part in parts), []) == whole["text"]


def test_one_epoch():
    found = list(batches(DATA, 4, shuffle=False, repeat=False, source=Numbered(10)))
    assert [len(batch["text"]) for batch in found] == [4, 4]  # the smaller one at the end is left out ...
    assert [len(b["text"]) for b in batches(DATA, 4, repeat=False, source=Numbered(3))] == [3]  # ... unless it is the only one
    assert len(list(batches(DATA, 5, repeat=False, start=1, source=Numbered(10)))) == 1
    with pytest.raises(IndexError):
        Batches(Numbered(10), DATA, 4, repeat=False)[2]


def wait_until(condition, seconds: float = 10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_batches_are_made_ahead_by_threads():
    source = Numbered(100)
    stream = batches(DATA, 2, source=source)
    next(stream)
    wait_until(lambda: len(source.visits) == 2 * (1 + AHEAD))  # while nobody asks for them; and no more than those
    assert all(name.startswith("batches") for name in source.threads)
    time.sleep(0.05)
    assert len(source.visits) == 2 * (1 + AHEAD)
    stream.close()


def test_a_dropped_stream_stops_its_threads():
    stream = batches(DATA, 2, source=Numbered(10))
    next(stream)
    stream.close()
    wait_until(lambda: not any(thread.name.startswith("batches") for thread in threading.enumerate()))


def test_an_error_in_a_thread_reaches_the_reader():
    class Broken(Numbered):
        def __getitem__(self, index):
            raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        next(batches(DATA, 2, source=Broken(3)))


def test_what_some_examples_lack_the_batch_lacks():
    class Partial(Numbered):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example if index else {key: value for key, value in example.items() if key != "label"}

    batch = next(batches(DATA, 4, shuffle=False, source=Partial(4)))
    assert sorted(batch) == ["image", "text"]


def test_folder_and_shards_and_tfds_give_the_same(tmp_path):
    """The same pictures behind three sources give the same batches."""
    pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
    from tests.data.prepared import prepare

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(6)]
    prepare(tmp_path / "tfds" / "six" / "1.0.0", pictures, names=("x", "y"))
    lines = []
    for i, picture in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(png_bytes(picture))
        lines.append(f'{{"file_name": "{i}.png", "label": {i % 2}}}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    layout = TokenLayout(height=8, width=24, codebook_size=256)
    with ShardWriter(tmp_path / "shards", "", layout) as writer:  # a tokenizer whose tokens are the pixels
        for i, picture in enumerate(pictures):
            writer.add(picture.reshape(1, -1), i % 2)
    sources = ImageFolder(str(tmp_path)), TFDS("six", "train", str(tmp_path / "tfds")), TokenShards(str(tmp_path / "shards"))
    found = [take(batches(Data(source, size=8), 4, seed=9), 5) for source in sources]
    for folder, tfds, shards in zip(*found, strict=True):
        assert equal(folder, tfds) and np.array_equal(folder["label"], shards["label"])
        assert np.array_equal(shards["ids"].reshape(4, 8, 8, 3), folder["image"])


def test_embedded_scenes():
    data = Data(Shapes("test", 50), size=32)
    batch = next(batches(data, 8, seed=1))
    assert (
        batch["image"].shape == (8, 32, 32, 3)
        and len(batch["text"]) == 8
        and all(isinstance(t, str) and t for t in batch["text"])
    )
    assert len(open_source(data)) == 50


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("shapes", Shapes("train")),
        ("shapes:test", Shapes("test")),
        ("tfds:fashion_mnist", TFDS("fashion_mnist", "train", "D")),
        ("tfds:fashion_mnist:test", TFDS("fashion_mnist", "test", "D")),
        ("tfds:a/b:3.0.1:train[:10%]", TFDS("a/b:3.0.1", "train[:10%]", "D")),
        ("tfds:a:3.0.1", TFDS("a:3.0.1", "train", "D")),
    ],
)
def test_sources_on_the_command_line(spec, source):
    assert parse_source(spec, "D") == source


def test_folders_on_the_command_line(tmp_path):
    (tmp_path / "pictures").mkdir()
    assert parse_source(str(tmp_path / "pictures")) == ImageFolder(str(tmp_path / "pictures"))
    with pytest.raises(UserError, match="Did you mean 'pictures'"):
        parse_source(str(tmp_path / "picture"))
    with pytest.raises(UserError, match="Did you mean 'test'"):
        parse_source("shapes:tset")
    with pytest.raises(UserError, match="Did you mean 'shapes'"):
        parse_source("shape")


def test_no_tensorflow_is_imported(repository):
    code = "import sys, mmgen.data; sys.exit(any(name.startswith('tensorflow') for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(repository)!r}, {str(repository / 'tokenizers')!r}]; {code}"]
    )
    assert done.returncode == 0
