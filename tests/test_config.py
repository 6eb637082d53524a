"""Experiments: JSON and back, and fields set on the command line."""

import pytest
from mmgen_tokenizers.errors import UserError

from mmgen import config
from mmgen.config import NLVR, TFDS, Data, Experiment, GeneratorTask, ImageFolder, Shapes, TokenizerTask, TokenShards, overrides
from mmgen.model.config import ClassCondition, TextCondition


def experiment() -> Experiment:
    return Experiment(task=TokenizerTask(), data=Data())


@pytest.mark.parametrize(
    "source", [Shapes("test", 5), ImageFolder("x", "caption"), TFDS("mnist"), TokenShards("t", None), NLVR("n")]
)
@pytest.mark.parametrize("task", [TokenizerTask(), GeneratorTask(tokenizer="runs/t")])
def test_round_trip_through_a_file(tmp_path, source, task):
    before = Experiment(task=task, data=Data(source), validation=Data(flip=True), ema=0.999)
    config.save(before, tmp_path / "experiment.json")
    assert config.load(tmp_path / "experiment.json") == before


def test_a_file_of_another_version_is_refused_by_field(tmp_path):
    (tmp_path / "e.json").write_text('{"task": {"kind": "GeneratorTask"}, "data": {}, "stpes": 3}')
    with pytest.raises(UserError, match="e.json: Experiment has no field 'stpes'. Did you mean 'steps'"):
        config.load(tmp_path / "e.json")
    (tmp_path / "e.json").write_text('{"task"')
    with pytest.raises(UserError, match="e.json"):
        config.load(tmp_path / "e.json")


def test_overrides_read_every_type():
    flags = "--steps 1e3 --ema=0.5 --data.flip true --optimizer.clip none --data.crop random"
    new = overrides(experiment(), [*flags.split(), "--optimizer.schedule.boundaries", "0.5,0.75"])
    assert (new.steps, new.ema, new.data.flip, new.optimizer.clip, new.data.crop) == (1000, 0.5, True, None, "random")
    assert new.optimizer.schedule.boundaries == (0.5, 0.75)
    assert overrides(experiment(), []) == experiment()


def test_overrides_allow_dashes_for_underscores():
    assert overrides(experiment(), ["--every-log", "7"]).every_log == 7


def test_a_union_changes_its_kind_wherever_the_flag_stands():
    for flags in ("--data.source.kind TFDS --data.source.name mnist", "--data.source.name mnist --data.source.kind TFDS"):
        assert overrides(experiment(), flags.split()).data.source == TFDS("mnist")


def test_a_kind_inside_a_changed_kind():
    flags = "--task.model.condition.length 9 --task.model.condition.kind TextCondition --task.kind GeneratorTask"
    assert overrides(experiment(), flags.split()).task.model.condition == TextCondition(length=9)


def test_the_same_kind_keeps_its_fields():
    before = Experiment(task=GeneratorTask(), data=Data(Shapes("test", 7)))
    assert overrides(before, ["--data.source.kind", "Shapes"]) == before
    assert before.task.model.condition == ClassCondition()


def test_an_absent_part_appears_with_its_first_field_and_goes_with_none():
    new = overrides(experiment(), ["--validation.source.split", "test"])
    assert new.validation == Data(Shapes("test"))
    assert overrides(new, ["--validation", "none"]).validation is None


def test_a_value_of_two_kinds():
    before = Experiment(task=GeneratorTask(), data=Data())
    for text, value in (("linear", "linear"), ("power_cosine,2.5", ("power_cosine", 2.5))):
        assert overrides(before, ["--task.sampling.guidance_schedule", text]).task.sampling.guidance_schedule == value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data.sorce x", "unknown field --data.sorce: Data has source, size, crop, flip. Did you mean '--data.source'?"),
        ("--stepz 3", "Did you mean '--steps'?"),
        ("--data.source.kind TFSD", "expected one of Shapes, ImageFolder, TFDS, TokenShards, NLVR. Did you mean 'TFDS'?"),
        ("--data.source.kind TFDS", "data.source: TFDS needs name"),
        ("--data.source.name mnist", "unknown field --data.source.name: Shapes has split, count."),
        ("--steps 1.5", "--steps: expected a whole number, found '1.5'"),
        ("--data.crop rnadom", "Did you mean 'random'?"),
        ("--steps", "--steps needs a value"),
        ("--steps --seed 3", "--steps needs a value"),
        ("--steps.x 3", "--steps.x: steps is a whole number and has no field 'x'"),
        ("--accumulate 3", "batch 64 must be a multiple of accumulate 3"),
        ("--batch 0", "batch 0 must be a multiple of accumulate 1, both at least 1"),
        ("steps 3", "unexpected argument 'steps'"),
    ],
)
def test_mistakes_are_answered_with_the_remedy(flags, message):
    with pytest.raises(UserError) as error:
        overrides(experiment(), flags.split())
    assert message in str(error.value)


def test_an_experiment_file_is_run(tmp_path):
    source = "from mmgen.config import *\ndef experiment():\n    return Experiment(GeneratorTask(), Data(), steps=7)\n"
    (tmp_path / "mine.py").write_text(source)
    assert config.load_experiment(tmp_path / "mine.py").steps == 7
    with pytest.raises(UserError, match="Did you mean 'mine.py'"):
        config.load_experiment(tmp_path / "mien.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"has no function experiment\(\)"):
        config.load_experiment(tmp_path / "empty.py")
