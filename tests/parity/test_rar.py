"""RAR: our numbers against those of its published code."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher
from mmgen_tokenizers.errors import UserError
from safetensors.numpy import load_file

import mmgen
from mmgen.decoding.target import guidance_schedule
from mmgen.model import transformer
from mmgen.model.attention import attend
from mmgen.model.config import RandomOrder
from mmgen.model.orders import in_orders
from mmgen.pretrained import export, rar

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(parity, tmp_path_factory):
    folder, out = parity("rar"), tmp_path_factory.mktemp("rar") / "model"
    config = json.loads((folder / "meta.json").read_text())["config"]
    gen = mmgen.convert("rar", folder / "model.safetensors", out=out, config=config)
    return folder, out, dict(np.load(folder / "io.npz")), gen


def close(ours, theirs):
    """1e-4 relative to the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_inputs_and_modulators(fixture):
    """The published code also computes the last token's slot, which predicts nothing."""
    _, _, io, gen = fixture
    plan, batch = transformer.build_plan(gen.config), {"ids": io["ids"], "label": io["labels"]}
    ends = transformer.ends_of(gen.config, gen.params)
    slots = transformer.slots_of(plan, transformer.plan_batch(gen.config, batch))
    close(transformer.embed(ends, batch, plan, slots), io["x_in"][:, :-1])
    for modulator in ends.modulators(gen.config, batch, slots):
        close(modulator, jax.nn.silu(io["c_in"][:, :-1]))


def test_hidden_states(fixture):
    _, _, io, gen = fixture
    first = jax.tree.map(lambda a: a[0], gen.params["blocks"])
    layer, x, condition = transformer.layer_of(gen.config, first), io["x_in"][:, :-1], jax.nn.silu(io["c_in"][:, :-1])
    normed = layer.branches(condition)[0](layer.norm_attention(x))
    close(layer.attention(normed, None, lambda q, k, v: attend(q, k, v, None)), io["h_attn0"][:, :-1])
    close(layer(x, None, lambda q, k, v: attend(q, k, v, None), condition=condition), io["h_block0"][:, :-1])
    states = teacher.hidden_states(gen.config, gen.params, {"ids": io["ids"], "label": io["labels"]})
    close(states[0], io["h_block1"][:, :-1])
    head = transformer.ends_of(gen.config, gen.params).heads["head0"]
    close(head.features(states[0], condition)[:, 1:], io["h_final"][:, :-1])


def test_logits_and_losses_in_raster_order_and_in_each_samples_own(fixture):
    _, _, io, gen = fixture
    close(gen.logits(io["ids"], labels=io["labels"]), io["logits_raster"][:, :-1])
    close(gen.logits(io["ids"], labels=[gen.null_label] * 3), io["logits_raster_uncond"][:, :-1])
    raster = {"ids": io["ids"], "label": io["labels"]}
    own = in_orders(gen.config, raster, jnp.asarray(io["orders"]))
    assert (own["ids"] == io["labels_perm"]).all()
    close(transformer.forward(gen.config, gen.params, own), io["logits_perm"][:, :-1])
    loss = jax.jit(lambda params, batch: transformer.loss(gen.config, params, batch))
    for batch, name in ((raster, "raster"), (own, "perm")):
        value, metrics = loss(gen.params, batch)
        np.testing.assert_allclose(value, io[f"loss_{name}"], rtol=1e-5)
        if name == "raster":
            np.testing.assert_allclose(metrics["accuracy"], io["correct_tokens_raster"], rtol=1e-5)


@pytest.mark.parametrize("name", ["cfg16_pow2.75", "cfg4_pow1_t1.05", "cfg1", "nocfg"])
def test_greedy_tokens(fixture, name):
    _, _, io, gen = fixture
    scale, power, temperature = {
        "cfg16_pow2.75": (16, 2.75, 1.0), "cfg4_pow1_t1.05": (4, 1.0, 1.05), "cfg1": (1, 1.0, 1.0), "nocfg": (1, 2.75, 1.02)
    }[name]  # fmt: skip
    schedule = ("power_cosine", power)
    if len(theirs := io[f"gen_{name}_cfg_per_step"]):
        np.testing.assert_allclose(guidance_schedule(schedule, scale, 16), theirs, rtol=1e-5)
    out = gen.generate(labels=io["labels"], top_k=1, guidance=scale, guidance_schedule=schedule, temperature=temperature)
    assert (out.tokens == io[f"gen_{name}"]).all() and out.forwards == 16


def test_share_of_random_orders(fixture):
    _, _, io, _ = fixture
    plan = RandomOrder(anneal=(10 / 40, 30 / 40))
    np.testing.assert_allclose([plan.random_share(step / 40) for step in range(0, 41, 4)], io["random_ratio"], atol=1e-6)


def test_round_trip_is_bitwise(fixture, tmp_path):
    folder, out, _, _ = fixture
    export(mmgen.load(out), tmp_path, "rar")
    original, back = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert original.keys() == back.keys()
    assert all(original[name].tobytes() == back[name].tobytes() for name in original)


def test_a_model_without_unread_rows_is_exported_with_zeros(fixture):
    folder, _, _, gen = fixture
    ends = {name: value for name, value in gen.params["ends"].items() if name != "unread"}
    back = rar.to_reference(dataclasses.replace(gen.config, unread=0), {**gen.params, "ends": ends})
    original = load_file(folder / "model.safetensors")
    assert {name: array.shape for name, array in back.items()} == {name: array.shape for name, array in original.items()}
    differ = [name for name in original if (back[name] != original[name]).any()]
    assert sorted(differ) == ["embeddings.weight", "pos_embed", "target_aware_pos_embed", "timesteps_embeddings"]


def test_recommended_sampling(fixture):
    folder, _, _, gen = fixture
    assert (gen.sampling.guidance, gen.sampling.guidance_schedule) == (16.0, ("power_cosine", 2.75))
    assert rar._recommended(24, 1024)["guidance_scale"] == 15.5
    state = load_file(folder / "model.safetensors")
    assert rar.configure(state, {"guidance_scale": 0.0})[1].guidance == rar.configure(state, None)[1].guidance == 1.0
    with pytest.raises(UserError, match="rar: config guidance_scale is 'much', but must be a number"):
        rar.configure(state, {"model": {"generator": {"guidance_scale": "much"}}})


def test_what_does_not_fit_is_refused(fixture, tmp_path):
    folder, _, _, gen = fixture
    weights = folder / "model.safetensors"
    with pytest.raises(UserError, match="the config has hidden_size 768, but here it is 64"):
        mmgen.convert("rar", weights, out=tmp_path / "x", config={"hidden_size": 768})
    with pytest.raises(UserError, match="unknown config key 'guidance'.*guidance_scale"):
        mmgen.convert("rar", weights, out=tmp_path / "x", config={"guidance": 768})
    with pytest.raises(UserError, match="no target_aware_pos_embed: it is no RAR"):
        mmgen.convert("rar", folder.parent / "nar" / "model.safetensors", out=tmp_path / "x")
    for format, words in (("llamagen", "LlamaGen's code has no model"), ("var", "VAR's code has no model")):
        with pytest.raises(UserError, match=words):
            export(gen, tmp_path, format)
    changed = dataclasses.replace(gen.config, block=dataclasses.replace(gen.config.block, norm="rms"))
    with pytest.raises(UserError, match="RAR's code has no model"):
        rar.to_reference(changed, gen.params)


@pytest.mark.parametrize(("size", "millions"), [("B", 260.9), ("L", 461.7), ("XL", 955.4), ("XXL", 1498.5)])
def test_full_size_presets(fixture, size, millions):
    """The fixture's names, and the paper's number of parameters, without allocating."""
    shapes = rar.reference_shapes(rar.preset(size))
    layers = rar.SIZES[size][0]
    names = {name for name in load_file(fixture[0] / "model.safetensors") if not name.startswith("blocks.1.")}
    names = {name.replace("blocks.0.", f"blocks.{i}.") for name in names for i in range(layers)}
    assert shapes.keys() == names and shapes["pos_embed"] == (1, 1280, rar.SIZES[size][1])
    assert sum(np.prod(shape) for shape in shapes.values()) / 1e6 == pytest.approx(millions, abs=0.06)
