"""Tasks like GenEval's on embedded scenes, with pictures whose faults are known."""

import numpy as np
import pytest

from mmgen.data import shapes as scenes
from mmgen.data.shapes import Object, Scene, Thing, draw, verify
from mmgen.evaluation import faithfulness
from mmgen.evaluation.faithfulness import Rate, passed
from mmgen.evaluation.shapes import Judged

ONE, TWO = "a small red circle in the top left", "a small red circle above a large blue square"
RED, BLUE = Thing("red", "circle", "small"), Thing("blue", "square", "large")


def tasks(caption, *objects):
    return passed(caption, verify(caption, draw(Scene(tuple(Object(*item) for item in objects), ""))))


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
    perfect = Judged(captions, pictures, pictures, scenes.verify_all(captions, pictures))
    found = faithfulness.rates(perfect)
    assert set(found) == set(faithfulness.TASKS) and all(rate.value == 1 for rate in found.values())
    assert found["counting"].asked == 60 == found["position"].asked
    assert found["single object"].asked + found["two objects"].asked < 60
    blank = np.full_like(pictures, 246)
    nothing = Judged(captions, pictures, blank, scenes.verify_all(captions, blank))
    assert faithfulness.overall(faithfulness.rates(nothing)) == 0
    rows = faithfulness.figures(found)
    assert rows["overall"] == {"value": 1.0} and rows["counting"]["interval"][0] < 1
    assert [row.name for row in faithfulness.table(found)][-1] == "overall: the mean of these"
    cards = faithfulness.gallery(nothing, 3).cards
    assert len(cards) == 3 and all(not card.good and "counting" in card.note for card in cards)


def test_intervals_of_rates():
    assert Rate(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson's, from tables
    assert Rate(0, 10).interval == pytest.approx((0, 0.2775), abs=1e-4)
    assert Rate(0, 0).interval == (0, 1)
