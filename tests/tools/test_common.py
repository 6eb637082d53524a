"""tools/bench/common.py: stages that are kept, and time that is told truly."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
from mmgen_tokenizers.errors import UserError

from mmgen import config
from mmgen.config import Data, Experiment, GeneratorTask, Optimizer, Schedule, TokenShards


@pytest.fixture(scope="module")
def common(script):
    return script("common")


EXPERIMENT = Experiment(GeneratorTask(), Data(TokenShards("none")), batch=4, optimizer=Optimizer(Schedule(warmup=30)))


def test_stages_are_not_done_again(common, tmp_path):
    made = []
    for _ in range(2):
        stages = common.Stages(tmp_path / "runs/stages.json")
        assert stages.once("a", lambda: made.append(1) or {"b": 2.5}) == {"b": 2.5}
    assert made == [1]


def test_stages_of_other_settings_are_refused(common, tmp_path):
    for _ in range(2):
        common.Stages(tmp_path / "stages.json").settle({"minutes": 1.0})
    with pytest.raises(UserError, match="begun with {'minutes': 1.0}: choose another folder"):
        common.Stages(tmp_path / "stages.json").settle({"minutes": 2.0})


def test_time_is_that_of_the_steps(common, tmp_path, monkeypatch):
    """4 pictures a step of 10 tokens each, at 400 tokens a second; between step 60 and 80 the machine stood still."""
    rates = [{"step": 1}, *({"step": step, "tokens_per_second": 400.0} for step in (20, 60))]
    rates += [{"step": 60, "validation/loss": 1.0}, {"step": 80, "tokens_per_second": 1.0}]
    monkeypatch.setattr(common.tasks, "make", lambda *args: SimpleNamespace(unit=("tokens", 10)))
    config.save(EXPERIMENT, tmp_path / "experiment.json")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rates))
    assert common.seconds_of(tmp_path) == pytest.approx(80 * 4 * 10 / 400)


def test_a_pause_is_no_part_of_a_step(common, tmp_path, monkeypatch):
    """Of steps of half a second, the first two wait and another takes a minute."""
    durations = itertools.chain([90.0, 5.0, 0.5, 60.0], itertools.repeat(0.5))
    clock = itertools.accumulate(durations)
    task = SimpleNamespace(
        check=lambda: None, optimizer=lambda _: None, training_batches=lambda _: itertools.repeat({}), prepare=dict, frozen={}
    )
    monkeypatch.setattr(common.tasks, "make", lambda *args: task)
    monkeypatch.setattr(common, "initial_state", lambda *args: {})
    monkeypatch.setattr(common, "make_step", lambda *args: lambda state, *_: (state, {}))
    monkeypatch.setattr(common, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert common.seconds_a_step(EXPERIMENT, tmp_path / "run") == 0.5


def test_as_many_steps_as_fit_and_twice_the_warm_up_at_least(common, tmp_path, monkeypatch):
    trained, done = [], SimpleNamespace(metrics={"seconds": 9.0})
    monkeypatch.setattr(common, "seconds_a_step", lambda *_: 0.25)
    monkeypatch.setattr(common, "seconds_of", lambda folder: 7.0)
    monkeypatch.setattr(common.mmgen, "train", lambda experiment, _: trained.append(experiment.steps) or done)
    for minutes, steps in ((1.0, 240), (0.1, 60)):
        for _ in range(2):  # the second finds it done
            stages = common.Stages(tmp_path / "stages.json")
            found = common.train_for(minutes, EXPERIMENT, tmp_path, stages, f"{minutes}")
            assert found == {"steps": steps, "pictures": 4 * steps, "seconds": 7.0, "cores": common.cores()}
    assert trained == [240, 60]


def test_a_report_names_no_folder_of_the_machine(common, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/me/tools/bench/x.py", "/home/me/runs", "--peer", "../peer", "--n", "2"])
    assert common.report("x", {}, "../peer", "VAR")["command"] == "python tools/bench/x.py runs --peer VAR --n 2"


def test_no_script_hides_a_module_of_python(repository):
    """Their folder comes first on the path: a statistics.py there breaks torch.compile."""
    names = {path.stem for path in (repository / "tools" / "bench").glob("*.py")}
    assert "common" in names and not names & sys.stdlib_module_names
