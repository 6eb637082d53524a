"""The best of several candidates: whose score is the highest, and what is seen of them on the way."""

import sys

import jax
import mmgen_tokenizers as mt
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import to_uint8

from mmgen import best, samples
from mmgen.best import BestOf, draw_best
from mmgen.data import shapes as scenes
from mmgen.evaluation.shapes import score
from mmgen.generator import Generator
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig

PALETTE = ((0, 0, 0), (60, 60, 60), (120, 120, 120), (180, 180, 180), (240, 240, 240))
SEEN: list = []


def brightness(pictures, texts):
    SEEN.append((pictures, list(texts)))
    return pictures.mean((1, 2, 3))


@pytest.fixture(scope="module")
def generator():
    """4 x 4 grey pixels, one token each: a picture shows its tokens."""
    tokenizer = mt.Tokenizer(mt.Pixels(PALETTE, image_size=4), {})
    block = BlockConfig(width=16, heads=2, mlp=24)
    config = GeneratorConfig(layout=tokenizer.layout, condition=ClassCondition(3), block=block, depth=1)
    return Generator(config, jax.tree.map(np.asarray, plans.parameters(config)), tokenizer)


@pytest.fixture(autouse=True)
def scorer(monkeypatch):
    monkeypatch.setitem(sys.modules, "judges", sys.modules[__name__])
    SEEN.clear()


def test_the_brightest_of_plain_candidates(generator):
    made = draw_best(generator, "labels", [0, 2], ["a", "b"], BestOf(3, "judges:brightness"), first_index=5, seed=1)
    every = generator.generate(labels=[0, 0, 0, 2, 2, 2], seed=1, first_index=15)
    bright = to_uint8(every.images).mean((1, 2, 3)).reshape(2, 3)
    np.testing.assert_allclose(made.scores, bright)
    np.testing.assert_array_equal(made.tokens, every.tokens.reshape(2, 3, 16)[[0, 1], bright.argmax(1)])
    assert SEEN[0][1] == ["a"] * 3 + ["b"] * 3 and made.pictures.mean((1, 2, 3)) == pytest.approx(bright.max(1))


def test_the_better_half_goes_on(generator):
    """Of four the brightest two after six pixels, of these the better one after twelve; each goes on from what was seen."""
    made = draw_best(generator, "labels", [1], ["a"], BestOf(4, "judges:brightness", (6, 12)), seed=1)
    (first, _), (second, _), (last, _) = (SEEN[i] for i in range(3))
    assert [len(pictures) for pictures, _ in SEEN] == [4, 2, 1] and made.scores.shape == (1, 1)
    plain = to_uint8(generator.generate(labels=[1] * 4, seed=1).images).reshape(4, 16, 3)
    np.testing.assert_array_equal(first.reshape(4, 16, 3)[:, :6], plain[:, :6])
    for row in first.reshape(4, 16, 3)[..., 0]:
        values, counts = np.unique(row[:6], return_counts=True)
        assert set(row[6:]) == {values[counts.argmax()]}
    order = np.sort(np.argsort(-first.mean((1, 2, 3)), kind="stable")[:2])
    np.testing.assert_array_equal(second.reshape(2, 16, 3)[:, :6], plain[order, :6])
    winner = second[second.mean((1, 2, 3)).argmax()].reshape(16, 3)
    np.testing.assert_array_equal(last.reshape(16, 3)[:12], winner[:12])
    assert made.forwards == 6 + 12 + generator.generate(labels=[1]).forwards


def test_a_value_is_drawn_alike_alone_and_among_others(generator):
    """Also in the rounds on the way, where fewer candidates of each are left."""
    best, texts = BestOf(4, "judges:brightness", (6, 12)), ["a", "b", "c"]
    whole = draw_best(generator, "labels", [2, 0, 1], texts, best, first_index=1, seed=1)
    assert [seen for _, seen in SEEN] == [["a"] * n + ["b"] * n + ["c"] * n for n in (4, 2, 1)]
    alone = [draw_best(generator, "labels", [k], texts[i : i + 1], best, 1 + i, seed=1) for i, k in enumerate((2, 0, 1))]
    np.testing.assert_array_equal(whole.tokens, np.concatenate([one.tokens for one in alone]))
    np.testing.assert_allclose(whole.scores, np.concatenate([one.scores for one in alone]))


def test_pieces_of_a_job_draw_the_same(generator, tmp_path, monkeypatch, capsys):
    generator.save(tmp_path / "model")
    job = dict(labels=["0", "1", "2"], best=BestOf(2, "judges:brightness"), seed=3)
    samples.sample(tmp_path / "model", npz=str(tmp_path / "a.npz"), **job)
    told = capsys.readouterr().out
    monkeypatch.setattr(Generator, "rows_at_once", 2)
    samples.sample(tmp_path / "model", npz=str(tmp_path / "b.npz"), **job)
    found = [np.load(tmp_path / name)["arr_0"] for name in ("a.npz", "b.npz")]
    np.testing.assert_array_equal(*found)
    assert f"mean score {found[0].mean():.4g}, of all candidates" in told and SEEN[0][1] == ["0", "0", "1", "1", "2", "2"]


def test_what_cannot_be_done(generator):
    for given, message in (((1, "a:b"), "needs no scorer"), ((4, "a:b", (5, 5)), "each larger than the one before")):
        with pytest.raises(UserError, match=message):
            BestOf(*given)
    pyramid = Generator(plans.config("scale"), None)
    with pytest.raises(UserError, match="a partial picture of several scales"):
        best._filled(pyramid, np.zeros((1, 14), int), np.ones((1, 14), bool))


def test_the_score_of_scenes():
    caption = "a small red circle above a large blue square"
    red, blue = scenes.Thing("red", "circle", "small"), scenes.Thing("blue", "square", "large")
    pictures = [
        scenes.draw(scenes.Scene(tuple(scenes.Object(thing, cell) for thing, cell in objects), ""))
        for objects in ([(red, 0), (blue, 2)], [(red, 2), (blue, 0)], [(red, 0)], [(red, 0), (blue, 2), (red, 1)], [])
    ]
    assert score(np.stack(pictures), [caption] * 5) == [2, 1, 0.5, 0.5, 0]
