"""The judge of class-conditional models learns what can be told apart, and counts what it recognises."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmgen_tokenizers.pictures import to_float

from mmgen.evaluation.classifier import fcd, recognised, train_classifier


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
    return train_classifier(stream(0), classes=3, size=16, steps=20)


def test_it_learns_and_is_deterministic(trained):
    unseen = next(stream(1))
    assert np.mean(trained(unseen["image"]) == unseen["label"]) > 0.9
    guesses = [train_classifier(stream(0), classes=3, size=16, steps=2)(unseen["image"]) for _ in range(2)]
    np.testing.assert_array_equal(*guesses)


def test_fcd_of_known_answers(trained):
    """Unseen pictures are nearest, then those with one class too few, then blurred ones, then noise."""

    def draw(seed, labels):
        return bars(np.array(labels), np.random.default_rng(seed))

    reference, unseen = draw(2, [0, 1, 2] * 40), draw(3, [0, 1, 2] * 40)
    across = np.pad(unseen.astype(float), ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
    blurred = np.mean([across[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)], 0).astype(np.uint8)
    noise = np.random.default_rng(4).integers(0, 256, unseen.shape, np.uint8)
    found = [fcd(trained, x, reference) for x in (unseen, draw(5, [0, 1] * 60), blurred, noise)]
    values = [figure["value"] for figure in found]
    assert values == sorted(values) and values[1] > 3 * values[0] and values[3] > 2 * values[2]
    assert abs(fcd(trained, reference, reference)["value"]) < 1e-6
    assert all(figure["interval"][0] < figure["value"] < figure["interval"][1] for figure in found)
    features = trained.features(unseen)
    assert features.shape == (120, 128) and (features >= 0).all()


def test_recognised():
    def generate(labels, seed):
        return SimpleNamespace(images=to_float(np.repeat(labels, 4 * 4 * 3).reshape(-1, 4, 4, 3).astype(np.uint8)))

    generator = SimpleNamespace(null_label=3, generate=generate)
    pictures, labels, right = recognised(generator, lambda pictures: pictures[:, 0, 0, 0] // 2 * 2, count=9)
    assert labels.tolist() == [0, 1, 2] * 3 and pictures.shape == (9, 4, 4, 3)
    assert right.tolist() == [True, False, True] * 3
