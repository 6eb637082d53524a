"""NAR: our numbers against those of its published code."""

import json

import numpy as np
import pytest
import teacher
from safetensors.numpy import load_file

import mmgen
from mmgen.model import transformer
from mmgen.pretrained import export, nar

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(parity, tmp_path_factory):
    folder, out = parity("nar"), tmp_path_factory.mktemp("nar") / "model"
    config = json.loads((folder / "meta.json").read_text())["config"]
    gen = mmgen.convert("nar", folder / "model.safetensors", out=out, config=config)
    return folder, out, dict(np.load(folder / "io.npz")), gen


def close(ours, theirs):
    """1e-4 relative to the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_attention_rule(fixture):
    _, _, io, gen = fixture
    plan = transformer.build_plan(gen.config)
    order = np.concatenate([[0], 1 + plan.source[1:]])  # the published code has its slots in raster order
    slot = np.arange(plan.slots)
    assert (plan.allow(slot, slot) == io["proximity_mask"][np.ix_(order, order)]).all()


def test_hidden_states_logits_loss_and_gradients(fixture):
    _, _, io, gen = fixture
    batch = {"ids": io["idx"], "label": io["cond"]}
    close(gen.logits(io["idx"], labels=io["cond"]), io["train_logits"])
    states, source = teacher.hidden_states(gen.config, gen.params, batch), transformer.build_plan(gen.config).source
    heads = transformer.ends_of(gen.config, gen.params).heads
    for i, name in enumerate(("h_norm", "h_medusa_norm")):
        close(heads[f"head{i}"].features(states[i]), io[name][:, 1 + source])
    value, grads = teacher.loss_and_gradients(gen.config, gen.params, batch)
    np.testing.assert_allclose(value, io["loss"], rtol=1e-5)
    theirs = nar.to_reference(gen.config, grads)
    named = [name for name in io if name.startswith("grad::")]
    assert len(named) == 2
    for name in named:
        close(theirs[name.removeprefix("grad::")], io[name])
    np.testing.assert_allclose(np.sqrt(sum(np.square(g).sum() for g in theirs.values())), io["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("guidance", [1, 3])
def test_greedy_tokens_in_2n_minus_1_forwards(fixture, guidance):
    _, _, io, gen = fixture
    out = gen.generate(labels=io["cond"], top_k=1, guidance=float(guidance))
    assert (out.tokens == io[f"gen_cfg{guidance}"]).all() and out.forwards == 7


def test_round_trip_is_bitwise(fixture, tmp_path):
    folder, out, _, _ = fixture
    export(mmgen.load(out), tmp_path, "nar")
    original, back = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert original.keys() == back.keys()
    assert all(original[name].tobytes() == back[name].tobytes() for name in original)


@pytest.mark.parametrize("size", nar.SIZES)
def test_full_size_presets(parity, size):
    """Names and shapes of the published weights, without allocating."""
    table = json.loads((parity("keys") / f"nar_c2i_{size}.json").read_text())["keys"]
    assert nar.reference_shapes(nar.preset(size)) == {key: tuple(shape) for key, (_, shape) in table.items()}
