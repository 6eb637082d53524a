"""Tasks like GenEval's on embedded scenes, with pictures whose faults are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import to_float

from mmgen.data import nlvr
from mmgen.data import shapes as scenes
from mmgen.data.shapes import Object, Scene, Thing, draw, verify
from mmgen.evaluation import faithfulness, generated
from mmgen.evaluation.faithfulness import Drawn, Rate, passed, shown_by_shapes
from mmgen.model.config import Sampling, TextCondition

ONE, TWO = "a small red circle in the top left", "a small red circle above a large blue square"
RED, BLUE = Thing("red", "circle", "small"), Thing("blue", "square", "large")


def tasks(caption, *objects):
    return passed(shown_by_shapes(caption, verify(caption, draw(Scene(tuple(Object(*item) for item in objects), "")))))


@pytest.mark.parametrize(
    ("objects", "wrong"),
    [
        ([(RED, 0)], []),
        ([(RED, 3)], ["position"]),
        ([(Thing("red", "circle", "large"), 0)], []),  # sizes are no task of GenEval's
        ([(Thing("green", "circle", "small"), 0)], ["colours", "position"]),
        ([(Thing("red", "cross", "small"), 0)], ["single object", "colours", "position"]),
        ([(RED, 0), (BLUE, 1)], ["counting"]),
        ([], ["single object", "colours", "counting", "position"]),
    ],
)
def test_tasks_of_one_object(objects, wrong):
    found = tasks(ONE, *objects)
    assert {task for task, right in found.items() if not right} == set(wrong)
    assert set(found) == {"single object", "colours", "counting", "position"}


@pytest.mark.parametrize(
    ("objects", "wrong"),
    [
        ([(RED, 0), (BLUE, 3)], []),
        ([(RED, 2), (BLUE, 0)], ["position"]),
        ([(Thing("blue", "circle", "small"), 0), (Thing("red", "square", "large"), 2)], ["colour attribution", "position"]),
        ([(RED, 0)], ["two objects", "colour attribution", "position", "counting"]),
        ([(RED, 0), (Thing("blue", "circle", "large"), 2)], ["two objects", "colour attribution", "position"]),
        ([(RED, 0), (BLUE, 2), (BLUE, 3)], ["counting"]),
    ],
)
def test_tasks_of_two_objects(objects, wrong):
    found = tasks(TWO, *objects)
    assert {task for task, right in found.items() if not right} == set(wrong)
    assert set(found) == {"two objects", "colour attribution", "counting", "position"}


def test_rates_of_many():
    captions = [scenes.scene(i, "test").caption for i in range(60)]
    pictures = np.stack([draw(scenes.scene(i, "test")) for i in range(60)])
    read = faithfulness.SCENES["shapes"][1]
    found = faithfulness.rates(read(captions, pictures))
    assert set(found) == set(faithfulness.TASKS) and all(rate.value == 1 for rate in found.values())
    assert found["counting"].asked == 60 == found["position"].asked
    assert found["single object"].asked + found["two objects"].asked < 60
    blank = np.full_like(pictures, 246)
    nothing = Drawn(captions, blank, read(captions, blank))
    assert faithfulness.overall(faithfulness.rates(nothing.shown)) == 0
    rows = faithfulness.figures(found)
    assert rows["overall"] == {"value": 1.0} and rows["counting"]["interval"][0] < 1
    assert [row.name for row in faithfulness.table(found)][-1] == "overall: the mean of these"
    cards = faithfulness.gallery(nothing, 3).cards
    assert len(cards) == 3 and all(not card.good and "counting" in card.note for card in cards)


def test_intervals_of_rates():
    assert Rate(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson's, from tables
    assert Rate(0, 10).interval == pytest.approx((0, 0.2775), abs=1e-4)
    assert Rate(0, 0).interval == (0, 1)


# Boxes of NLVR -------------------------------------------------------------------------------------------------------

PLACES = {
    "above": [(40, 5), (40, 60)], "below": [(40, 60), (40, 5)], "left of": [(5, 40), (60, 40)], "right of": [(60, 40), (5, 40)],
}  # fmt: skip


def box(caption, colour=None):
    """A picture of what a caption says; with `colour` all things have that one."""
    said = nlvr.parse(caption)
    things = [thing for thing, count in said.things for _ in range(count)]
    places = PLACES.get(said.relation, [(5, 5), (60, 60), (5, 60), (60, 5)])
    return nlvr.draw(
        [nlvr.Object(nlvr.Thing(colour or t.colour, t.shape), "medium", *at) for t, at in zip(things, places, strict=False)]
    )


def drawing(monkeypatch, **how) -> list[int]:
    """Has `load` give a generator of boxes; the first indices of what it is asked to draw."""
    calls = []

    def generate(prompts, seed, first_index):
        calls.append(first_index)
        return SimpleNamespace(images=to_float(np.stack([box(prompt, **how) for prompt in prompts])))

    config = SimpleNamespace(condition=TextCondition())
    tokenizer = SimpleNamespace(config=SimpleNamespace(image_size=100))
    made = SimpleNamespace(
        config=config, tokenizer=tokenizer, sampling=Sampling(), generate=generate, rows_at_once=1, dtype=np.float32
    )
    monkeypatch.setattr(faithfulness, "step_of", lambda folder: 7)
    monkeypatch.setattr(faithfulness, "load", lambda *_: made)
    monkeypatch.setattr(generated, "fingerprint", lambda generator: f"that of {how}")
    return calls


def test_boxes_that_obey_and_that_do_not(tmp_path, monkeypatch):
    drawing(monkeypatch)
    found = faithfulness.evaluate("model", tmp_path / "a", 16, scenes="nlvr")
    values = {task: figure["value"] for task, figure in found["figures"].items()}
    assert values == dict.fromkeys([*faithfulness.TASKS, "overall"], 1.0) and found["step"] == 7
    assert found["figures"]["counting"]["asked"] == 16 and found["figures"]["position"]["asked"] == 4
    drawing(monkeypatch, colour="blue")
    found = faithfulness.evaluate("model", tmp_path / "b", 16, scenes="nlvr")
    values = {task: figure["value"] for task, figure in found["figures"].items()}
    assert values["counting"] == values["single object"] == values["two objects"] == 1
    assert max(values["colours"], values["colour attribution"], values["position"]) < 0.6
    assert (tmp_path / "b" / "report.html").is_file() and (tmp_path / "b" / "evaluation.json").is_file()
    with pytest.raises(UserError, match="holds pictures of another model: choose another --out"):
        faithfulness.evaluate("model", tmp_path / "a", 16, scenes="nlvr")


def test_scenes_are_drawn_once(tmp_path, monkeypatch):
    """Stopped before its last piece and started again, an evaluation draws what is missing and finds the same."""
    monkeypatch.setattr(generated, "PIECE", 6)
    calls = drawing(monkeypatch)
    whole = faithfulness.evaluate("model", tmp_path, 16, scenes="nlvr")
    (tmp_path / "pictures" / "00000006.npz").unlink()
    (tmp_path / "evaluation.json").unlink()
    assert faithfulness.evaluate("model", tmp_path, 16, scenes="nlvr") == whole
    assert calls == [0, 6, 12, 6]


def test_relations_and_numbers_of_boxes():
    def failed(caption, picture):
        return {task for task, right in passed(faithfulness.shown_by_box(caption, picture)).items() if not right}

    above = "one black square above one yellow circle"
    assert failed(above, box(above)) == set()
    assert failed("one black square below one yellow circle", box(above)) == {"position"}
    assert failed("one yellow circle below one black square", box(above)) == set()
    assert failed("two blue circles", box("three blue circles")) == {"counting"}
    assert failed("one blue circle", box("one blue square")) == {"single object", "colours"}
    assert failed("one blue circle, one black square", box("one black circle, one blue square")) == {"colour attribution"}
