"""Folders of pictures to token shards and back. Pixels are the tokens here, so every picture must come back as it was."""

import json

import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers import streaming
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import cover, read_picture, write_png
from mmgen_tokenizers.shards import MANIFEST, UNFINISHED, ShardReader, is_shards
from mmgen_tokenizers.streaming import AHEAD, decode_shards, encode_folder, in_batches, shape_near

SHAPES = [(8, 8), (8, 12), (12, 8), (8, 8), (8, 16), (8, 8), (12, 8), (8, 8), (8, 8), (8, 8)]


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer(mt.Pixels(image_size=8), {})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten pictures with captions, in four shapes; the fourth one damaged."""
    folder, rng = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for i, shape in enumerate(SHAPES):
        write_png(folder / f"{i}.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}) for i in range(10)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def records(folder):
    reader = ShardReader(folder)
    return [reader[i] | {"ids": reader[i]["ids"].tolist()} for i in range(len(reader))]


def test_shapes_are_kept_in_order_with_captions_and_come_back(tok, pictures, tmp_path, capsys):
    assert encode_folder(tok, pictures, tmp_path / "codes", batch=3) == (9, 1)
    assert "3.png" in capsys.readouterr().err
    reader = ShardReader(tmp_path / "codes")
    assert reader.mixed and (reader.tokenizer, reader.layout) == (tok.fingerprint, tok.layout)
    good = [i for i in range(10) if i != 3]
    for record, i in zip(records(tmp_path / "codes"), good, strict=True):
        height, width = SHAPES[i]
        assert record.pop("ids") == [read_picture(pictures / f"{i}.png").reshape(-1, 3).tolist()]
        shape = {"height": height, "width": width, "grid": [height, width]}
        assert record == {"caption": f"picture {i}", "name": f"{i}.png", **shape}
    assert decode_shards(tok, tmp_path / "codes", tmp_path / "out", batch=2) == 9
    names = [f"{place:05d}_{i}.png" for place, i in enumerate(good)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    for name, i in zip(names, good, strict=True):
        np.testing.assert_array_equal(read_picture(tmp_path / "out" / name), read_picture(pictures / f"{i}.png"))


def test_squares_have_one_layout(tok, pictures, tmp_path):
    encode_folder(tok, pictures, tmp_path / "codes", size=6, square=True)
    reader = ShardReader(tmp_path / "codes")
    assert not reader.mixed and reader.layout == tok.layout_for(6, 6) and reader[0]["ids"].shape == (1, 36, 3)


def test_pictures_of_one_other_shape_have_its_layout(tok, tmp_path):
    for name in "ab":
        write_png(tmp_path / "wide" / f"{name}.png", np.zeros((8, 12, 3), np.uint8))
    encode_folder(tok, tmp_path / "wide", tmp_path / "codes")
    reader = ShardReader(tmp_path / "codes")
    assert not reader.mixed and reader.layout == tok.layout_for(8, 12)
    assert decode_shards(tok, tmp_path / "codes", tmp_path / "out") == 2


@pytest.mark.parametrize("every", [0.0, 1e9])  # a checkpoint behind each picture, or none
def test_a_stopped_run_goes_on_and_gives_what_an_unbroken_one_gives(tok, pictures, tmp_path, monkeypatch, every, capsys):
    encode_folder(tok, pictures, tmp_path / "whole", batch=1)
    calls, encode = [], mt.Tokenizer.encode

    def stopping(self, images):
        calls.append(len(images))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(mt.Tokenizer, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode_folder(tok, pictures, tmp_path / "codes", batch=1, every=every)
    assert is_shards(tmp_path / "codes") and not (tmp_path / "codes" / MANIFEST).exists()
    (tmp_path / "codes" / "shard-00077.array_record").write_bytes(b"what a kill left")
    first = len(calls)
    assert encode_folder(tok, pictures, tmp_path / "codes", batch=1, every=every) == (9, 1)
    assert len(calls) - first == (9 - 5 if every == 0 else 9)  # five were done
    assert ("going on at picture 6 of 10" in capsys.readouterr().err) == (every == 0)
    assert records(tmp_path / "codes") == records(tmp_path / "whole")
    assert ShardReader(tmp_path / "codes").mixed
    left = {p.name for p in (tmp_path / "codes").iterdir()}
    assert UNFINISHED not in left and "shard-00077.array_record" not in left


def test_a_run_does_not_go_on_with_something_else(tok, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming.ShardWriter, "close", lambda self: None)  # as if it were killed at the end
    encode_folder(tok, pictures, tmp_path / "codes", every=0)
    other = mt.Tokenizer(mt.Pixels(((0, 0, 0), (9, 9, 9)), image_size=8), {})
    for tokenizer, options in ((other, {}), (tok, {"size": 4}), (tok, {"square": True})):
        with pytest.raises(UserError, match="delete it or choose another"):
            encode_folder(tokenizer, pictures, tmp_path / "codes", **options)
    write_png(tmp_path / "more" / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="other pictures"):
        encode_folder(tok, tmp_path / "more", tmp_path / "codes")


def test_few_items_wait_whatever_their_keys():
    taken, runs, seen = 0, [], []

    def items():
        nonlocal taken
        for i in range(500):
            taken += 1
            yield i

    def run(chosen):
        runs.append(chosen)
        return [10 * i for i in chosen]

    for item, result in in_batches(items(), lambda i: "rare" if i % 97 == 0 else i % 2, run, 8):
        seen.append(item)
        assert result == 10 * item and taken - len(seen) < AHEAD * 8
    assert seen == list(range(500))
    assert max(map(len, runs)) == 8 and np.mean([len(chosen) for chosen in runs]) > 6
    assert all(len({i % 97 == 0 for i in chosen}) == 1 for chosen in runs)


@pytest.mark.parametrize(
    "given, size, factor, shape",
    [
        ((480, 640), 256, 16, (256, 320)),
        ((640, 480), 256, 16, (320, 256)),
        ((1080, 1920), 256, 16, (256, 448)),
        ((500, 510), 256, 16, (256, 256)),
        ((10, 1000), 256, 16, (256, 1024)),
        ((48, 64), 48, 16, (48, 64)),
        ((90, 70), 8, 8, (8, 8)),
    ],
)
def test_shapes_are_few_and_near_the_picture(given, size, factor, shape):
    assert shape_near(*given, size, factor) == shape


def test_cover_takes_the_middle_and_stretches_nothing():
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255
    np.testing.assert_array_equal(cover(picture, 20, 20), 255)
    np.testing.assert_array_equal(cover(picture, 20, 60), picture)
    assert cover(picture, 10, 20)[5].mean() == pytest.approx(255 / 2, abs=2)  # 40 columns: 20 white ones
    assert cover(picture.transpose(1, 0, 2), 8, 8).min() > 235  # the filter reaches over the edge
