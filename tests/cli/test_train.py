"""`mmgen train`: its own flags, and fields of the experiment."""

import pytest

from mmgen.cli import main as cli
from mmgen.cli.train import parser
from mmgen.parallel.watch import Watch

EXPERIMENT = """
import mmgen
from mmgen.config import Data, TokenizerTask

def experiment():
    return mmgen.Experiment(TokenizerTask(), Data(), steps=5)
"""


@pytest.fixture
def calls(monkeypatch):
    """What the training loop was asked to do, instead of doing it."""
    import mmgen.training.loop

    made = []
    monkeypatch.setattr(mmgen.training.loop, "train", lambda *given: made.append(given))
    monkeypatch.setattr(Watch, "ends_program", False)
    return made


@pytest.fixture
def file(tmp_path):
    (tmp_path / "birds").mkdir()
    path = tmp_path / "birds" / "small.py"
    path.write_text(EXPERIMENT)
    return path


def test_fields_are_told_apart_from_flags():
    args = parser().parse_args(["--data.size", "64", "e.py", "--out", "r", "--steps=3", "--data.flip", "true"])
    assert (args.experiment, args.out) == ("e.py", "r")
    assert args.fields == ["--data.size", "64", "--steps=3", "--data.flip", "true"]


def test_train_runs_the_file_with_its_fields_changed(file, calls):
    assert cli.main(["train", str(file), "--data.size", "64", "--steps", "7"]) == 0
    [(experiment, out, profile)] = calls
    assert (experiment.data.size, experiment.steps, str(out), profile) == (64, 7, "runs/birds_small", None)
    assert Watch.ends_program


def test_the_steps_of_a_trace(file, calls, capsys):
    assert cli.main(["train", str(file), "--profile", "10:13"]) == 0 and calls[0][2] == (10, 13)
    for wrong in ("10", "13:10", "0:3", "a:b"):
        assert cli.main(["train", str(file), "--profile", wrong]) == 2
        assert f"--profile {wrong}: name the first and the last step, such as 10:13" in capsys.readouterr().err


def test_out_names_the_run(file, calls):
    assert cli.main(["train", str(file), "--out", "there"]) == 0
    assert str(calls[0][1]) == "there"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--setps", "7"], "unknown field --setps"),
        (["--data.szie", "7"], "Did you mean '--data.size'?"),
        (["--steps", "many"], "--steps: expected a whole number, found 'many'"),
    ],
)
def test_mistakes_in_fields(file, calls, capsys, flags, message):
    assert cli.main(["train", str(file), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not calls


def test_a_mistyped_file_is_answered_with_the_nearest(file, capsys):
    assert cli.main(["train", str(file.with_name("smal.py"))]) == 2
    assert "Did you mean 'small.py'?" in capsys.readouterr().err


def test_a_folder_that_is_missing_names_its_option(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    assert cli.main(["train", str(file), "--data.source.kind", "ImageFolder", "--data.source.folder", "picturs"]) == 2
    expected = "error: there is no folder picturs. Did you mean 'pictures'? (set --data.source.folder)\n"
    assert capsys.readouterr().err.splitlines(keepends=True)[-1] == expected
