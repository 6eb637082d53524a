"""The experiments that come with the project: each is valid, and generators fit their tokenizers."""

import ast
from pathlib import Path

import jax
import pytest
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.pretrained import llamagen

from mmgen import config
from mmgen.config import TokenizerTask
from mmgen.model import transformer

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
FOLDERS = sorted(path.parent.name for path in EXPERIMENTS.glob("*/tokenizer.py"))


def test_these_are_the_experiments():
    assert FOLDERS == ["emoji", "fashion_mnist", "shapes"]


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_it_loads_and_survives_json(folder, kind, tmp_path):
    experiment = config.load_experiment(EXPERIMENTS / folder / f"{kind}.py")
    assert isinstance(experiment.task, TokenizerTask) == (kind == "tokenizer")
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == experiment
    assert experiment.validation is not None


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_generator_fits_the_tokenizer(folder):
    tokenizer = config.load_experiment(EXPERIMENTS / folder / "tokenizer.py")
    generator = config.load_experiment(EXPERIMENTS / folder / "generator.py")
    layout = generator.task.model.layout
    side = tokenizer.task.model.image_size // tokenizer.task.model.network.factor
    assert (layout.height, layout.width, layout.codebook_size) == (side, side, tokenizer.task.model.quantizer.size)
    assert tokenizer.data.size == generator.data.size == tokenizer.task.model.image_size
    assert generator.task.tokenizer == f"runs/{folder}_tokenizer"  # where `mmgen train` puts it
    jax.eval_shape(lambda: transformer.init(generator.task.model, jax.random.key(0)))


def test_llamagen_fits_its_published_tokenizer(tmp_path):
    experiment = config.load_experiment(EXPERIMENTS / "imagenet256" / "llamagen_b.py")
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == experiment
    model, published = experiment.task.model, llamagen.PRESETS["VQ-16"]
    assert model.layout == vqgan.layout(published, experiment.data.size, experiment.data.size)
    params = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(110.9e6, rel=1e-3)
    assert experiment.steps == 1_501_367 and experiment.task.sampling.guidance == 2


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_docstring_says_how_to_run_it(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"mmgen train experiments/{path.parent.name}/" in text or f"python experiments/{path.parent.name}/" in text
