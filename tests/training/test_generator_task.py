"""Training a generator: conditions, ids, the decay mask, files."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import multiscale, vqgan
from mmgen_tokenizers.files import flatten, load_arrays, read_json
from mmgen_tokenizers.pictures import write_png
from models import LAYOUT, VQGAN, generator_experiment, write_shards

import mmgen
from mmgen import config
from mmgen.cli import main as cli
from mmgen.config import Data, ImageFolder, Shapes, overrides
from mmgen.data import shapes
from mmgen.data.text import TextTokenizer, empty_prompt
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, FeatureCondition, GeneratorConfig, NextScale, TextCondition
from mmgen.training import generator_task, loop
from mmgen.training.generator_task import GeneratorTraining, _check_codes, decayed, settled
from mmgen.training.metrics import read_metrics
from mmgen.training.state import abstract_state, initial_state
from mmgen.training.step import gradients, make_step

SHAPES = Data(Shapes("train", 40), size=32)
TEXT = TextCondition(vocabulary=48, length=16)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    mt.Tokenizer(VQGAN, vqgan.init(VQGAN, jax.random.key(0))).save(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


def batch_of(task) -> dict:
    """Of the shapes and types that `inputs` tells before there are data."""
    batch = task.prepare(next(task.training_batches(0)))
    told = {name: (x.shape, x.dtype) for name, x in task.inputs().items()}
    assert told == {name: (x.shape, x.dtype) for name, x in batch.items()}
    return batch


def test_labels_are_dropped_at_the_asked_rate(shards, tmp_path):
    task = GeneratorTraining(generator_experiment(shards, dropout=0.25), tmp_path)
    batch = {"ids": jnp.zeros((4000, 4), jnp.int32), "label": jnp.zeros(4000, jnp.int32)}
    dropped = task.drop_condition(batch, jax.random.key(0))["label"]
    assert set(np.unique(dropped)) == {0, 3} and abs(float((dropped == 3).mean()) - 0.25) < 0.03


def test_prompts_become_the_empty_prompt(tokenizer_folder, tmp_path):
    task = GeneratorTraining(generator_experiment(SHAPES, TEXT, str(tokenizer_folder), dropout=0.5), tmp_path)
    batch = task.with_ids(task.frozen, batch_of(task))
    ids, valid = task.text.encode([""], TEXT.length)
    np.testing.assert_array_equal(np.stack([ids, valid]), np.stack(empty_prompt(TEXT.length)))
    out = task.drop_condition(batch, jax.random.key(3))
    null = (np.asarray(out["prompt"]) == ids).all(1)
    assert 0 < null.sum() < 4
    np.testing.assert_array_equal(np.asarray(out["prompt_valid"])[null], np.repeat(valid, null.sum(), 0))
    np.testing.assert_array_equal(np.asarray(out["prompt"])[~null], batch["prompt"][~null])


def test_pictures_are_encoded_in_the_step_as_the_tokenizer_does(tokenizer_folder, tmp_path):
    task = GeneratorTraining(generator_experiment(SHAPES, TEXT, str(tokenizer_folder)), tmp_path)
    raw = next(task.training_batches(0))
    inside = jax.jit(task.with_ids)(task.frozen, task.prepare(raw))
    assert "image" not in inside
    np.testing.assert_array_equal(inside["ids"], mt.load(tokenizer_folder).encode(raw["image"]))


def test_pixels_are_tokens_too(tmp_path):
    """The loss is the exact likelihood: at the start 8 bits each of three values a pixel."""
    tok = mt.Tokenizer(mt.Pixels(), {})
    tok.save(tmp_path / "pixels")
    chosen = generator_experiment(SHAPES, TEXT, str(tmp_path / "pixels"))
    model = replace(chosen.task.model, layout=tok.layout)
    task = GeneratorTraining(replace(chosen, task=replace(chosen.task, model=model)), tmp_path)
    raw = next(task.training_batches(0))
    batch = task.with_ids(task.frozen, task.prepare(raw))
    np.testing.assert_array_equal(batch["ids"], raw["image"].reshape(4, 1024, 3))
    params = transformer.init(model, jax.random.key(0))
    metrics = jax.jit(lambda p, b: transformer.loss(model, p, b)[1])(params, batch)
    np.testing.assert_allclose(metrics["loss"] / np.log(2), 8, rtol=1e-6)


def test_the_text_model_learns_without_pictures(tokenizer_folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(shapes, "draw", lambda *args, real=shapes.draw: drawn.append(args) or real(*args))
    task = GeneratorTraining(generator_experiment(SHAPES, TEXT, str(tokenizer_folder)), tmp_path)
    task.check()
    assert len(drawn) == 1  # to see what the data have
    captions = [task.source.caption(i) for i in range(len(task.source))]
    assert len(drawn) == 1 and len(set(captions)) > 30
    assert task.text.model == TextTokenizer.train(captions, TEXT.vocabulary).model


def test_a_picture_without_a_caption_is_refused(tmp_path):
    partly = write_shards(tmp_path / "shards", captions=["a red circle"] * 15)  # the last of 16 has none
    with pytest.raises(UserError, match="some pictures of the data have no caption"):
        GeneratorTraining(generator_experiment(partly, TEXT), tmp_path).check()
    TextTokenizer.train(["a red circle"], 48).save(tmp_path)
    task = GeneratorTraining(generator_experiment(partly, TEXT, batch=16), tmp_path)
    with pytest.raises(UserError, match="some pictures of the data have no caption"):
        batch_of(task)


def test_decay_mask_does_not_count_the_axis_of_layers():
    for condition in (ClassCondition(3), FeatureCondition(width=5, length=2)):
        mask = decayed(transformer.axes(GeneratorConfig(layout=LAYOUT, condition=condition, depth=2)))
        assert mask["blocks"]["q"] and mask["blocks"]["down"] and not mask["blocks"]["norm_mlp"]["scale"]
        assert mask["ends"]["input"]["table"] and not mask["ends"]["heads"]["head0"]["norm"]["scale"]
    assert mask["ends"]["condition"]["fc1"] and not mask["ends"]["condition"]["null"]


def test_no_place_decays():
    block = BlockConfig(width=8, heads=2, mlp=8, position="learned", modulation="slot")
    mask = flatten(decayed(transformer.axes(GeneratorConfig(layout=LAYOUT, condition=ClassCondition(3), block=block, depth=2))))
    places = {name for name in mask if name.startswith(("ends.places", "ends.number"))}
    assert len(places) >= 2 and not any(mask[name] for name in places) and mask["ends.condition.table"]


def test_no_bias_decays():
    block = BlockConfig(width=8, heads=2, mlp=8, bias=True, qk_norm=True, norm="layer", modulation="block")
    mask = flatten(decayed(transformer.axes(GeneratorConfig(layout=LAYOUT, condition=ClassCondition(3), block=block, depth=2))))
    biases = {name for name in mask if name.endswith("bias")}
    assert {f"blocks.{name}_bias" for name in ("q", "k", "v", "up", "out", "modulation")} < biases
    assert not any(mask[name] for name in biases) and mask["blocks.q"] and mask["blocks.modulation"]


def test_what_the_model_marks_as_frozen_gets_no_gradient(shards, tmp_path):
    task = GeneratorTraining(generator_experiment(shards), tmp_path)
    condition = FeatureCondition(width=5, length=2)
    task.config = GeneratorConfig(layout=LAYOUT, condition=condition, block=task.config.block, depth=1)
    params = transformer.init(task.config, jax.random.key(0))
    grads = jax.grad(lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(task._trained(p))))(params)
    assert not grads["ends"]["condition"]["null"].any() and grads["ends"]["condition"]["fc1"].all()


def test_a_class_conditional_run_learns_resumes_and_exports(shards, tmp_path, monkeypatch):
    def run(name, steps):
        fields = {"accumulate": 2, "ema": 0.9, "batch": 8, "validation": shards, "every_checkpoint": 20}
        chosen = generator_experiment(shards, steps=steps, **fields)
        return mmgen.train(chosen, tmp_path / name)

    run("stopped", 20)
    run("stopped", 40)
    result = run("straight", 40)
    losses = [[e["loss"] for e in read_metrics(tmp_path / name) if "loss" in e] for name in ("stopped", "straight")]
    assert losses[0] == losses[1] and len(losses[0]) == 40
    assert losses[1][0] == pytest.approx(np.log(32), rel=0.05) and result.metrics["validation/loss"] < 2.9
    generator = mmgen.load(tmp_path / "straight")
    exports = [load_arrays(tmp_path / name / "export") for name in ("stopped", "straight")]  # the second one was written twice
    jax.tree.map(np.testing.assert_array_equal, *exports)
    assert generator.labels == ("cat", "dog", "eel") and generator.weights == "ema"
    assert generator.generate(labels=["dog", "cat"], num=2).tokens.shape == (4, 4)
    assert not (tmp_path / "straight/previews").exists()  # nothing turns these ids into pictures
    monkeypatch.setattr(generator_task, "opened", None)  # a checkpoint is exported without the data
    assert loop.export(tmp_path / "straight", tmp_path / "last") == 40
    assert mmgen.load(tmp_path / "last").labels == generator.labels
    assert cli.main(["export", str(tmp_path / "straight"), "--out", str(tmp_path / "best"), "--checkpoint", "best"]) == 0
    held_out = {e["step"]: e["validation/loss"] for e in read_metrics(tmp_path / "straight") if "validation/loss" in e}
    assert list(held_out) == [20, 40] and read_json(tmp_path / "best/step.json")["step"] == min(held_out, key=held_out.get)
    assert mmgen.load(tmp_path / "best").generate(labels=["dog"], seed=3).tokens.shape == (1, 4)


def test_the_state_is_float32_whatever_a_step_computes_in(shards, tmp_path):
    """So that a run can go on in bfloat16, and back."""
    states = []
    for name in ("float32", "bfloat16"):
        chosen = generator_experiment(shards, compute_dtype=name, ema=0.9)
        task = GeneratorTraining(chosen, tmp_path)
        optimizer = task.optimizer(chosen)
        state = abstract_state(task, optimizer, 0, True)
        states += [state, jax.eval_shape(make_step(chosen, task, optimizer), state, task.frozen, task.inputs())[0]]
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(state)] for state in states]
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]
    assert "bfloat16" in str(jax.make_jaxpr(task.validate)(states[3].params, {}, {}, task.inputs()))


def test_a_masked_run_learns_and_fills_the_holes(shards, tmp_path):
    """Nine of the 32 codes are used."""
    chosen = generator_experiment(shards, steps=60, batch=8, validation=shards)
    fields = ["--task.model.plan.kind", "Masked", "--task.model.plan.steps", "3", "--task.model.plan.smoothing", "0"]
    result = mmgen.train(overrides(chosen, fields), tmp_path / "run")
    assert np.log(3) < result.metrics["validation/loss"] < 2.5
    generator = mmgen.load(result.folder)
    out = generator.generate(labels=["cat", "eel"], num=8, guidance=2.0)
    assert out.forwards == 3 and out.tokens.shape == (16, 4)
    assert (out.tokens < 32).all() and (out.tokens % 10 < 3).mean() > 0.8


def random_orders(shards, **fields) -> mmgen.Experiment:
    chosen = generator_experiment(shards, batch=8, **fields)
    return overrides(chosen, ["--task.model.plan.kind", "RandomOrder", "--task.model.plan.anneal", "0.4,0.8"])


def test_a_run_in_random_orders_learns(shards, tmp_path):
    mmgen.train(random_orders(shards, steps=40), tmp_path / "run")
    losses = [e["loss"] for e in read_metrics(tmp_path / "run") if "loss" in e]
    assert losses[0] == pytest.approx(np.log(32), rel=0.05) and np.mean(losses[-5:]) < 2.9
    assert mmgen.load(tmp_path / "run").config.plan.anneal == (0.4, 0.8)


def test_orders_go_by_the_step_and_end_as_raster(shards, tmp_path):
    chosen = random_orders(shards, steps=10, dropout=0.0)
    still = replace(chosen.task.model, dropout=Dropout())
    task = GeneratorTraining(replace(chosen, task=replace(chosen.task, model=still)), tmp_path)
    params, batch = plans.randomized(transformer.init(still, jax.random.key(0))), batch_of(task)
    gradients = jax.jit(lambda key, step: task.gradients(params, {}, {}, batch, key, step)[2]["loss"])
    keys = jax.random.split(jax.random.key(0))
    first, again, other, late = (gradients(keys[i], step) for i, step in ((0, 0), (0, 0), (1, 0), (0, 8)))
    raster = jax.jit(task.validate)(params, {}, {}, batch)["loss"]
    assert first == again and len({float(first), float(other), float(raster)}) == 3
    np.testing.assert_allclose(late, raster, rtol=1e-5)


def test_a_text_conditional_run(tokenizer_folder, tmp_path):
    moved = tmp_path / "tokenizer"
    mt.load(tokenizer_folder).save(moved)
    chosen = generator_experiment(SHAPES, TEXT, str(moved), steps=2, validation=Data(Shapes("test", 20), size=32))
    mmgen.train(chosen, tmp_path / "run")
    moved.rename(tmp_path / "elsewhere")  # the run has its own copy
    result = mmgen.train(chosen, tmp_path / "run")
    assert {"validation/loss", "validation/accuracy", "tokens_per_second"} <= result.metrics.keys()
    assert [path.name for path in (tmp_path / "run/previews").iterdir()] == ["step-0000002.png"]
    generator = mmgen.load(result.folder)
    assert generator.generate(prompts="a red circle").images.shape == (1, 32, 32, 3)
    assert generator.text.vocabulary == TextTokenizer.load(tmp_path / "run").vocabulary <= 48


def test_another_experiment_may_replace_one_that_never_began(shards, tmp_path):
    with pytest.raises(UserError, match="set task.model.condition.classes"):
        mmgen.train(generator_experiment(shards, ClassCondition(2)), tmp_path)
    loop.claim(tmp_path, generator_experiment(shards, ClassCondition(3)))
    assert config.load(tmp_path / "experiment.json").task.model.condition.classes == 3


def test_what_does_not_fit_is_refused(shards, tokenizer_folder, tmp_path):
    other = write_shards(tmp_path / "other", layout=mt.TokenLayout(height=4, width=4, codebook_size=32))
    for chosen, words in (
        (generator_experiment(SHAPES, TEXT), "pictures need a tokenizer"),
        (generator_experiment(SHAPES, TEXT, str(tmp_path / "nowhere")), "task.tokenizer"),
        (generator_experiment(SHAPES, ClassCondition(3), str(tokenizer_folder)), "have none"),
        (generator_experiment(shards, TEXT), "have no captions"),
        (generator_experiment(shards, FeatureCondition()), "not trained"),
        (generator_experiment(other), "gives 4 x 4 = 16 ids of 32 codes, the model expects 2 x 2"),
        (generator_experiment(shards, tokenizer=str(tokenizer_folder)), "made by tokenizer somebody"),
        (generator_experiment(Data(Shapes(count=4), size=64), TEXT, str(tokenizer_folder)), "gives 4 x 4 = 16 ids"),
    ):
        with pytest.raises(UserError, match=words):
            mmgen.train(chosen, tmp_path / "run")


def test_next_scale_prediction_needs_the_quantizer_of_its_tokenizer(tmp_path):
    quantizer = mt.MultiScaleVQ(size=32, dim=4, scales=(1, 2), phis=2)
    tok = mt.Tokenizer(mt.MultiScale(VQGAN.network, quantizer, image_size=32), {})
    chosen = generator_experiment(write_shards(tmp_path / "shards", layout=tok.layout))
    model = replace(chosen.task.model, plan=NextScale(quantizer), layout=tok.layout)
    with pytest.raises(UserError, match="set task.tokenizer to its folder"):
        mmgen.train(replace(chosen, task=replace(chosen.task, model=model)), tmp_path / "run")
    with pytest.raises(UserError, match="the tokenizer x has .*phis=2.* the model expects .*phis=1"):
        _check_codes(NextScale(replace(quantizer, phis=1)), "x", tok)
    _check_codes(NextScale(quantizer), "x", tok)


def test_next_scale_prediction_takes_the_scales_of_its_tokenizer(tmp_path, tokenizer_folder):
    """`--task.model.plan.kind NextScale` is all that has to be said."""
    quantizer = mt.MultiScaleVQ(size=32, dim=4, scales=(1, 2), phis=2)
    scales = mt.MultiScale(VQGAN.network, quantizer, image_size=32)
    tok = mt.Tokenizer(scales, multiscale.init(scales, jax.random.key(0)))
    tok.save(tmp_path / "scales")
    chosen = overrides(
        generator_experiment(SHAPES, TEXT, str(tmp_path / "scales")), ["--task.model.plan.kind", "NextScale"]
    )
    found = settled(chosen, tmp_path / "run").task.model
    assert found.plan == NextScale(quantizer) and found.layout == tok.layout
    assert settled(replace(chosen, task=replace(chosen.task, model=found)), tmp_path / "run").task.model == found
    single = replace(chosen, task=replace(chosen.task, tokenizer=str(tokenizer_folder)))
    assert settled(single, tmp_path / "run") == single  # which is refused: it has one scale


def test_accumulation_gives_the_gradients_of_the_large_batch(shards, tmp_path):
    chosen = generator_experiment(shards, dropout=0.0, batch=8)
    still = replace(chosen.task.model, dropout=Dropout())
    task = GeneratorTraining(replace(chosen, task=replace(chosen.task, model=still)), tmp_path)
    state, batch = initial_state(task, task.optimizer(chosen), 0, False), batch_of(task)
    run = jax.jit(gradients, static_argnums=(0, 5))
    whole, parts = (run(task, state, {}, batch, jax.random.key(0), n)[0] for n in (1, 4))
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), whole, parts)


def test_validation_data_of_other_classes_are_refused(shards, tmp_path):
    other = write_shards(tmp_path / "other", labels=("cat", "dog", "fox"))
    with pytest.raises(UserError, match="other classes .eel, fox in one of them only"):
        mmgen.train(generator_experiment(shards, validation=other), tmp_path / "run")


def test_validation_data_may_lack_a_class_of_numbers(tokenizer_folder, tmp_path):
    data = [Data(ImageFolder(str(tmp_path / name))) for name in ("train", "test")]
    for name, labels in (("train", "012"), ("test", "01")):
        for label in labels:
            write_png(tmp_path / name / f"{label}.png", np.zeros((8, 8, 3), np.uint8))
        lines = [f'{{"file_name": "{label}.png", "label": {label}}}' for label in labels]
        (tmp_path / name / "metadata.jsonl").write_text("\n".join(lines))
    chosen = generator_experiment(data[0], tokenizer=str(tokenizer_folder), validation=data[1])
    GeneratorTraining(chosen, tmp_path / "run").check()


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    nameless = write_shards(tmp_path / "shards", labels=None)
    with pytest.raises(UserError, match="label 2: set task.model.condition.classes, now 2, to more"):
        mmgen.train(generator_experiment(nameless, ClassCondition(2), batch=16), tmp_path / "run")
