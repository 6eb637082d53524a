"""The experiments that come with the project: each is valid, and generators fit their tokenizers."""

import ast
from pathlib import Path

import jax
import pytest
from mmgen_tokenizers.api import family_of
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.pretrained import llamagen

from mmgen import config, families
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


@pytest.mark.parametrize("family", families.FAMILIES)
def test_there_is_one_of_each_family(family, tmp_path):
    experiment = config.load_experiment(EXPERIMENTS / "tokenizers" / f"{family}.py")
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == experiment == families.experiment(family)
    jax.eval_shape(lambda: family_of(experiment.task.model)[1].init(experiment.task.model, jax.random.key(0)))


@pytest.mark.parametrize("bits", families.BITS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_families_hold_the_same_bits(family, bits):
    assert families.bits_of(families.model(family, bits)) == pytest.approx(bits, rel=0.05)


def test_families_that_are_not_there_are_named():
    with pytest.raises(UserError, match="vq, ibq, .* at 256, 512"):
        families.model("vqvae")
    with pytest.raises(UserError, match="at 256, 512, 640, 1024 bits"):
        families.model("vq", 500)


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
