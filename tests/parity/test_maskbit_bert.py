"""MaskBit's generator: our numbers against those of its published code."""

import json

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
import teacher
from mmgen_tokenizers.errors import UserError
from safetensors.numpy import load_file, save_file

import mmgen
from mmgen.cli import main as cli
from mmgen.decoding.autoregressive import Request, Settings, decode_params
from mmgen.decoding.masked import MaskedRounds
from mmgen.decoding.target import Filter
from mmgen.model import transformer
from mmgen.model.attention import attend
from mmgen.model.config import Masked
from mmgen.model.masking import hidden_share
from mmgen.pretrained import export, maskbit

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def fixture(parity, tmp_path_factory):
    folder, out = parity("maskbit_bert"), tmp_path_factory.mktemp("maskbit") / "model"
    config = json.loads((folder / "meta.json").read_text())["config"]
    config = {name: value for name, value in config.items() if name not in maskbit.IGNORED}
    weights = folder / "model.safetensors"
    with pytest.raises(UserError, match="no published MaskBit has width 64: pass config heads"):
        mmgen.convert("maskbit", weights, out=out)
    gen = mmgen.convert("maskbit", weights, out=out, config=config)
    return weights, out, dict(np.load(folder / "io.npz")), gen


def close(ours, theirs):
    """1e-4 relative to the largest value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def class_first(states):
    """The published code has the class behind the picture."""
    return np.concatenate([states[:, -1:], states[:, :-1]], axis=1)


def test_inputs_and_hidden_states(fixture):
    _, _, io, gen = fixture
    c, batch = gen.config, {"ids": io["masked_tokens"], "label": io["labels"]}
    plan, ends = transformer.build_plan(c), transformer.ends_of(c, gen.params)
    slots = transformer.slots_of(plan, transformer.plan_batch(c, batch))
    content = type(slots)(*(array[:, 1:] for array in slots))
    read = io["token_bits"] @ np.asarray(ends.input.map[...]) + np.asarray(ends.input.bias[...])
    close(ends.input(jnp.asarray(io["masked_tokens"]), content), read)
    x = transformer.embed(ends, batch, plan, slots)
    close(x, class_first(io["h_first"]))
    layer = transformer.layer_of(c, jax.tree.map(lambda a: a[0], gen.params["blocks"]))

    def see_all(q, k, v):
        return attend(q, k, v, jnp.ones((1, 1, 17, 17), bool))

    close(jax.jit(lambda x: layer.norm_attention(x + layer.attention(x, None, see_all)))(x), class_first(io["h_attn0"]))
    close(jax.jit(lambda x: layer(x, None, see_all))(x), class_first(io["h_ffn0"]))
    states = teacher.hidden_states(c, gen.params, batch)
    close(states[0], class_first(io["h_ffn1"]))
    close(ends.heads["head0"].features(states[0]), class_first(io["h_last"]))


def test_logits(fixture):
    _, _, io, gen = fixture
    close(gen.logits(io["masked_tokens"], labels=io["labels"]), io["logits"])
    close(gen.logits(io["tokens"], labels=io["labels"]), io["logits_clean"])
    dropped = np.where(io["drop_label_mask"], gen.null_label, io["labels"])
    close(gen.logits(io["masked_tokens"], labels=dropped), io["logits_drop"])


def test_losses_and_mask_ratios(fixture, monkeypatch):
    _, _, io, gen = fixture
    monkeypatch.setattr(transformer, "holes", lambda plan, shape, key: jnp.asarray(io["mask"]))
    batch = {"ids": io["tokens"], "label": io["labels"]}
    for weight, name in ((1.0, "loss"), (0.0, "loss_masked_only")):
        c = gen.config.__class__(**{**vars(gen.config), "plan": Masked(embedding="bits", visible_weight=weight)})
        np.testing.assert_allclose(transformer.loss(c, gen.params, batch)[0], io[name], rtol=1e-5)
    for schedule in ("arccos", "cosine"):
        share = hidden_share(Masked(schedule), jnp.arange(1, 9) / 8)
        np.testing.assert_allclose(share, io[f"mask_ratio_{schedule}"], rtol=1e-5, atol=1e-6)


def test_every_round_of_greedy_decoding(fixture):
    """With another temperature in each round: 0.5 + 0.8 (1 - progress)."""
    _, _, io, gen = fixture
    names = ("", "_scale", "_confidence", "_final_ids")
    theirs, scale, confidence, final = (io[f"gen_cfg2_linear_anneal{name}"] for name in names)
    decoder, which, T = MaskedRounds(gen.config, jnp.float32), Filter(True, 1, False), len(scale)
    params = decode_params(gen.config, gen.params, jnp.float32)
    batch = {"label": jnp.concatenate([io["labels"], np.full(3, gen.null_label)])}

    @jax.jit
    def step(t, tokens):
        settings = Settings(jnp.asarray(1 + scale), 0.5 + 0.8 * (1 - (t + 1) / T), jnp.float32(1), jnp.float32(0))
        request = Request(params, batch, jnp.arange(3), jax.random.key(0), settings, which)
        return decoder.round(request, jnp.full(3, 32), t, tokens)

    tokens = jnp.full((3, 16, 2), 32)
    for t in range(T):
        tokens = step(t, tokens)
        kept = np.asarray(tokens) < 32
        assert (np.asarray(tokens) == theirs[:, t])[kept].all()
        fixed = confidence[:, t + 1] > 1e29 if t + 1 < T else np.ones((3, 32), bool)
        assert (kept.reshape(3, -1) == fixed).all()
    assert ((np.asarray(tokens) << np.array([0, 5])).sum(-1) == final).all()


def test_greedy_tokens(fixture):
    """The recommended schedule: guidance s of theirs is 1 + s of ours."""
    _, _, io, gen = fixture
    ask = dict(choice_temperature=0.0, top_k=1)
    guided = gen.generate(labels=io["labels"], guidance=8.1, guidance_schedule=("power_cosine", 3.0), steps=8, **ask)
    assert (guided.tokens == io["gen_cfg7_cosine3"][:, -1]).all() and guided.forwards == 8
    assert (gen.generate(labels=io["labels"], guidance=1.0, steps=4, **ask).tokens == io["gen_nocfg"][:, -1]).all()
    assert gen.config.plan.schedule == "arccos" and gen.sampling.guidance == 7.4 and gen.config.plan.steps == 64


def test_round_trip_is_bitwise(fixture, tmp_path):
    weights, out, _, _ = fixture
    original = load_file(weights)
    keys = original["transformer.layers.0.0.mha.in_proj_bias"][64:128]
    assert keys.any()  # they change nothing, and are given back
    export(mmgen.load(out), tmp_path, "maskbit")
    back = load_file(tmp_path / "model.safetensors")
    assert original.keys() == back.keys()
    assert all(original[name].tobytes() == back[name].tobytes() for name in original)


def test_the_command_tells_generator_from_tokenizer_and_groups_its_bits(fixture, parity, tmp_path, capsys):
    weights, _, io, gen = fixture
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model": {"vq_model": {"codebook_size": 1024}, "mlm_model": {"heads": 4, "depth": 2}}}))
    tokenizer, out = tmp_path / "tokenizer", tmp_path / "model"
    its = {**json.loads((parity("maskbit") / "meta.json").read_text())["config"], "resolution": 16}
    (tmp_path / "vq.json").write_text(json.dumps(its))
    vq = str(parity("maskbit") / "model.safetensors")
    assert cli.main(["convert", "maskbit", vq, "--out", str(tokenizer), "--config", str(tmp_path / "vq.json")]) == 0
    assert mt.load(tokenizer).layout.groups == 1
    asked = ["convert", "maskbit", str(weights), "--out", str(out), "--config", str(config), "--tokenizer", str(tokenizer)]
    assert cli.main(asked) == 0, capsys.readouterr().err
    loaded = mmgen.load(out)
    assert loaded.config == gen.config and loaded.tokenizer.layout.groups == 2
    whole = (io["tokens"] << np.array([0, 5])).sum(-1)
    pictures = loaded.tokenizer.decode(io["tokens"])
    np.testing.assert_allclose(pictures, mt.load(tokenizer).decode(whole), atol=1e-5)


def test_what_does_not_fit_is_refused(fixture, tmp_path):
    weights, out, _, gen = fixture
    for config, words in (
        ({"heads": 4, "hidden_dim": 32}, "has hidden_dim 32, but here it is 64"),
        ({"heads": 4, "num_step": 3}, "unknown config key 'num_step'.*num_steps"),
        ({"heads": 4, "guidance_annealing": "linear"}, "pass guidance= an array"),
        ({"heads": 4, "gen_mask_schedule_strategy": "root"}, "root is not one of cosine, linear, arccos"),
    ):
        with pytest.raises(UserError, match=words):
            mmgen.convert("maskbit", weights, out=tmp_path / "x", config=config)
    for name, words in (("input_proj.weight", "no MaskBit generator"), ("input.weight", "is it a tokenizer of maskbit")):
        save_file({name: np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=words):
            mmgen.convert("maskbit", tmp_path / "other.safetensors", out=tmp_path / "x")
    with pytest.raises(UserError, match="LlamaGen's code has no model"):
        export(gen, tmp_path, "llamagen")
    with pytest.raises(UserError, match="MaskBit's code has no model"):
        maskbit.to_reference(gen.config.__class__(**{**vars(gen.config), "plan": Masked()}), gen.params)


@pytest.mark.parametrize("size", maskbit.SIZES)
def test_full_size_presets(fixture, size):
    """The fixture's names, and the paper's 305 million parameters, without allocating."""
    shapes, bits = maskbit.reference_shapes(maskbit.preset(size)), int(size[:2])
    names = {name for name in load_file(fixture[0]) if not name.startswith("transformer.layers.1.")}
    assert shapes.keys() == {name.replace("layers.0.", f"layers.{i}.") for name in names for i in range(24)}
    assert shapes["input_proj.weight"] == (1024, bits) and shapes["prediction_layer.weight"] == (2 * 2 ** (bits // 2), 1024)
    assert sum(np.prod(shape) for shape in shapes.values()) / 1e6 == pytest.approx(305, abs=1.5)
