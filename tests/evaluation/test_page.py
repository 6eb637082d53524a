"""The page of runs: what was evaluated, at which steps, and what was drawn."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.pictures import read_picture

from mmgen.cli import main as cli
from mmgen.evaluation import page


def evaluated(run: Path, place: str, step: int | None, **figures) -> Path:
    write_json(run / "evaluation" / place / "evaluation.json", {"step": step, "figures": figures})
    return run / "evaluation" / place


def pictures(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """a/ with two checkpoints evaluated and pictures, b/ with pictures of the same classes and no metrics."""
    monkeypatch.chdir(tmp_path)
    a, b = Path("a"), Path("b")
    evaluated(a, "own/100", 100, fid={"value": 30.0, "interval": [29.0, 31.0]})
    new = evaluated(a, "own", 200, fid={"value": 20.0, "interval": [19.0, 21.0]}, precision={"value": 0.5})
    other = evaluated(b, "own", 50, fid={"value": 12.5})
    evaluated(b, "likelihood", None, bits_per_dimension={"value": 3.25})
    for folder, seed in ((new, 0), (other, 1)):
        (folder / "pictures").mkdir()
        np.savez(folder / "pictures" / "00000000.npz", pictures(seed, 3), np.array([0, 1, 2]))
    entries = [{"step": s, "loss": 5.0 / s, **({"validation/loss": 6.0 / s} if s > 1 else {})} for s in (1, 2, 3)]
    (a / "metrics.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return a, b


def shown(text: str) -> list[np.ndarray]:
    return [read_picture(base64.b64decode(data)) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', text)]


def test_two_runs_side_by_side(runs, capsys):
    assert cli.main(["report", "a", "b", "--out", "both.html"]) == 0
    text = Path("both.html").read_text()
    assert "<th>own: FID</th><td class=value>20 (19 .. 21)</td><td class=value>12.5</td>" in text
    assert "<th>own: precision</th><td class=value>0.5</td><td class=value></td>" in text
    assert "<th>likelihood: bits a dimension</th><td class=value></td><td class=value>3.25</td>" in text
    found = shown(text)
    for got, expected in zip(found, np.stack([pictures(0, 3), pictures(1, 3)], 1).reshape(-1, 4, 4, 3), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert "From left to right: a, b." in text and "both.html" in capsys.readouterr().out


def test_one_run_with_its_curves(runs):
    assert cli.main(["report", "a"]) == 0
    text = Path("a/evaluation/report.html").read_text()
    assert "Loss in training" in text and "Loss on unseen pictures" in text and "own: FID" in text
    (chart,) = page.over_checkpoints({"a": page.evaluations(runs[0])})  # of precision there is one step
    assert chart.curves == {"a": ([100, 200], [30.0, 20.0])}
    assert [each.step for each in page.evaluations(runs[0])] == [100, 200]
    assert len(shown(text)) == 3


def test_other_classes_are_not_put_side_by_side(runs):
    np.savez("b/evaluation/own/pictures/00000000.npz", pictures(1, 3), np.array([2, 1, 0]))
    made = list(page.galleries({name: page.newest(page.evaluations(Path(name))) for name in "ab"}))
    assert [gallery.title for gallery in made] == ["own: a", "own: b"] and len(made[1].cards[0].pictures) == 1


def test_nothing_to_show(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    assert cli.main(["report", "x"]) == 2
    assert "there is neither a metrics.jsonl nor an evaluation/" in capsys.readouterr().err
    assert cli.main(["report", *"xxxxxxx"]) == 2 and "name at most 6" in capsys.readouterr().err
