import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import write_png
from mmgen_tokenizers.shards import ShardWriter
from mmgen_tokenizers.streaming import encode_folder

from mmgen.config import Data, TokenShards
from mmgen.data import batches, open_source, parse_source

LAYOUT = TokenLayout(height=2, width=2, codebook_size=4096)


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "shards", "f00d", LAYOUT, "random", labels=("a", "b")) as writer:
        for i in range(12):
            writer.add(100 * i + np.arange(12).reshape(3, 4), label=i % 2, caption=f"picture {i}")
    return tmp_path / "shards"


def test_examples(folder):
    source = open_source(Data(TokenShards(str(folder), cache=None)))
    assert len(source) == 12 and source.labels == ("a", "b")
    assert source[5]["ids"].tolist() == (500 + np.arange(12).reshape(3, 4)).tolist()
    assert source[5]["label"] == 1 and source[5]["text"] == "picture 5" and sorted(source[5]) == ["ids", "label", "text"]
    assert source.caption(5) == "picture 5"


@pytest.mark.parametrize("cache", [None, "ram", "disk"])
def test_each_visit_takes_one_random_crop(folder, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_CACHE", str(tmp_path / "cache"))
    stream = batches(Data(TokenShards(str(folder), cache)), 12, seed=3)
    taken = [next(stream) for _ in range(20)]  # an epoch is one batch
    crops = np.zeros((12, 3), int)
    for batch in taken:
        assert batch["ids"].shape == (12, 4) and batch["ids"].dtype == np.int32
        picture, first = np.divmod(batch["ids"][:, 0], 100)
        assert np.array_equal(batch["ids"] - batch["ids"][:, :1], np.tile(np.arange(4), (12, 1)))
        assert sorted(picture) == list(range(12)) and np.array_equal(batch["label"], picture % 2)
        assert batch["text"] == [f"picture {i}" for i in picture]
        crops[picture, first // 4] += 1
    assert crops.sum() == 240 and crops.min() >= 1 and crops.max() <= 15


def test_one_crop_is_taken_as_it_is(tmp_path):
    with ShardWriter(tmp_path, "", LAYOUT) as writer:
        writer.add(np.arange(4)[None])
    assert next(batches(Data(TokenShards(str(tmp_path))), 2))["ids"].tolist() == [[0, 1, 2, 3]] * 2


def test_pictures_options_are_refused_for_ids(folder):
    for options in ({"flip": True}, {"crop": "random"}):
        with pytest.raises(UserError, match="mmgen tokenize"):
            open_source(Data(TokenShards(str(folder)), **options))


def test_what_the_command_encodes_is_a_source_to_train_on(tmp_path):
    tok = mt.Tokenizer(mt.Pixels(image_size=4), {})
    for name, value in (("dark", 0), ("light", 255)):
        write_png(tmp_path / "pictures" / name / "a.png", np.full((6, 4, 3), value, np.uint8))
    encode_folder(tok, tmp_path / "pictures", tmp_path / "codes", square=True)
    source = open_source(Data(parse_source(str(tmp_path / "codes"))))
    reader = source.source.reader
    assert (reader.layout, reader.tokenizer, source.labels) == (tok.layout, tok.fingerprint, ("dark", "light"))
    assert [(source[i]["label"], source[i]["ids"].mean()) for i in range(2)] == [(0, 0), (1, 255)]
    batch = next(batches(Data(TokenShards(str(tmp_path / "codes"))), 2))
    assert batch["ids"].shape == (2, 16, 3) and sorted(batch["label"]) == [0, 1]


def test_pictures_of_several_shapes_are_refused(tmp_path):
    with ShardWriter(tmp_path, "", LAYOUT) as writer:
        for layout in (LAYOUT, TokenLayout(height=2, width=3, codebook_size=4096)):
            writer.add(np.zeros((1, layout.sites), int), layout=layout)
    with pytest.raises(UserError, match="encode them with --square"):
        open_source(Data(TokenShards(str(tmp_path))))


def test_a_folder_is_seen_as_shards(folder):
    assert parse_source(str(folder)) == TokenShards(str(folder))
