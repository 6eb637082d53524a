import subprocess
import sys

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from PIL import Image

from mmgen.data.tfds import TFDSSource
from tests.data.prepared import prepare

pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed (pip install 'mmgen[tfds]')")


def noise(count: int, channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (6 + i, 5, channels), np.uint8) for i in range(count)]


def test_pictures_labels_and_captions(tmp_path, monkeypatch):
    pictures = noise(5, 3)
    prepare(tmp_path / "animals" / "1.0.0", pictures, captions=["a", "b", "ç", "d", "e"])
    source = TFDSSource("animals", "train", tmp_path)
    assert len(source) == 5 and source.labels == ("cat", "dog")
    for i in range(5):
        assert np.array_equal(source[i]["image"], pictures[i]) and source[i]["label"] == i % 2
    assert source[2]["text"] == "ç"
    monkeypatch.setattr(Image, "open", None)  # a caption is told without decoding its picture
    assert source.caption(2) == "ç"


def test_grey_becomes_rgb_and_transparency_white(tmp_path):
    pictures = noise(2, 1)
    prepare(tmp_path / "grey" / "1.0.0", pictures)
    assert np.array_equal(TFDSSource("grey", "train", tmp_path)[1]["image"], np.repeat(pictures[1], 3, -1))
    assert TFDSSource("grey", "train", tmp_path).caption(1) is None
    clear = np.zeros((4, 4, 4), np.uint8)
    prepare(tmp_path / "clear" / "1.0.0", [clear])
    assert (TFDSSource("clear", "train", tmp_path)[0]["image"] == 255).all()


def test_the_newest_version_configurations_and_slices(tmp_path, monkeypatch):
    for version, count in (("1.9.0", 2), ("1.10.0", 4), ("1.2.0", 3)):
        prepare(tmp_path / "animals" / version, noise(count, 3))
    (tmp_path / "sized").mkdir()
    prepare(tmp_path / "sized" / "small" / "2.0.0", noise(1, 3))
    assert len(TFDSSource("animals", "train", tmp_path)) == 4
    assert len(TFDSSource("animals:1.2.0", "train", tmp_path)) == 3
    assert len(TFDSSource("animals", "train[:50%]", tmp_path)) == 2
    assert len(TFDSSource("sized/small", "train", tmp_path)) == 1
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(TFDSSource("animals")) == 4
    with pytest.raises(UserError, match="sized/small"):
        TFDSSource("sized", "train", tmp_path)
    with pytest.raises(UserError, match=r"1\.2\.0, 1\.9\.0, 1\.10\.0, not in version 3\.0\.0"):
        TFDSSource("animals:3.0.0", "train", tmp_path)


def test_wrong_names_are_answered_with_the_nearest(tmp_path):
    prepare(tmp_path / "animals" / "1.0.0", noise(1, 3))
    with pytest.raises(UserError, match="Did you mean 'animals'"):
        TFDSSource("anmals", "train", tmp_path)
    with pytest.raises(UserError, match="no split 'trian', it has train. Did you mean 'train'"):
        TFDSSource("animals", "trian", tmp_path)
    with pytest.raises(UserError, match=f"no folder {tmp_path}/none"):
        TFDSSource("animals", "train", tmp_path / "none")


def test_other_formats_are_refused(tmp_path):
    prepare(tmp_path / "animals" / "1.0.0", noise(1, 3), file_format="tfrecord")
    with pytest.raises(UserError, match="prepared as tfrecord: prepare it with file_format='array_record'"):
        TFDSSource("animals", "train", tmp_path)


FASHION = """
import sys
import mmgen.data
from mmgen.config import Data, TFDS
from mmgen.data import batches, open_source
assert "tensorflow" not in sys.modules and "tensorflow_datasets" not in sys.modules
data = Data(TFDS("fashion_mnist", "test", sys.argv[1]), size=28)
source = open_source(data)
batch = next(batches(data, 16, source=source))
assert batch["image"].shape == (16, 28, 28, 3) and batch["label"].dtype == "int32"
assert len(source) == 10_000 and source.labels[9] == "Ankle boot" and len(source.labels) == 10
assert (batch["image"][..., 0] == batch["image"][..., 2]).all() and batch["image"].std() > 50
assert "tensorflow" not in sys.modules
"""


def test_fashion_mnist_without_tensorflow(shared, repository):
    code = f"import sys; sys.path[:0] = [{str(repository)!r}, {str(repository / 'tokenizers')!r}]" + FASHION
    done = subprocess.run([sys.executable, "-c", code, str(shared("tfds"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
