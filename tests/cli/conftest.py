"""Models as small as they go, with random weights: the commands are tested, not the pictures."""

from pathlib import Path

import jax
import mmgen_tokenizers as mt
import pytest
from mmgen_tokenizers.families import vqgan

from mmgen.data.text import TextTokenizer
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig, Masked, NextToken, Sampling, TextCondition

LABELS = ("cat", "dog", "eel")
VOCABULARY = 32


@pytest.fixture(scope="session")
def tokenizer() -> mt.Tokenizer:
    """8 x 8 pixels, 2 x 2 ids of 32 codes."""
    config = mt.VQGAN(
        network=mt.CNN(channels=4, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, attention_levels=(), middle_blocks=0,
                       middle_attention=False, latent=4, groups=2, stem=4),
        quantizer=mt.VQ(size=32, dim=4),
        image_size=8,
    )  # fmt: skip
    return mt.Tokenizer(config, vqgan.init(config, jax.random.key(0)))


def generator(tokenizer: mt.Tokenizer, condition: ClassCondition | TextCondition, plan=None, **more) -> Generator:
    # LlamaGen knows no other for classes.
    plan = plan or NextToken("none" if isinstance(condition, ClassCondition) else "diagonal")
    block = BlockConfig(width=8, heads=1, mlp=8)
    config = GeneratorConfig(plan=plan, layout=tokenizer.layout, condition=condition, block=block, depth=1)
    fresh = transformer.init(config, jax.random.key(1))  # whose head gives every token the same logit
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), fresh)
    return Generator(config, params, tokenizer, **more)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def class_folder(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classes"
    generator(tokenizer, ClassCondition(len(LABELS)), labels=LABELS).save(folder)
    return folder


@pytest.fixture(scope="session")
def masked_folder(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "masked"
    generator(tokenizer, ClassCondition(len(LABELS)), Masked(steps=2), labels=LABELS).save(folder)
    return folder


@pytest.fixture(scope="session")
def text_folder(tokenizer, tmp_path_factory) -> Path:
    """A run folder, of which the commands take export/."""
    folder = tmp_path_factory.mktemp("models") / "run"
    text = TextTokenizer.train(["a red circle", "a blue square"] * 8, VOCABULARY)
    condition = TextCondition(vocabulary=VOCABULARY, length=6)
    generator(tokenizer, condition, text=text, sampling=Sampling(guidance=2.0)).save(folder / "export")
    return folder
