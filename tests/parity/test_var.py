"""VAR: our numbers against those of its published code."""

import json

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
import teacher
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import to_uint8
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ
from safetensors.numpy import load_file

import mmgen
from mmgen.decoding.target import Filter, target
from mmgen.model import transformer
from mmgen.pretrained import export, var

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["var", "var_shared_aln"])
def fixture(request, parity, tmp_path_factory):
    folder, out = parity(request.param), tmp_path_factory.mktemp(request.param)
    config = json.loads((folder / "meta.json").read_text())["config"]
    vae = parity("var_vqvae")
    its_config = json.loads((vae / "meta.json").read_text())["config"]
    mt.convert("var-vqvae", vae / "vae.safetensors", out=out / "vae", config=its_config)
    weights = next(path for path in folder.glob("*.safetensors"))
    gen = mmgen.convert("var", weights, out=out / "model", config=config, tokenizer=out / "vae")
    return weights, out, dict(np.load(folder / "io.npz")), gen


def close(ours, theirs):
    """1e-4 relative to the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_inputs_hidden_states_and_logits(fixture):
    _, _, io, gen = fixture
    ends = transformer.ends_of(gen.config, gen.params)
    read = gen.tokenizer.next_input(io["ids"][:, : gen.config.layout.prefixes[-2]])
    close(read, io["var_input"])
    plan = transformer.build_plan(gen.config)
    slots = transformer.slots_of(plan, transformer.plan_batch(gen.config, {}))
    content = type(slots)(*(array[:, 1:] for array in slots))
    embedded = io["var_input"] @ np.asarray(ends.input.embed[...]) + np.asarray(ends.input.bias[...])
    close(ends.input(jnp.asarray(io["ids"]), content), embedded)
    states = teacher.hidden_states(gen.config, gen.params, {"ids": io["ids"], "label": io["label"]})
    close(states[-1], io["h_block1"])
    close(gen.logits(io["ids"], labels=io["label"]), io["logits"])
    close(gen.logits(io["ids"], labels=[gen.null_label] * 2), io["logits_uncond"])


def test_loss_and_gradients(fixture):
    _, _, io, gen = fixture
    batch = {"ids": io["ids"], "label": io["label"]}
    value, grads = teacher.loss_and_gradients(gen.config, gen.params, batch)
    np.testing.assert_allclose(value, io["loss"], rtol=1e-5)
    theirs = {name: g for name, g in var.to_reference(gen.config, grads).items() if name not in BUFFERS}
    named = [name for name in io if name.startswith("grad::")]
    assert len(named) == 3
    for name in named:
        close(theirs[name.removeprefix("grad::")], io[name])
    np.testing.assert_allclose(np.sqrt(sum(np.square(g).sum() for g in theirs.values())), io["grad_norm"], rtol=1e-4)


BUFFERS = ("lvl_1L", "attn_bias_for_masking")


@pytest.mark.parametrize("cfg", [1.5, 4.0])
def test_greedy_tokens_and_pictures(fixture, cfg):
    _, _, io, gen = fixture
    out = gen.generate(labels=io["label"], top_k=1, top_p=1.0, guidance=1 + cfg, guidance_schedule="linear")
    assert (out.tokens == io[f"gen_cfg{cfg}_ids"]).all() and out.forwards == 4
    picture = io[f"gen_cfg{cfg}_image"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose((out.images + 1) / 2, picture, atol=1e-4)
    assert to_uint8(out.images).std() > 1


def test_sampler_filters(fixture):
    _, _, io, _ = fixture
    cases = [name for name in io if name.startswith("probs_")]
    for name in cases:
        k, p = (float(part[1:]) for part in name.split("_")[1:])
        scores = target(jnp.asarray(io["filter_logits"]), None, 1.0, 1.0, p or 1.0, Filter(False, int(k), p > 0))
        np.testing.assert_allclose(jax.nn.softmax(scores, -1), io[name], atol=1e-6)


def test_round_trip_is_bitwise(fixture, tmp_path):
    weights, out, _, _ = fixture
    export(mmgen.load(out / "model"), tmp_path, "var")
    original, back = load_file(weights), load_file(tmp_path / "model.safetensors")
    assert original.keys() == back.keys()
    assert all(original[name].tobytes() == back[name].tobytes() for name in original)


def test_a_tokenizer_is_needed_and_must_fit(fixture, tmp_path):
    weights, out, *_ = fixture
    with pytest.raises(UserError, match="needs its tokenizer"):
        mmgen.convert("var", weights, out=tmp_path / "x")
    with pytest.raises(UserError, match="the config has patch_nums .1, 2., but here it is"):
        mmgen.convert("var", weights, out=tmp_path / "x", config={"patch_nums": [1, 2]}, tokenizer=out / "vae")


@pytest.mark.parametrize("size", ["d16", "d20", "d24", "d30", "d36"])
def test_full_size_presets(parity, size):
    """Names and shapes of the published weights, without allocating."""
    table = json.loads((parity("keys") / f"var_{size}.json").read_text())["keys"]
    scales = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) if size == "d36" else MultiScaleVQ().scales
    codec = mt.MultiScale(quantizer=MultiScaleVQ(scales=scales), image_size=16 * scales[-1])
    assert var.reference_shapes(var.preset(size, codec)) == {key: tuple(shape) for key, (_, shape) in table.items()}
