"""`mmgen tokenize`: crops, labels and captions in token shards."""

import json

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import fit, ten_crop
from mmgen_tokenizers.shards import ShardReader
from PIL import Image

from mmgen.cli import main as cli
from mmgen.data import tokenize as module
from mmgen.data.tokenize import crop_policy


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of 12 x 10 pixels with captions, the fourth one damaged."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}) for i in range(5)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def picture(folder, i: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"{i}.png"))


def run(*arguments) -> int:
    return cli.main(["tokenize", *map(str, arguments)])


def test_center(tokenizer, tokenizer_folder, pictures, tmp_path, capsys):
    with pytest.warns(UserWarning, match=r"3\.png"):
        assert run(tokenizer_folder, "--data", pictures, "--out", tmp_path / "t") == 0
    assert "5 pictures (center), 4 tokens each, 1 damaged pictures replaced" in capsys.readouterr().out
    reader = ShardReader(tmp_path / "t")
    assert (len(reader), reader.manifest["crops"], reader.tokenizer) == (5, "center", tokenizer.fingerprint)
    expected = tokenizer.encode(np.stack([fit(picture(pictures, i), 8) for i in (0, 1, 2, 4, 4)]))
    np.testing.assert_array_equal(np.concatenate([reader[i]["ids"] for i in range(5)]), expected)
    assert reader[1] | {"ids": None} == {"ids": None, "caption": "picture 1", "height": 10, "width": 12}
    assert reader[3]["caption"] == "picture 4"  # the caption of the picture that stands in


def test_ten_crops_of_the_first_pictures(tokenizer, tokenizer_folder, pictures, tmp_path):
    assert run(tokenizer_folder, "--data", pictures, "--out", tmp_path / "t", "--crops", "ten", "--count", 2) == 0
    reader = ShardReader(tmp_path / "t")
    assert len(reader) == 2
    np.testing.assert_array_equal(reader[1]["ids"], tokenizer.encode(ten_crop(picture(pictures, 1), 8, 1.1)))


def test_ten_crops_with_two_margins():
    policy, crop = crop_policy("ten:1.1,1.25", 40, False, 0)
    square = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    crops = crop(square, 0)
    assert policy == "ten" and crops.shape == (20, 40, 40, 3)
    np.testing.assert_array_equal(crops[10:], ten_crop(square, 40, 1.25))
    assert (crops[:10] != crops[10:]).any()


def test_random_crops_of_one_margin():
    policy, crop = crop_policy("random:30:1.125", 32, False, 0)
    picture = np.arange(36, dtype=np.uint8)[:, None, None] + np.zeros((36, 50, 3), np.uint8)  # 1.125 x 32 rows: cut, not scaled
    tops = [int(rows[0, 0, 0]) for rows in crop(picture, 0)]
    assert policy == "random" and set(tops) == set(range(5))
    np.testing.assert_array_equal(crop(picture, 0)[0, :, 0, 0], tops[0] + np.arange(32))


def test_random_crops_follow_the_seed_and_not_the_count(tokenizer_folder, pictures, tmp_path):
    ids = []
    for name, seed, count in (("a", 1, 3), ("b", 1, 2), ("c", 2, 3)):
        flags = ["--crops", "random:4", "--flip", "--seed", seed, "--count", count]
        assert run(tokenizer_folder, "--data", pictures, "--out", tmp_path / name, *flags) == 0
        ids.append(ShardReader(tmp_path / name)[1]["ids"])
    assert ids[0].shape == (4, 4)
    np.testing.assert_array_equal(ids[0], ids[1])
    assert (ids[0] != ids[2]).any()


def test_processes_make_one_set_together(tokenizer_folder, pictures, tmp_path, capsys):
    flags = ["--data", pictures, "--crops", "random:2", "--seed", 1, "--count", 3]
    assert run(tokenizer_folder, *flags, "--out", tmp_path / "alone") == 0
    assert run(tokenizer_folder, *flags, "--out", tmp_path / "t", "--part", "1/2") == 0
    with pytest.raises(UserError, match="are not here"):
        ShardReader(tmp_path / "t")
    assert run(tokenizer_folder, *flags, "--out", tmp_path / "t", "--part", "0/2") == 0
    assert f"{tmp_path / 't'}: 3 pictures, of 2 parts" in capsys.readouterr().out
    alone, together = ShardReader(tmp_path / "alone"), ShardReader(tmp_path / "t")
    for i in range(3):
        np.testing.assert_array_equal(alone[i].pop("ids"), together[i].pop("ids"))
        assert alone.about(i) == together.about(i)
    assert len(together) == 3 and not list((tmp_path / "t").glob("part-*"))
    assert run(tokenizer_folder, *flags, "--out", tmp_path / "t", "--part", "0/2") == 2
    assert "already holds all parts" in capsys.readouterr().err


def test_parts_of_other_settings_are_not_put_together(tokenizer_folder, pictures, tmp_path, capsys):
    flags = ["--data", pictures, "--crops", "random:2", "--count", 3, "--out", tmp_path / "t"]
    assert run(tokenizer_folder, *flags, "--part", "0/2", "--seed", 1) == 0
    assert run(tokenizer_folder, *flags, "--part", "1/2", "--seed", 2) == 2
    assert "are of other pictures, tokenizers or settings than each other" in capsys.readouterr().err


def test_a_stopped_run_goes_on(tokenizer, tokenizer_folder, pictures, tmp_path, monkeypatch):
    """It encodes what is left, and no other pictures."""
    monkeypatch.setattr(module, "EVERY", -1.0)
    monkeypatch.setattr(module, "TOGETHER", 1)
    real, calls = type(tokenizer).encode, []

    def encode(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise RuntimeError("killed")
        return real(self, images)

    monkeypatch.setattr(type(tokenizer), "encode", encode)
    with pytest.raises(RuntimeError, match="killed"):
        module.tokenize(tokenizer_folder, str(pictures), tmp_path / "t", count=3)
    with pytest.raises(UserError, match="was begun with another tokenizer, other pictures or other settings"):
        module.tokenize(tokenizer_folder, str(pictures), tmp_path / "t", count=2)
    assert module.tokenize(tokenizer_folder, str(pictures), tmp_path / "t", count=3) == 3 and len(calls) == 4
    reader = ShardReader(tmp_path / "t")
    expected = real(tokenizer, np.stack([fit(picture(pictures, i), 8) for i in range(3)]))
    np.testing.assert_array_equal(np.concatenate([reader[i]["ids"] for i in range(3)]), expected)


def test_captions_are_kept_where_there_are_any(tokenizer_folder, pictures, tmp_path):
    for i in (0, 1):
        (tmp_path / "data" / f"{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "data" / f"{i}.png").write_bytes((pictures / f"{i}.png").read_bytes())
    assert run(tokenizer_folder, "--data", tmp_path / "data", "--out", tmp_path / "none") == 0
    lines = [json.dumps({"file_name": "0.png"}), json.dumps({"file_name": "1.png", "text": "one"})]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
    assert run(tokenizer_folder, "--data", tmp_path / "data", "--out", tmp_path / "one") == 0
    found = [[ShardReader(tmp_path / name).about(i).get("caption") for i in (0, 1)] for name in ("none", "one")]
    assert found == [[None, None], [None, "one"]]


def test_classes_keep_their_names(tokenizer_folder, tmp_path):
    for name, shade in (("dark", 0), ("light", 255)):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / "data" / name / "x.png")
    assert run(tokenizer_folder, "--data", tmp_path / "data", "--out", tmp_path / "t") == 0
    reader = ShardReader(tmp_path / "t")
    assert reader.labels == ("dark", "light") and [reader[i]["label"] for i in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crops", "tne"], "unknown crops 'tne': center, random:K (K crops of each picture) or ten. Did you mean 'ten'?"),
        (["--crops", "random"], "unknown crops 'random': center, random:K"),
        (["--crops", "random:0"], "unknown crops 'random:0'"),
        (["--crops", "ten:wide"], "--crops ten:wide: margins around crops are 1 to 2, as in ten:1.1,1.05 and random:10:1.125"),
        (["--crops", "ten:1.1,0.9"], "--crops ten:1.1,0.9: margins around crops"),
        (["--crops", "random:2:3"], "--crops random:2:3: margins around crops"),
        (["--crops", "ten", "--flip"], "--flip goes with --crops random:K"),
        (["--count", "0"], "--count 0: ask for at least one picture"),
        (["--part", "2/2"], "--part 2/2: name the number of this process and how many there are, 0/8 to 7/8"),
    ],
)
def test_mistakes(tokenizer_folder, pictures, tmp_path, capsys, flags, message):
    assert run(tokenizer_folder, "--data", pictures, "--out", tmp_path / "t", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_a_mistyped_source_and_a_full_folder(tokenizer_folder, pictures, tmp_path, capsys):
    assert run(tokenizer_folder, "--data", pictures.with_name("pictuers"), "--out", tmp_path / "t") == 2
    assert "Did you mean 'pictures'?" in capsys.readouterr().err
    assert run(tokenizer_folder, "--data", pictures, "--out", tmp_path / "t", "--count", 1) == 0
    assert run(tokenizer_folder, "--data", pictures, "--out", tmp_path / "t", "--count", 1) == 2
    assert "already holds" in capsys.readouterr().err


def test_codes_that_llamagen_wrote(tokenizer, tokenizer_folder, tmp_path, capsys):
    ids = np.random.default_rng(0).integers(0, 32, (3, 2, 4))
    for i, rows in enumerate(ids):
        for kind, value in (("codes", rows[None]), ("labels", np.array([i]))):
            (tmp_path / f"imagenet8_{kind}").mkdir(exist_ok=True)
            np.save(tmp_path / f"imagenet8_{kind}" / f"{i}.npy", value)
    assert run(tokenizer_folder, "--llamagen-codes", tmp_path, "--out", tmp_path / "t") == 0
    assert "codes of 3 pictures" in capsys.readouterr().out
    reader = ShardReader(tmp_path / "t")
    assert (reader.tokenizer, reader.layout, reader[2]["label"]) == (tokenizer.fingerprint, tokenizer.layout, 2)
    np.testing.assert_array_equal(reader[1]["ids"], ids[1])
    assert run(tokenizer_folder, "--data", "shapes", "--llamagen-codes", tmp_path, "--out", tmp_path / "u") == 2


def test_options_of_pictures_are_refused_for_codes(tokenizer_folder, tmp_path, capsys):
    assert run(tokenizer_folder, "--llamagen-codes", tmp_path, "--out", tmp_path / "t", "--crops", "ten", "--seed", 3) == 2
    assert "--crops and --seed says how pictures are read" in capsys.readouterr().err
