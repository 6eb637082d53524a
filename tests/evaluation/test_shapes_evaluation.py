"""Judging models of embedded scenes, with models whose quality is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmgen_tokenizers.pictures import to_float

from mmgen.data import shapes as scenes
from mmgen.evaluation import shapes


class Perfect:
    """A tokenizer whose tokens are the picture; it can be made to lose some of it."""

    config = SimpleNamespace(image_size=32)

    def __init__(self, spoil=lambda pictures: pictures):
        self.spoil = spoil

    def encode(self, pictures):
        return pictures

    def decode(self, ids):
        return to_float(self.spoil(ids))


def drawing(make):
    """A generator that draws make(parsed caption)."""

    def generate(prompts, seed):
        pictures = np.stack([scenes.draw(make(scenes.parse(prompt))) for prompt in prompts])
        return SimpleNamespace(images=to_float(pictures))

    return SimpleNamespace(tokenizer=Perfect(), generate=generate)


def right(said):
    cells = scenes.arrangements(said)[0]
    return scenes.Scene(tuple(scenes.Object(t, c) for t, c in zip(said.things, cells, strict=True)), "")


def turned(said):
    """The right things, each in the cell across."""
    objects = right(said).objects
    return scenes.Scene(tuple(scenes.Object(o.thing, 3 - o.cell) for o in objects), "")


def test_a_perfect_tokenizer():
    judged = shapes.reconstructions(Perfect(), 100)
    assert (judged.objects_right, judged.places_right) == (1, 1)
    assert judged.psnr == pytest.approx(100)
    assert len(judged.captions) == 100 and judged.originals.shape == (100, 32, 32, 3)


def test_a_tokenizer_that_loses_everything():
    judged = shapes.reconstructions(Perfect(lambda pictures: np.full_like(pictures, 246)), 100)
    assert (judged.objects_right, judged.places_right) == (0, 0)
    assert 10 < judged.psnr < 20


def test_prompts_are_different_combinations_of_the_test_split():
    captions = shapes.samples(drawing(right), 256).captions
    assert shapes.samples(drawing(right), 64, first=192).captions == captions[192:]
    asked = [scenes.parse(caption) for caption in captions]
    assert len(set(asked)) == 256
    assert set(asked) <= set(scenes.combinations("test"))
    assert {len(said.things) for said in asked} == {1, 2, 3}


def test_generators_that_obey_and_that_do_not():
    assert shapes.samples(drawing(right), 64).places_right == 1
    judged = shapes.samples(drawing(turned), 64)
    assert judged.objects_right == 1
    assert judged.places_right == 0


def test_figures_rows_and_cards():
    restored, drawn = shapes.reconstructions(Perfect(), 32), shapes.samples(drawing(turned), 64)
    found = shapes.figures(restored, drawn) | {"seconds": 90.0}
    assert found == {
        "psnr_test": pytest.approx(100), "reconstructions_right": 1.0, "prompts": 64,
        "objects_right": 1.0, "places_right": 0.0, "seconds": 90.0,
    }  # fmt: skip
    rows = shapes.table(found, shapes.TARGETS | {"seconds": 60})
    assert [row.reached for row in rows] == [True, True, None, True, False, False]
    assert "at least 55.0%" in shapes.describe(found) and "1.50 minutes" in shapes.describe(found)
    pairs, made = shapes.galleries(restored, drawn)
    assert all(card.good and len(card.pictures) == 2 for card in pairs.cards)
    assert all(not card.good and card.note == "right objects, wrong size or place" for card in made.cards)


def test_what_is_wrong_is_told():
    verdict = scenes.verify("a small red circle in the top left", scenes.draw(scenes.scene(0)))
    assert shapes.told(verdict) == "shows small yellow circle, small blue triangle"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert shapes.told(scenes.verify("a small red circle in the top left", noise)) == "shows nothing and something unclear"
