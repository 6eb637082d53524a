"""Boxes of NLVR: words there and back, drawings read exactly, and the real pictures."""

import json

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.image_folder import read_metadata
from mmgen_tokenizers.pictures import read_picture, write_png
from PIL import Image

from mmgen.data import batches, nlvr, parse_source
from mmgen.data.nlvr import Object, Thing, counted, draw, parse, read, related

TWO = (Object(Thing("black", "square"), "medium", 40, 10), Object(Thing("yellow", "circle"), "small", 60, 50))
TOWER = tuple(Object(Thing(c, "square"), "medium", 40, 80 - 21 * i) for i, c in enumerate(("blue", "blue", "black", "yellow")))
FULL = (
    Object(Thing("blue", "triangle"), "large", 0, 0), Object(Thing("blue", "circle"), "large", 66, 45),
    Object(Thing("yellow", "triangle"), "small", 90, 90), Object(Thing("black", "circle"), "small", 62, 30), *TOWER,
)  # fmt: skip


def sorted_by_place(objects):
    return sorted(objects, key=lambda item: (item.x, item.y))


def test_captions_there_and_back():
    said = counted(TOWER)
    assert str(said) == "one black square, two blue squares, one yellow square" and parse(f"{said}.") == said
    assert str(related(TWO)) == "one black square above one yellow circle"
    assert str(related(TWO, turned=True)) == "one yellow circle below one black square"
    beside = (TWO[0], Object(TWO[1].thing, "small", 70, 15))
    assert str(related(beside)) == "one black square left of one yellow circle" and parse(str(related(beside))) == related(
        beside
    )
    assert related(TOWER) is None and related(TOWER[:2]) is None
    for caption in nlvr.prompts(300):
        assert str(parse(caption)) == caption
    assert len(set(nlvr.prompts(300))) > 140
    for wrong in ("a dog", "one red circle", "two blue circles above one black square", ""):
        with pytest.raises(UserError, match="write it like 'two blue triangles, one yellow circle'"):
            parse(wrong)


@pytest.mark.parametrize("objects", [(), TWO, TOWER, FULL], ids=["none", "two", "tower", "full"])
def test_drawings_are_read_exactly(objects):
    found, unclear = read(draw(objects))
    assert sorted_by_place(found) == sorted_by_place(objects) and not unclear


def test_what_is_blurred_or_small_is_read_and_what_is_odd_is_unclear():
    small = np.asarray(Image.fromarray(draw(TWO)).resize((48, 48), Image.Resampling.BOX))
    found, unclear = read(small)
    assert [item.thing for item in found] == [item.thing for item in TWO] and not unclear
    tiny = np.asarray(Image.fromarray(draw(TWO)).resize((nlvr.SMALLEST,) * 2, Image.Resampling.BOX))
    assert [item.thing for item in read(tiny)[0]] == [item.thing for item in TWO]
    odd = draw(TWO)
    odd[60:80, 10:30] = (230, 30, 30)  # red is no colour of these
    found, unclear = read(odd)
    assert sorted_by_place(found) == sorted_by_place(TWO) and unclear
    assert read(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8))[1]
    with pytest.raises(UserError, match="square pictures uint8"):
        read(odd[:50])


@pytest.fixture
def folder(tmp_path):
    """Two pictures, the second one of the test split."""
    boxes, rows = [TWO, TOWER, ()], []
    picture = np.full((100, 400, 3), 128, np.uint8)
    for start, objects in zip(nlvr.STARTS, boxes, strict=True):
        picture[:, start : start + 100] = draw(objects)
    told = [
        [{"shape": o.thing.shape, "color": o.thing.colour, "size": o.size, "x": o.x, "y": o.y} for o in box] for box in boxes
    ]
    for name, split in (("a.png", "dev"), ("b.png", "test")):
        write_png(tmp_path / name, picture)
        rows.append({"file_name": name, "split": split, "boxes": told})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_boxes_as_data(folder):
    from mmgen.config import Data

    data = Data(parse_source(f"nlvr:{folder}:test"), size=100)
    batch = next(batches(data, 8, shuffle=False, repeat=False))
    assert batch["text"][2:] == ["one black square, two blue squares, one yellow square", ""]
    assert batch["text"][0] == "one black square, one yellow circle"
    assert parse(batch["text"][1]).relation in ("above", "below")
    np.testing.assert_array_equal(batch["image"], np.stack([draw(o) for o in (TWO, TWO, TOWER, ())]))
    assert parse_source(f"nlvr:{folder}").split == "train"
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    with pytest.raises(UserError, match="has no NLVR boxes in the row of a.png"):
        nlvr.NLVRSource(folder)
    one = {"shape": "circle", "color": "blue", "size": "medium", "x": 1, "y": 2}
    for wrong, message in (
        ([[one], [one]], "ValueError: 2 boxes, not 3"),
        ([[], [], [one | {"color": "#0099ff"}]], "ValueError: no medium #0099ff circle"),
        ([[], [], [one | {"x": "left"}]], "ValueError: invalid literal"),
        ([[], [], [{"type": "circle"}]], "KeyError: 'color'"),
    ):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "boxes": wrong}))
        with pytest.raises(UserError, match=f"the row of a.png .{message}"):
            nlvr.NLVRSource(folder)
    with pytest.raises(UserError, match="is no folder of NLVR"):
        nlvr.NLVRSource(folder / "none")


def test_real_pictures_are_read(shared):
    """Boxes are what `draw` draws, but for pixels of edges, and the checker reads all that they hold, to the pixel."""
    folder, boxes = shared("nlvr"), []
    for _, row in read_metadata(folder / "metadata.jsonl")[::60]:
        picture = read_picture(folder / row["file_name"])
        for start, objects, caption in zip(nlvr.STARTS, nlvr.objects_of(row), row["box_captions"], strict=True):
            assert str(counted(objects)) == caption
            box = nlvr.box_of(picture, start)
            assert np.abs(box.astype(int) - draw(objects)).mean() < 1
            boxes.append((box, objects))
    assert len(boxes) == 51
    for box, objects in boxes:
        found, unclear = read(box)
        assert sorted_by_place(found) == sorted_by_place(objects) and not unclear
