"""The judge of class-conditional models learns what can be told apart, and counts what it recognises."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import to_float, write_png

from mmgen import config
from mmgen.config import Data, Experiment, GeneratorTask, ImageFolder
from mmgen.evaluation import classifier, generated, page, recognition
from mmgen.evaluation.classifier import blurred, fcd, recognised, train_classifier
from mmgen.model.config import ClassCondition, Sampling, TextCondition

LEARNING = {"classes": 3, "size": 16, "steps": 60, "peak": 6e-3}


def bars(labels, rng):
    """Class 0: a dark bar across; 1: a bar down; 2: neither; somewhere, with noise."""
    pictures = rng.normal(170, 25, (len(labels), 16, 16, 3))
    for picture, label, at in zip(pictures, labels, rng.integers(2, 12, len(labels)), strict=True):
        if label == 0:
            picture[at : at + 2] -= 90
        elif label == 1:
            picture[:, at : at + 2] -= 90
    return np.clip(pictures, 0, 255).astype(np.uint8)


def stream(seed):
    rng = np.random.default_rng(seed)
    while True:
        labels = rng.integers(0, 3, 32).astype(np.int32)
        yield {"image": bars(labels, rng), "label": labels}


@pytest.fixture(scope="module")
def trained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "CHUNK", 6)  # one program for sets of all sizes
        patch.setattr(classifier, "CHANNELS", (8, 16, 16))  # enough for bars
        yield train_classifier(stream(0), **LEARNING)


def test_it_learns_and_is_deterministic(trained):
    unseen = bars(np.arange(120) % 3, np.random.default_rng(1))
    assert np.mean(trained(unseen) == np.arange(120) % 3) > 0.9
    begun = [train_classifier(islice(stream(0), 2), **LEARNING) for _ in range(2)]
    np.testing.assert_array_equal(*[each.features(unseen[:6]) for each in begun])


def test_fcd_of_known_answers(trained):
    """Unseen pictures are nearest; those with one class too few are farther away, and so are blurred ones, and noise still."""

    def draw(seed, labels):
        return bars(np.array(labels), np.random.default_rng(seed))

    reference, unseen = draw(2, [0, 1, 2] * 40), draw(3, [0, 1, 2] * 40)
    noise = np.random.default_rng(4).integers(0, 256, unseen.shape, np.uint8)
    found = [fcd(trained, x, reference) for x in (unseen, draw(5, [0, 1] * 60), blurred(unseen), noise)]
    values = [figure["value"] for figure in found]
    assert 3 * values[0] < values[1] and 3 * values[0] < values[2] < values[3] / 2
    assert abs(fcd(trained, reference, reference)["value"]) < 1e-6
    assert all(figure["interval"][0] < figure["value"] < figure["interval"][1] for figure in found)
    features = trained.features(unseen)
    assert features.shape == (120, 128) and (features >= 0).all()


def test_blurred_is_the_mean_around():
    picture = np.random.default_rng(0).integers(0, 256, (1, 7, 8, 3), np.uint8)
    found, mean = blurred(picture)[0], picture[0, 1:6, 2:7].mean((0, 1))
    np.testing.assert_array_equal(found[3, 4], np.rint(mean))
    np.testing.assert_allclose(found[0, 0], np.pad(picture[0], ((2, 2), (2, 2), (0, 0)), "edge")[:5, :5].mean((0, 1)), atol=0.5)


def test_recognised():
    def generate(labels, seed):
        return SimpleNamespace(images=to_float(np.repeat(labels, 4 * 4 * 3).reshape(-1, 4, 4, 3).astype(np.uint8)))

    generator = SimpleNamespace(null_label=3, generate=generate)
    pictures, labels, right = recognised(generator, lambda pictures: pictures[:, 0, 0, 0] // 2 * 2, count=9)
    assert labels.tolist() == [0, 1, 2] * 3 and pictures.shape == (9, 4, 4, 3)
    assert right.tolist() == [True, False, True] * 3


# A run judged by its own pictures ------------------------------------------------------------------------------------

CLASSES = ("across", "down", "neither")


@pytest.fixture
def run(tmp_path, monkeypatch, trained):
    """A run with pictures to learn from, of which the third class is drawn as the first; `run.calls`: what was drawn."""
    for split, seed in (("train", 6), ("test", 7)):
        for i, picture in enumerate(bars(np.arange(120) % 3, np.random.default_rng(seed))):
            write_png(tmp_path / split / CLASSES[i % 3] / f"{i}.png", picture)
    data = [Data(ImageFolder(str(tmp_path / split)), size=32) for split in ("train", "test")]
    config.save(Experiment(task=GeneratorTask(), data=data[0], validation=data[1]), tmp_path / "experiment.json")
    calls, learned = [], []

    def generate(labels, seed, first_index):
        calls.append(first_index)
        drawn = bars(np.where(labels == 2, 0, labels), np.random.default_rng(first_index))
        return SimpleNamespace(images=to_float(drawn))

    def train(batches, classes, size):
        learned.append((next(batches)["image"].shape, classes, size))
        return trained

    model = SimpleNamespace(
        config=SimpleNamespace(condition=ClassCondition(3)), tokenizer=SimpleNamespace(config=SimpleNamespace(image_size=16)),
        sampling=Sampling(), generate=generate, rows_at_once=60, dtype=np.float32, null_label=3, labels=CLASSES,
    )  # fmt: skip
    monkeypatch.setattr(recognition, "load", lambda *_: model)
    monkeypatch.setattr(recognition, "step_of", lambda _: 7)
    monkeypatch.setattr(recognition, "train_classifier", train)
    monkeypatch.setattr(recognition, "REFERENCE", 120)
    monkeypatch.setattr(generated, "fingerprint", lambda _: "")
    monkeypatch.setattr(generated, "PIECE", 60)
    return SimpleNamespace(folder=tmp_path, model=model, calls=calls, learned=learned)


def test_a_run_is_judged_by_the_pictures_that_it_learned(run):
    result, found = recognition.evaluate("model", run.folder, run.folder / "out", 120)
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    assert run.learned == [((64, 16, 16, 3), 3, 16)]  # in the size that is drawn
    assert figures["recognised"] == found.right.mean() == pytest.approx(2 / 3, abs=0.05) and figures["classifier"] > 0.8
    assert figures["fcd_of_real"] < min(figures["fcd"], figures["fcd_of_blurred"]) < figures["fcd_of_noise"]
    assert found.labels.tolist() == [0, 1, 2] * 40 and result["step"] == 7
    (run.folder / "out" / "pictures" / "00000060.npz").unlink()
    again, _ = recognition.evaluate("model", run.folder, run.folder / "out", 120)
    assert again == result and run.calls == [0, 60, 60]
    asked = page.first_pictures(run.folder / "out")[1]
    assert asked[:4] == ("across", "down", "neither", "across")
    text = (run.folder / "out" / "report.html").read_text()
    assert "recognised as the class asked for" in text and "not recognised" in text


def test_the_pictures_to_learn_from_are_named(run):
    (run.folder / "experiment.json").unlink()
    specs = [str(run.folder / split) for split in ("train", "test")]
    result, _ = recognition.evaluate("model", run.folder, run.folder / "out", 30, specs)
    assert run.learned == [((64, 16, 16, 3), 3, 16)] and "classifier" in result["figures"]
    assert result["classifier"]["test"]["source"]["folder"] == specs[1]
    result, _ = recognition.evaluate("model", run.folder, run.folder / "out", 30, specs[:1])
    assert not {"classifier", "fcd_of_real"} & set(result["figures"]) and result["figures"]["fcd_of_blurred"]["value"] > 0


def test_too_few_pictures(run):
    with pytest.raises(UserError, match="3 pictures are too few to compare: draw at least 4"):
        recognition.evaluate("model", run.folder, run.folder / "out", 3)
    with pytest.warns(UserWarning, match="30 pictures for 128 features: .* FCD is far too high"):
        recognition.evaluate("model", run.folder, run.folder / "out", 30)


def test_labels_that_are_no_classes_are_refused_before_a_step():
    wrong = {"image": np.zeros((2, 16, 16, 3), np.uint8), "label": np.array([0, 2])}
    with pytest.raises(UserError, match="label 2, and there are 2 classes"):
        train_classifier(iter([wrong]), 2, 16, steps=1)


def test_runs_that_no_classifier_can_judge(run, tmp_path):
    def refused(message, folder=run.folder, data=()):
        with pytest.raises(UserError, match=message):
            recognition.evaluate("model", folder, tmp_path / "out", data=data)

    refused("there is no experiment.json", tmp_path / "train")
    config.save(Experiment(task=GeneratorTask(), data=Data()), run.folder / "experiment.json")
    refused("has no labels. Name the labelled pictures to train a classifier on")
    refused("no labels", data=[str(tmp_path / "train"), "shapes:test"])
    refused("name the pictures to train on and", data=["a", "b", "c"])
    run.model.labels = ("down", "across", "neither")
    refused("has other classes than the model, or in another order: across, down", data=[str(tmp_path / "train")])
    run.model.tokenizer.config.image_size = 8
    refused("multiples of 16, this model draws 8 x 8")
    run.model.tokenizer = None
    refused("no tokenizer to draw pictures with")
    run.model.config.condition = TextCondition()
    refused("this one takes texts")
