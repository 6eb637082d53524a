"""A generator's training that starts from another one: its weights, its classes, its words, and what stays frozen."""

from dataclasses import replace

import jax
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import flatten, load_arrays
from models import generator_experiment, write_shards

import mmgen
from mmgen.cli import main as cli
from mmgen.config import overrides
from mmgen.data.text import TextTokenizer
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, TextCondition
from mmgen.training.generator_task import GeneratorTraining
from mmgen.training.inherit import class_rows, fitted, told
from mmgen.training.state import abstract_state, initial_state

IDS = np.array([[1, 30, 4, 7]])
TEXT = TextCondition(vocabulary=24, length=12)


def generator(condition=ClassCondition(3), labels=("cat", "dog", "eel"), text=None) -> Generator:
    model = generator_experiment(None, condition).task.model
    return Generator(model, plans.randomized(transformer.init(model, jax.random.key(7))), text=text, labels=labels)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("source") / "model", generator()
    made.save(folder)
    return folder, made


def experiment(data, folder, condition=ClassCondition(3), frozen=(), **fields) -> mmgen.Experiment:
    chosen = generator_experiment(data, condition, **fields)
    return replace(chosen, task=replace(chosen.task, start_from=str(folder), frozen=frozen))


def started(chosen: mmgen.Experiment, folder) -> Generator:
    """The model before the first step."""
    task = GeneratorTraining(chosen, folder)
    task.check()
    state = initial_state(task, task.optimizer(chosen), 0, False)
    return Generator(task.config, jax.device_get(state.params), text=task.text, labels=task.labels)


def test_a_run_begins_with_the_logits_of_its_source(source, tmp_path, capsys):
    """Its classes are known by their names; a new one is what no class was."""
    folder, made = source
    data = write_shards(tmp_path / "shards", labels=("fox", "eel", "cat"))
    new = started(experiment(data, folder), tmp_path / "run")
    given = made.logits(np.repeat(IDS, 4, 0), [3, 2, 0, 3])
    np.testing.assert_array_equal(new.logits(np.repeat(IDS, 4, 0), [0, 1, 2, 3]), given)
    assert np.abs(given[1] - given[2]).max() > 0.1
    said = capsys.readouterr().out
    assert f"starts from {folder}\n" in said and "2 classes that keep their row: eel, cat\n" in said
    assert '1 new classes, which begin as "no class": fox\n' in said and "1 classes left out: dog\n" in said


def test_classes_without_names_go_by_number():
    assert class_rows(3, 5, None, None).tolist() == [0, 1, 2, -1, -1]
    assert class_rows(1000, 2, None, ("a", "b")).tolist() == [0, 1]
    assert told(np.array([0, 1]), 1000, None, None) == [
        "2 classes that keep their row: 0, 1", "998 classes left out: 2, 3, 4, 5, 6, 7, ..., 999",
    ]  # fmt: skip


def test_words_are_those_of_the_source(tmp_path, capsys):
    words = TextTokenizer.train(["a red circle", "two blue squares"], TEXT.vocabulary)
    made = generator(replace(TEXT, vocabulary=words.vocabulary), None, words)
    made.save(tmp_path / "model")
    data = write_shards(tmp_path / "shards", captions=["green"] * 16)
    new = started(experiment(data, tmp_path / "model", made.config.condition), tmp_path / "run")
    prompt = ["two red squares"]
    np.testing.assert_array_equal(new.logits(IDS, prompts=prompt), made.logits(IDS, prompts=prompt))
    assert capsys.readouterr().out == f"starts from {tmp_path / 'model'}\n"


@pytest.mark.parametrize("condition", [ClassCondition(3, prefix=2), TEXT, replace(TEXT, vocabulary=4)])
def test_another_condition_is_new(source, condition):
    """Even where its table has the shape of the other one."""
    model = generator_experiment(None, condition).task.model
    params, lines = fitted(source[1], "x", model, None)
    taken, has = flatten(params), flatten(source[1].params)
    text = isinstance(condition, TextCondition)
    assert taken.keys() == {name for name in has if not (text and name.startswith("ends.condition."))}
    for name in taken.keys() - {"ends.condition.table"}:
        np.testing.assert_array_equal(taken[name], has[name])
    assert lines[-1] == f"new, for another condition: ends.condition.{'table' if text else 'prefix'}"


def test_what_does_not_fit_is_listed(source, tmp_path):
    model = source[1].config
    other = replace(model, depth=3, block=BlockConfig(width=8, heads=1, mlp=16, rope_base=100.0))
    with pytest.raises(UserError) as error:
        fitted(source[1], "x", other, None)
    lines = str(error.value).splitlines()
    assert lines[0] == "task.start_from x is another model than task.model, set them alike:"
    assert {"  block.mlp is 8 there, 16 here", "  block.rope_base is 10000.0 there, 100.0 here"} <= set(lines)
    assert "  blocks.up is [2, 8, 8] there, [3, 8, 16] here" in lines and "ends" not in str(error.value)
    biased = replace(model, block=replace(model.block, qk_norm=True))
    with pytest.raises(UserError, match=r"blocks.norm_k.scale is nothing there, \[2, 8\] here"):
        fitted(source[1], "x", biased, None)
    with pytest.raises(UserError, match="task.start_from: there is no"):
        started(experiment(write_shards(tmp_path / "shards"), tmp_path / "nowhere"), tmp_path / "run")


def test_codes_are_those_of_the_tokenizer():
    c = plans.config("scale", **plans.VAR)
    made = Generator(c, transformer.init(c, jax.random.key(1)))
    taken = flatten(fitted(made, "x", c, None)[0])
    assert flatten(made.params).keys() - taken.keys() == {f"ends.input.{x}" for x in ("codebook", "phi_kernel", "phi_bias")}


def test_frozen_parts_stay_and_a_resumed_run_does_not_begin_again(source, tmp_path):
    """Bit for bit, averaged weights too; and the optimizer knows nothing of them."""
    _, made = source
    made.save(tmp_path / "model")
    data = write_shards(tmp_path / "shards")
    frozen = ("blocks.q", "blocks.norm_mlp", "ends.input")
    chosen = experiment(data, tmp_path / "model", frozen=frozen, steps=2, ema=0.9)
    mmgen.train(chosen, tmp_path / "run")
    (tmp_path / "model").rename(tmp_path / "gone")
    mmgen.train(replace(chosen, steps=4), tmp_path / "run")
    before, after = flatten(made.params), flatten(load_arrays(tmp_path / "run/export"))
    stay = {name for name in before if name.startswith(frozen)}
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert len(stay) == 3 and same == stay
    task = GeneratorTraining(chosen, tmp_path / "run")
    state = abstract_state(task, task.optimizer(chosen), 0, False)
    kept = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    assert any("['k']" in name for name in kept) and any("['norm_attention']" in name for name in kept)
    assert not any(word in name for name in kept for word in ("['q']", "['norm_mlp']", "['input']"))


def test_what_is_frozen_is_checked(tmp_path):
    data = write_shards(tmp_path / "shards")
    for parts, words in (("blcks", "no part 'blcks'. Did you mean 'blocks'?"), ("blocks,ends", "leave something to train")):
        with pytest.raises(UserError, match=words):
            mmgen.train(overrides(generator_experiment(data), ["--task.frozen", parts]), tmp_path / "run")


def test_the_command_line_has_short_names(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("mmgen.training.loop.train", lambda experiment, *_: made.append(experiment.task))
    body = "import mmgen\nfrom mmgen.config import *\ndef experiment():\n    return mmgen.Experiment({}(), Data())\n"
    for kind in ("GeneratorTask", "TokenizerTask"):
        (tmp_path / "e.py").write_text(body.format(kind))
        frozen = ["--frozen", "blocks,ends.input"] if kind == "GeneratorTask" else []
        assert cli.main(["train", str(tmp_path / "e.py"), "--init-from", "models/a", *frozen]) == 0
    assert [task.start_from for task in made] == ["models/a"] * 2 and made[0].frozen == ("blocks", "ends.input")
