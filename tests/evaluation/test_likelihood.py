"""Bits of pictures, against sums over what the model says of each token."""

import json

import jax
import mmgen_tokenizers as mt
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import write_png
from mmgen_tokenizers.shards import ShardWriter

import mmgen
from mmgen.cli import main as cli
from mmgen.evaluation import likelihood
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig

SIDE, COUNT = 2, 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of pixels, 2 x 2 of three bytes each, with random weights."""
    tokenizer = mt.Tokenizer(mt.Pixels(image_size=SIDE), {})
    block = BlockConfig(width=8, heads=1, mlp=8)
    config = GeneratorConfig(layout=tokenizer.layout, condition=ClassCondition(2), block=block, depth=1)
    folder = tmp_path_factory.mktemp("model")
    Generator(config, jax.tree.map(np.asarray, plans.parameters(config)), tokenizer, labels=("a", "b")).save(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One folder a class; and uint8 [5, 2, 2, 3] with their labels in the order of the folder."""
    folder, made = (
        tmp_path_factory.mktemp("pictures"),
        np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8),
    )
    for i, picture in enumerate(made):
        write_png(folder / "ab"[i >= 3] / f"{i}.png", picture)
    return folder, made, np.array([0, 0, 0, 1, 1])


def by_hand(generator, tokens, labels):
    """Bits of each picture, from the logits of each token."""
    logits = generator.logits(tokens, labels=labels).astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, np.asarray(tokens)[..., None], -1)
    return -np.log2(chosen).reshape(len(tokens), -1).sum(1)


def evaluate(*arguments) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


def test_bits_of_pixels(model, pictures, tmp_path, monkeypatch, capsys):
    folder, made, labels = pictures
    monkeypatch.setattr(likelihood, "ROWS", 2)  # the last piece is shorter
    assert evaluate(model, "--likelihood", folder, "--out", tmp_path) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    bits = by_hand(mmgen.load(model), made.reshape(COUNT, SIDE * SIDE, 3), labels)
    figures = found["figures"]
    assert figures["bits_per_picture"]["value"] == pytest.approx(bits.mean(), rel=1e-6)
    assert figures["bits_per_dimension"]["value"] == pytest.approx(bits.mean() / (SIDE * SIDE * 3), rel=1e-6)
    assert figures["bits_per_dimension"]["dimensions"] == 12 and found["replaced"] == 0
    low, high = figures["bits_per_picture"]["interval"]
    assert bits.min() < low < bits.mean() < high < bits.max()
    assert found["pictures"] == COUNT and found["condition"] == "labels" and "bits a dimension" in capsys.readouterr().out
    assert evaluate(model, "--likelihood", folder, "--out", tmp_path, "-n", 2) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["pictures"] == 2


def test_of_grey_pictures_a_dimension_is_a_pixel(model, tmp_path):
    """And one that cannot be read is replaced by the next one, which is told."""
    for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 1), np.uint8)):
        write_png(tmp_path / "ab"[i >= 2] / f"{i}.png", picture.repeat(3, -1))
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning) as warned:
        found = likelihood.evaluate(model, str(tmp_path), tmp_path / "out")
    assert any("bits a dimension are of 4 pixels" in str(one.message) for one in warned)
    bits, dimension = (found["figures"][name] for name in ("bits_per_picture", "bits_per_dimension"))
    assert dimension["value"] == pytest.approx(bits["value"] / 4) and dimension["dimensions"] == 4
    assert found["replaced"] == 1 and found["pictures"] == 4


def test_copies_share_the_program(model, pictures):
    generator = mmgen.load(model)
    tokens = generator.tokenizer.encode(pictures[1])
    for one in (generator, generator.copied(generator.params)):
        one.log_likelihood(tokens, labels=pictures[2])
    (program,) = generator._programs.compiled.values()
    assert program._cache_size() == 1



def test_probabilities_of_all_pictures_sum_to_one():
    """Of 5^4 sequences, with an order that predicts several sites at once."""
    neighbor = plans.config("neighbor")
    layout = mt.TokenLayout(height=2, width=2, codebook_size=5)
    config = GeneratorConfig(neighbor.plan, layout, ClassCondition(3), neighbor.block)
    every = np.stack(np.meshgrid(*[np.arange(5)] * 4, indexing="ij"), -1).reshape(-1, 4)
    found = Generator(config, plans.parameters(config)).log_likelihood(every, labels=[1] * len(every))
    assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)


def test_tokens_that_are_no_pixels_give_no_dimensions(tmp_path):
    layout = mt.TokenLayout(height=2, width=2, codebook_size=5)
    config = GeneratorConfig(layout=layout, condition=ClassCondition(3), block=BlockConfig(width=8, heads=1, mlp=8), depth=1)
    generator = Generator(config, jax.tree.map(np.asarray, plans.parameters(config)))
    generator.save(tmp_path / "model")
    ids, labels = np.random.default_rng(0).integers(0, 5, (4, 4)), [0, 1, 2, 0]
    with ShardWriter(tmp_path / "shards", "somebody", layout) as writer:
        for row, label in zip(ids, labels, strict=True):
            writer.add(np.stack([row, row[::-1]]), label=label)  # the first crop is taken
    found = likelihood.evaluate(tmp_path / "model", str(tmp_path / "shards"), tmp_path)["figures"]
    bits = by_hand(generator, ids, labels).mean()
    assert {name: figure["value"] for name, figure in found.items()} == pytest.approx(
        {"bits_per_picture": bits, "bits_per_token": bits / 4}, rel=1e-6
    )
    palette = mt.Tokenizer(mt.Pixels(((0, 0, 0), (255, 255, 255)), 2), {})
    assert likelihood.dimensions(Generator(config, generator.params, palette)) is None


def test_what_cannot_be_said(model, pictures, tmp_path, capsys):
    def refused(*arguments) -> str:
        assert evaluate(*arguments) == 2
        return capsys.readouterr().err

    folder, made, _ = pictures
    write_png(tmp_path / "plain" / "a.png", made[0])
    masked = plans.config("masked")
    Generator(masked, transformer.init(masked, jax.random.key(0))).save(tmp_path / "masked")
    assert "a masked model predicts tokens in no order" in refused(tmp_path / "masked", "--likelihood", folder)
    with pytest.raises(UserError, match="it gives no likelihood"):
        mmgen.load(tmp_path / "masked").log_likelihood(np.zeros((1, 16), int), labels=[0])
    assert "reads a label with each picture, and" in refused(model, "--likelihood", tmp_path / "plain")
    assert "no such folder" in refused(model, "--likelihood", tmp_path / "none")
    assert "--temperature cannot be given with --likelihood" in refused(model, "--likelihood", folder, "--temperature", 1)
    assert "--seed cannot be given with --likelihood" in refused(model, "--likelihood", folder, "--seed", 1)
    assert "--data-dir cannot be given with anything but --likelihood" in refused(model, "--data-dir", folder)
