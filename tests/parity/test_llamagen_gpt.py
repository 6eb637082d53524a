"""LlamaGen's GPT: our numbers against those of its published code."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teacher
from safetensors.numpy import load_file

import mmgen
from mmgen.decoding.target import Filter, target
from mmgen.model import transformer
from mmgen.model.config import ClassCondition, FeatureCondition
from mmgen.plan import PlanBatch
from mmgen.pretrained import export, llamagen

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=["c2i", "t2i"])
def fixture(request, parity, tmp_path_factory):
    folder, out = parity(f"llamagen_gpt_{request.param}"), tmp_path_factory.mktemp(request.param) / "model"
    io = dict(np.load(folder / "io.npz"))
    config = json.loads((folder / "meta.json").read_text())["config"]
    gen = mmgen.convert("llamagen-gpt", folder / "model.safetensors", out=out, config=config)
    if request.param == "c2i":
        condition, raw = {"labels": io["cond"]}, {"label": io["cond"]}
    else:
        condition = {"features": io["caption"], "features_mask": io["emb_mask"]}
        raw = {"features": io["caption"], "features_valid": io["emb_mask"]}
    return folder, out, io, gen, condition, raw


def close(ours, theirs):
    """1e-4 relative to the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_hidden_states_and_logits(fixture):
    _, _, io, gen, condition, raw = fixture
    close(gen.logits(io["idx"], **condition), io["train_logits"])
    for depth in (1, 2):
        part = replace(gen.config, depth=depth)
        params = gen.params | {"blocks": jax.tree.map(lambda p: p[:depth], gen.params["blocks"])}  # noqa: B023
        states = teacher.hidden_states(part, params, raw | {"ids": io["idx"]})
        close(states[-1], io[f"h_layer{depth - 1}"])
    ends = transformer.ends_of(gen.config, gen.params)
    plan = transformer.build_plan(gen.config)
    slots = transformer.slots_of(plan, PlanBatch())
    close(transformer.embed(ends, raw | {"ids": io["idx"]}, plan, slots), io["h_embed"])
    close(ends.heads["head0"].features(states[-1]), io["h_norm"])
    if "eval_logits" in io:
        close(gen.logits(io["idx"], **condition), io["eval_logits"][:, plan.combine_slot[:, 0]])


def test_loss_and_gradients(fixture):
    _, _, io, gen, _, raw = fixture
    keep = io.get("valid", np.ones(len(io["idx"]), int)).astype(bool)
    batch = {name: value[keep] for name, value in (raw | {"ids": io["idx"]}).items()}
    value, grads = teacher.loss_and_gradients(gen.config, gen.params, batch)
    np.testing.assert_allclose(value, io["loss"], rtol=1e-5)
    theirs = llamagen.to_reference(gen.config, grads)
    named = [name for name in io if name.startswith("grad::")]
    assert named
    for name in named:
        close(theirs[name.removeprefix("grad::")], io[name])
    frozen = np.square(theirs.pop("cls_embedding.uncond_embedding", np.zeros(1))).sum()
    assert frozen == 0
    np.testing.assert_allclose(np.sqrt(sum(np.square(g).sum() for g in theirs.values())), io["grad_norm"], rtol=1e-4)


def test_greedy_tokens(fixture):
    _, _, io, gen, condition, _ = fixture
    for name, settings in (("gen_cfg1", {"guidance": 1.0}), ("gen_cfg3", {"guidance": 3.0})):
        assert (gen.generate(**condition, top_k=1, **settings).tokens == io[name]).all()
    if "gen_cfg3_nomask" in io:
        out = gen.generate(features=io["caption"], top_k=1, guidance=3.0)
        assert (out.tokens == io["gen_cfg3_nomask"]).all() and out.forwards == 16
    if "gen_cfg3_interval5" in io:  # LlamaGen counts the tokens after the first
        interval = np.where(np.arange(16) <= 6, 3.0, 1.0)
        assert (gen.generate(**condition, top_k=1, guidance=interval).tokens == io["gen_cfg3_interval5"]).all()


def test_null_class(fixture):
    _, _, io, gen, _, _ = fixture
    if "cond" not in io:
        with pytest.raises(mmgen_error(), match="features"):
            gen.null_label  # noqa: B018
        return
    null = np.full(3, gen.null_label)
    close(gen.logits(io["idx"], labels=null), io["eval_logits_uncond"][:, :-1])
    with pytest.raises(mmgen_error(), match="0 .. 9"):
        gen.generate(labels=null)


def mmgen_error():
    from mmgen_tokenizers.errors import UserError

    return UserError


def test_round_trip_is_bitwise(fixture, tmp_path):
    folder, out, *_ = fixture
    export(mmgen.load(out), tmp_path / "back", "llamagen")
    original, back = load_file(folder / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert original.keys() == back.keys()
    assert all(original[name].tobytes() == back[name].tobytes() for name in original)


def test_a_checkpoint_that_does_not_fit_is_listed_by_name(fixture, tmp_path):
    from safetensors.numpy import save_file

    folder, *_ = fixture
    config = json.loads((folder / "meta.json").read_text())["config"]
    state = load_file(folder / "model.safetensors")
    state["layers.0.attention.wo.weight"] = state["layers.0.attention.wo.weight"][:, :5].copy()
    state["surprise"] = state.pop("norm.weight")
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(mmgen_error()) as error:
        mmgen.convert("llamagen-gpt", tmp_path / "broken.safetensors", out=tmp_path / "x", config=config)
    for word in ("norm.weight", "surprise", "layers.0.attention.wo.weight"):
        assert word in str(error.value)
    with pytest.raises(mmgen_error(), match="n_layer"):
        mmgen.convert("llamagen-gpt", folder / "model.safetensors", out=tmp_path / "x", config=config | {"n_layers": 2})
    with pytest.raises(mmgen_error(), match="the config has n_layer 99, but here it is"):
        mmgen.convert("llamagen-gpt", folder / "model.safetensors", out=tmp_path / "x", config=config | {"n_layer": 99})


def test_sampler_filters(parity):
    io = dict(np.load(parity("llamagen_gpt_c2i") / "io.npz"))
    cases = [name for name in io if name.startswith("probs_")]
    assert len(cases) == 5
    for name in cases:
        k, p, t = (float(part[1:]) for part in name.split("_")[1:])
        scores = target(jnp.asarray(io["filter_logits"]), None, 1.0, t, p, Filter(False, int(k), p < 1))
        np.testing.assert_allclose(jax.nn.softmax(scores, -1), io[name], atol=1e-6)


@pytest.mark.parametrize("name", ["c2i_GPT-B", "c2i_GPT-L", "c2i_GPT-XL", "c2i_GPT-XXL", "c2i_GPT-3B", "t2i_GPT-XL"])
def test_full_size_presets(parity, name):
    """Names and shapes of the published weights, without allocating."""
    table = json.loads((parity("keys") / f"llamagen_{name}.json").read_text())["keys"]
    condition = FeatureCondition() if name.startswith("t2i") else ClassCondition()
    ours = llamagen.reference_shapes(llamagen.preset(name[4:], condition))
    assert ours == {key: tuple(shape) for key, (_, shape) in table.items()}
