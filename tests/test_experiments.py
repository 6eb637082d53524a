"""The experiments that come with the project: each is valid, and generators fit their tokenizers."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from mmgen_tokenizers.api import family_of
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pretrained import llamagen, maskgit
from mmgen_tokenizers.pretrained import var as var_vqvae

from mmgen import config, families
from mmgen.config import TokenizerTask
from mmgen.model import transformer
from mmgen.training.generator_task import _check_codes
from mmgen.training.optimizer import learning_rate

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
FOLDERS = sorted(path.parent.name for path in EXPERIMENTS.glob("*/tokenizer.py"))


def test_these_are_the_experiments():
    assert FOLDERS == ["emoji", "emoji_1024", "fashion_mnist", "shapes"]


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


# Tokenizer, parameters as published, steps, guidance, the learning rate of the published code at 1/4, 5/8 and the end.
IMAGENET256 = {
    "llamagen_b": (llamagen.PRESETS["VQ-16"], 110.9e6, 1_501_367, 2.0, (1e-4, 1e-4, 1e-4)),
    "nar_b": (llamagen.PRESETS["VQ-16"], 130.6e6, 1_501_367, 2.0, (1e-4, 2e-5, 8e-7)),
    "rar_b": (maskgit.PRESETS["maskgit-f16-256"], 260.9e6, 250_000, 16.0, (4e-4, 2.05e-4, 1e-5)),
    "var_d16": (var_vqvae.PRESETS["VAR"], 310.3e6, 333_637, 2.5, (2.475e-4, 1.388e-4, 3e-5)),
}


def size_of(model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))))


@pytest.mark.parametrize("name", IMAGENET256)
def test_a_recipe_fits_its_published_tokenizer(name, tmp_path):
    experiment = config.load_experiment(EXPERIMENTS / "imagenet256" / f"{name}.py")
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == experiment
    published, parameters, steps, guidance, rates = IMAGENET256[name]
    model, size = experiment.task.model, experiment.data.size
    assert size == published.image_size and model.layout == family_of(published)[1].layout(published, size, size)
    _check_codes(model.plan, name, SimpleNamespace(config=published))
    assert size_of(model) == pytest.approx(parameters, rel=0.01)  # RAR's tables have rows that no slot reads
    assert (experiment.steps, experiment.task.sampling.guidance) == (steps, guidance)
    rate = learning_rate(experiment.optimizer.schedule, steps)
    assert [float(rate(steps * at)) for at in (1 / 4, 5 / 8, 1)] == pytest.approx(rates, rel=2e-3)


@pytest.mark.parametrize("name", IMAGENET256)
def test_a_recipe_says_what_it_costs(name):
    path = EXPERIMENTS / "imagenet256" / f"{name}.py"
    experiment = config.load_experiment(path)
    model, pictures = experiment.task.model, experiment.steps * experiment.batch
    seconds = 6 * size_of(model) * model.layout.sites * pictures / (0.35 * 989e12)
    said = re.search(r"pictures: (\d+) hours of one H200 at 35% of its 989 TFLOP/s", path.read_text())
    assert int(said[1]) == pytest.approx(seconds / 3600, abs=1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("imagenet256/llamagen_3b", 3.096e9), ("imagenet256/var_d30", 2.0093e9), ("text256/parti_20b", 20.48e9)],
)
def test_presets_at_scale_have_their_size(name, parameters, tmp_path):
    """And rows of a batch for each device of the pods in their docstrings."""
    experiment = config.load_experiment(EXPERIMENTS / f"{name}.py")
    config.save(experiment, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == experiment
    params = jax.eval_shape(lambda: transformer.init(experiment.task.model, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(parameters, rel=2e-3)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_docstring_says_how_to_run_it(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert f"mmgen train experiments/{path.parent.name}/" in text or f"python experiments/{path.parent.name}/" in text
