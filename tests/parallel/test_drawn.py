"""Several devices draw what one draws: each its own pictures, or some of them one together."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from drawn import CASES, drawn, otherwise
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan

import mmgen
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig, Masked, NextToken

SCRIPT = Path(__file__).parent / "drawn.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Sharp distributions, so that wrong numbers give other tokens; heads that share keys."""
    network = mt.CNN(channels=4, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, attention_levels=(), middle_blocks=0,
                     middle_attention=False, latent=4, groups=2, stem=4)  # fmt: skip
    config = mt.VQGAN(network, mt.VQ(size=16, dim=4), image_size=16)
    tokenizer = mt.Tokenizer(config, vqgan.init(config, jax.random.key(1)))
    folder, block = tmp_path_factory.mktemp("drawn"), BlockConfig(width=32, heads=4, kv_heads=2, mlp=16)
    for name, plan in (("next", NextToken()), ("masked", Masked(steps=3))):
        config = GeneratorConfig(plan=plan, layout=tokenizer.layout, condition=ClassCondition(3), block=block, depth=1)
        params = transformer.init(config, jax.random.key(0))
        noisy = jax.tree.map(lambda x: np.asarray(x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)), params)
        Generator(config, noisy, tokenizer).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def one(models):
    found = {name: drawn(mmgen.load(models / name, "float32")) for name in ("next", "masked")}
    found["next"] |= otherwise(mmgen.load(models / "next", "float32"), found["next"]["tokens"])
    return found


@pytest.fixture(scope="module")
def four(models, tmp_path_factory):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment, out = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, tmp_path_factory.mktemp("four")
    done = subprocess.run([sys.executable, SCRIPT, models, out], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return {case: np.load(out / f"{case[0]}{case[1]}.npz") for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_devices_draw_what_one_draws(one, four, case):
    (name, tensor), found = case, four[case]
    assert found["devices"] == 4 and found["piece"] == 1 / tensor
    for array in ("tokens", "codes"):
        np.testing.assert_array_equal(found[array], one[name][array])
    np.testing.assert_allclose(found["images"], one[name]["images"], rtol=1e-4, atol=1e-4)


def test_devices_that_share_a_picture_decode_in_parallel_and_tell_its_likelihood(one, four):
    found, one = four["next", 2], one["next"]
    for name in ("jacobi", "stream"):
        np.testing.assert_array_equal(found[name], one[name])
        np.testing.assert_array_equal(one[name], one["tokens"][: len(one[name])])
    assert found["forwards"] == one["forwards"] < 16
    np.testing.assert_allclose(found["likelihood"], one["likelihood"], rtol=1e-5)


def test_devices_that_cannot_be_shared_are_refused(models):
    with pytest.raises(UserError, match="--mesh.tensor 2 does not divide the 1 devices of this process: one of 1"):
        mmgen.load(models / "next", tensor=2)
