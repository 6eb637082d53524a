"""Several devices draw what one draws: each its own pictures, or some of them one together."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from drawn import drawn, otherwise
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan

import mmgen
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig

SCRIPT = Path(__file__).parent / "drawn.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Sharp distributions, so that wrong numbers give other tokens; heads that share keys."""
    network = mt.CNN(channels=4, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, attention_levels=(), middle_blocks=0,
                     middle_attention=False, latent=4, groups=2, stem=4)  # fmt: skip
    config = mt.VQGAN(network, mt.VQ(size=16, dim=4), image_size=16)
    tokenizer = mt.Tokenizer(config, vqgan.init(config, jax.random.key(1)))
    block = BlockConfig(width=32, heads=4, kv_heads=2, mlp=16)
    config = GeneratorConfig(layout=tokenizer.layout, condition=ClassCondition(3), block=block, depth=1)
    params = transformer.init(config, jax.random.key(0))
    noisy = jax.tree.map(lambda x: np.asarray(x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)), params)
    folder = tmp_path_factory.mktemp("drawn") / "model"
    Generator(config, noisy, tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def one(model):
    generator = mmgen.load(model, "float32")
    found = drawn(generator)
    return found | otherwise(generator, found["tokens"])


@pytest.fixture(scope="module")
def four(model, tmp_path_factory):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment, out = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, tmp_path_factory.mktemp("four")
    done = subprocess.run([sys.executable, SCRIPT, model, out], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return {tensor: np.load(out / f"{tensor}.npz") for tensor in (1, 2)}


@pytest.mark.parametrize("tensor", [1, 2])
def test_devices_draw_what_one_draws(one, four, tensor):
    found = four[tensor]
    assert found["devices"] == 4 and found["piece"] == 1 / tensor
    for name in ("tokens", "codes"):
        np.testing.assert_array_equal(found[name], one[name])
    np.testing.assert_allclose(found["images"], one["images"], rtol=1e-4, atol=1e-4)


def test_devices_that_share_a_picture_decode_in_parallel_and_tell_its_likelihood(one, four):
    found = four[2]
    for name in ("jacobi", "stream"):
        np.testing.assert_array_equal(found[name], one[name])
        np.testing.assert_array_equal(one[name], one["tokens"][: len(one[name])])
    assert found["forwards"] == one["forwards"] < 16
    np.testing.assert_allclose(found["likelihood"], one["likelihood"], rtol=1e-5)


def test_devices_that_cannot_be_shared_are_refused(model):
    with pytest.raises(UserError, match="--mesh.tensor 2 does not divide the 1 devices of this process: 1 do"):
        mmgen.load(model, tensor=2)
