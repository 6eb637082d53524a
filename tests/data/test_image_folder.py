import json
import warnings

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.image_folder import ImageFolderSource
from mmgen_tokenizers.pictures import PictureError, png_bytes, read_picture
from PIL import Image

from mmgen.config import Data, ImageFolder
from mmgen.data import batches, open_source
from mmgen.data.damaged import Replacing


def picture(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def put(folder, **values: int):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / f"{name}.png").write_bytes(png_bytes(picture(value)))


def lines(folder, *rows, name="metadata.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def first_values(source) -> list[int]:
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_metadata_jsonl(tmp_path):
    put(tmp_path / "sub", a=1, b=2)
    put(tmp_path, c=3)
    rows = (
        {"file_name": "sub/b.png", "text": "zwei 😀"},
        {"file_name": "c.png", "text": "drei"},
        {"file_name": "sub/a.png", "text": "eins"},
    )
    lines(tmp_path, *rows)
    source = ImageFolderSource(tmp_path)
    assert first_values(source) == [2, 3, 1] and [source[i]["text"] for i in range(3)] == ["zwei 😀", "drei", "eins"]
    assert source.labels is None and sorted(source[0]) == ["image", "text"]


def test_metadata_csv(tmp_path):
    put(tmp_path, a=1, b=2)
    (tmp_path / "metadata.csv").write_bytes('\ufefffile_name,text\r\nb.png,"one, ""two"""\r\na.png,three\r\n'.encode())
    source = ImageFolderSource(tmp_path)
    assert first_values(source) == [2, 1] and source[0]["text"] == 'one, "two"'


def test_other_columns_and_tags_as_captions(tmp_path):
    put(tmp_path, a=1)
    lines(tmp_path, {"file_name": "a.png", "text": "x", "tags": ["red", "cat"], "title": "t"})
    assert ImageFolderSource(tmp_path, "title")[0]["text"] == "t"
    assert ImageFolderSource(tmp_path, "tags")[0]["text"] == "red, cat"
    with pytest.raises(UserError, match="no captions named 'titel'.*tags, text, title"):
        ImageFolderSource(tmp_path, "titel")


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        ([2, 0, 2], None, [2, 0, 2]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
    ],
)
def test_labels_of_metadata(tmp_path, labels, names, numbers):
    put(tmp_path, a=1, b=2, c=3)
    lines(tmp_path, *({"file_name": f"{name}.png", "label": label} for name, label in zip("abc", labels, strict=True)))
    source = ImageFolderSource(tmp_path)
    assert source.labels == names and [source[i]["label"] for i in range(3)] == numbers


@pytest.mark.parametrize(
    ("labels", "names", "numbers"), [("10 2 0", None, [10, 2, 0]), ("10 2 b", ("10", "2", "b"), [0, 1, 2])]
)
def test_labels_of_metadata_csv(tmp_path, labels, names, numbers):
    rows = [f"{name}.png,{label}" for name, label in zip("abc", labels.split(), strict=True)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    source = ImageFolderSource(tmp_path)
    assert source.labels == names and [row["label"] for row in source._rows] == numbers


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "a.png", "text": "x"}, {"file_name": "b.png"}], r"row 2 of .*metadata.jsonl gives no 'text' for b.png"),
        ([{"file_name": "a.png", "text": "x"}, {"file_name": "b.png", "text": "  "}], r"gives no 'text' for b.png"),
        ([{"file_name": "a.png", "text": 3}], r"gives no 'text' for a.png"),
        ([{"file_name": "a.png"}], r"no captions named 'text' \(it has: none\)"),
        ([{"text": "x"}], r"row 1 of .*metadata.jsonl has no file_name"),
        ([["a.png"]], r"row 1 of .* has no file_name"),
        ([{"file_name": "a.png", "label": 1, "text": "x"}, {"file_name": "b.png", "text": "y"}], "gives no label for b.png"),
        ([], "no captions named"),
    ],
)
def test_metadata_that_lacks_something_names_the_picture(tmp_path, rows, message):
    put(tmp_path, a=1, b=2)
    lines(tmp_path, *rows)
    with pytest.raises(UserError, match=message):
        ImageFolderSource(tmp_path, captioned=True)


def test_captions_may_be_missing_where_nobody_needs_them(tmp_path):
    put(tmp_path, a=1, b=2, c=3)
    lines(tmp_path, {"file_name": "a.png"}, {"file_name": "b.png", "text": "zwei"}, {"file_name": "c.png", "text": 3})
    source = ImageFolderSource(tmp_path)
    assert [sorted(source[i]) for i in range(3)] == [["image"], ["image", "text"], ["image"]]
    assert [open_source(Data(ImageFolder(str(tmp_path)))).caption(i) for i in range(3)] == [None, "zwei", None]
    with pytest.raises(UserError, match="row 1 of .* gives no 'text' for a.png"):
        open_source(Data(ImageFolder(str(tmp_path))), captioned=True)


def test_a_caption_is_told_without_its_picture(tmp_path):
    lines(tmp_path, {"file_name": "gone.png", "text": "x"})
    assert open_source(Data(ImageFolder(str(tmp_path)))).caption(0) == "x"


def test_wrong_rows_are_counted_and_the_first_is_named(tmp_path):
    put(tmp_path, a=1)
    rows = ['{"file_name": "a.png"}', '{"file_name": "a.png"', "", '{"text": "x"}', '{"file_name": ""}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"row 2 of .*metadata.jsonl is not JSON: .* \(3 of 4 rows are wrong\)$"):
        ImageFolderSource(tmp_path)


def test_metadata_that_is_not_json(tmp_path):
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", \xff')
    with pytest.raises(UserError, match="cannot be read as jsonl"):
        ImageFolderSource(tmp_path)


def test_one_folder_a_class(tmp_path):
    put(tmp_path / "zebra" / "deep" / "er", a=1)
    put(tmp_path / "zebra", b=2)
    put(tmp_path / "Ant", c=3)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    source = ImageFolderSource(tmp_path)
    assert source.labels == ("Ant", "zebra")
    assert first_values(source) == [3, 2, 1] and [source[i]["label"] for i in range(3)] == [0, 1, 1]


def test_a_plain_folder_and_which_files_count(tmp_path):
    put(tmp_path, b=1, a=2, c=3, d=4)
    put(tmp_path / "sub", f=5)
    (tmp_path / "a.png").rename(tmp_path / "A.JPeG")  # case and content do not matter
    (tmp_path / "c.png").rename(tmp_path / "c.photo")  # an unknown name, but a picture
    (tmp_path / "d.png").rename(tmp_path / "d")
    put(tmp_path / ".hidden", x=9)
    put(tmp_path / "__MACOSX", x=9)
    put(tmp_path, **{"._b": 9})
    for name in ("readme.txt", "Thumbs.db", "list", "data.json"):
        (tmp_path / name).write_text("no picture")
    source = ImageFolderSource(tmp_path)
    assert first_values(source) == [2, 1, 3, 4, 5] and source.labels is None and sorted(source[0]) == ["image"]


def test_what_is_not_there(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="Did you mean 'pictures'"):
        ImageFolderSource(tmp_path / "picturse")
    with pytest.raises(UserError, match="no pictures in"):
        ImageFolderSource(tmp_path / "pictures")
    put(tmp_path / "pictures" / "train", a=1)
    put(tmp_path / "pictures" / "test", b=1)
    with pytest.raises(UserError, match="holds splits.*test.*train"):
        ImageFolderSource(tmp_path / "pictures")


# ---------------------------------------------------------------------------------------------- damaged pictures


def with_damage(folder, bad=("c", "d", "j")):
    put(folder, **{name: i for i, name in enumerate("abcdefghij")})
    for name in bad:
        (folder / f"{name}.png").write_bytes(b"<html>" if name == "c" else png_bytes(picture(99))[:45])
    return ImageFolder(str(folder))


def test_the_next_good_picture_replaces_a_damaged_one(tmp_path):
    source = open_source(Data(with_damage(tmp_path)))
    with pytest.warns(UserWarning) as caught:
        assert first_values(source) == [0, 1, 4, 4, 4, 5, 6, 7, 8, 0]  # the one after the last is the first
    assert [w.message.args[0].split("; ")[1] for w in caught] == [
        f"the next good picture replaces it ({n} of 10 damaged so far)" for n in (1, 2, 3)
    ]
    assert [next(name for name in "cdj" if f"{name}.png" in str(w.message)) for w in caught] == ["c", "d", "j"]
    assert sorted(source.damaged) == [2, 3, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each is named once
        assert first_values(source) == [0, 1, 4, 4, 4, 5, 6, 7, 8, 0]


def test_damage_does_not_move_other_pictures(tmp_path):
    put(tmp_path / "good", **{name: i for i, name in enumerate("abcdefghij")})
    damaged, good = with_damage(tmp_path / "bad"), ImageFolder(str(tmp_path / "good"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        streams = [batches(Data(source, size=8), 4, seed=1) for source in (good, damaged)]
        values = np.array([[next(stream)["image"][:, 0, 0, 0] for _ in range(10)] for stream in streams])
    same = values[0] == values[1]
    assert np.array_equal(same, ~np.isin(values[0], [2, 3, 9])) and 0 < same.sum() < same.size


def test_a_folder_without_a_usable_picture(tmp_path):
    source = open_source(Data(with_damage(tmp_path, "abcdefghij")))
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"none of the 10 pictures can be read; the first: .*a\.png"):
        source[3]
    with pytest.warns(UserWarning), pytest.raises(UserError, match="none of the 10"):  # through the threads of a stream
        next(batches(Data(ImageFolder(str(tmp_path))), 4))


def test_a_missing_file_is_damage_and_other_errors_are_not():
    class Source:
        labels = None

        def __init__(self, error):
            self.error = error

        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index:
                raise self.error
            return {"text": "good"}

    with pytest.warns(UserWarning, match="gone"):
        assert Replacing(Source(PictureError("gone")))[1] == {"text": "good"}
    with pytest.raises(ZeroDivisionError):
        Replacing(Source(ZeroDivisionError()))[1]


def test_a_listed_file_that_is_absent(tmp_path):
    put(tmp_path, a=7)
    lines(tmp_path, {"file_name": "gone.png", "text": "x"}, {"file_name": "a.png", "text": "y"})
    with pytest.warns(UserWarning, match=r"gone\.png"):
        example = open_source(Data(ImageFolder(str(tmp_path))))[0]
    assert example["text"] == "y" and example["image"][0, 0, 0] == 7  # text and picture stay together


# -------------------------------------------------------------------------------------------------- shared data


def test_bad_images_among_good_ones(shared, tmp_path):
    entries = json.loads((shared("bad_images") / "manifest.json").read_text())["files"]
    for entry in entries:
        (tmp_path / entry["file"]).write_bytes((shared("bad_images") / entry["file"]).read_bytes())
        put(tmp_path, **{entry["file"] + ".good": 1})
    source = open_source(Data(ImageFolder(str(tmp_path)), size=16))
    refused = {entry["file"] for entry in entries if entry["pillow_default"] == "reject"}
    assert len(source) == 2 * len(entries)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = [source[i]["image"] for i in range(len(source))]
    named = [str(w.message).split(": ")[0].split("/")[-1] for w in caught if "damaged" in str(w.message)]
    assert sorted(named) == sorted(refused) and len(source.damaged) == len(refused)
    assert all(image.ndim == 3 and image.dtype == np.uint8 for image in images)


def test_emoji_and_nlvr(shared):
    emoji = ImageFolderSource(shared("emoji/train"))
    assert len(emoji) == 1731 and emoji[0]["text"] == "keycap: #" and emoji[0]["image"].shape == (64, 64, 3)
    nlvr = ImageFolderSource(shared("nlvr"))
    assert (
        len(nlvr) == 988
        and nlvr.labels == ("false", "true")
        and nlvr[0]["label"] == 1
        and nlvr[0]["image"].shape == (100, 400, 3)
    )
    with pytest.raises(UserError, match="holds splits"):
        ImageFolderSource(shared("emoji"))
    assert np.array_equal(emoji[5]["image"], read_picture(shared("emoji/train") / emoji._rows[5]["file"]))
    with Image.open(shared("emoji/train") / emoji._rows[5]["file"]) as image:
        assert np.array_equal(emoji[5]["image"], np.asarray(image.convert("RGB")))
