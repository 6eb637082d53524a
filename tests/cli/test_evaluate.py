"""`mmgen evaluate`: sets that are given, and sets that are drawn, once, in pieces."""

import json
import shutil

import numpy as np
import pytest
import thin_inception
from mmgen_tokenizers.pictures import to_uint8
from PIL import Image

import mmgen
from mmgen import folders
from mmgen.cli import main as cli
from mmgen.evaluation import generated

pytestmark = pytest.mark.filterwarnings("ignore:.* features. the covariance has not full rank")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file; its program is compiled once for all commands."""
    with thin_inception.installed(tmp_path_factory.mktemp("inception")) as file:
        yield file


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    file = tmp_path_factory.mktemp("reference") / "real.npz"
    np.savez(file, arr_0=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8))
    return file


def evaluate(*arguments) -> None:
    assert cli.main(["evaluate", *map(str, arguments)]) == 0


def refused(capsys, *arguments) -> str:
    assert cli.main(["evaluate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def read(path) -> dict:
    return json.loads(path.read_text())


def test_samples_against_a_reference(weights, reference, tmp_path, capsys):
    both = ["--reference", reference, "--inception", weights]
    evaluate("--samples", reference, *both, "--save-statistics", tmp_path / "s.npz", "--out", tmp_path / "a.json")
    assert "FID" in capsys.readouterr().out
    found = read(tmp_path / "a.json")
    assert abs(found["figures"]["fid"]["value"]) < 1e-3 and found["samples"]["pictures"] == 9
    evaluate("--samples", reference, "--reference", tmp_path / "s.npz", "--inception", weights, "--out", tmp_path / "b.json")
    assert read(tmp_path / "b.json")["figures"] == found["figures"]


def test_a_model_is_drawn_from_once(class_folder, weights, reference, tmp_path, monkeypatch):
    """Stopped before the last piece and started again: what was drawn is kept, and the result is the same."""
    monkeypatch.setattr(generated, "PIECE", 4)
    asked = ["--num", 10, "--seed", 3, "--reference", reference, "--inception", weights]
    evaluate(class_folder, *asked, "--out", tmp_path / "whole")
    pieces = sorted((tmp_path / "whole" / "pictures").iterdir())
    assert [p.name for p in pieces] == ["00000000.npz", "00000004.npz", "00000008.npz"]
    drawn = np.concatenate([np.load(p)["arr_0"] for p in pieces])
    labels = [i % 3 for i in range(10)]
    assert np.concatenate([np.load(p)["arr_1"] for p in pieces]).tolist() == labels
    direct = mmgen.load(class_folder).generate(labels=labels, seed=3).images
    np.testing.assert_array_equal(drawn, np.floor((np.clip(direct, -1, 1) + 1) * 127.5 + 0.5).astype(np.uint8))
    found = read(tmp_path / "whole" / "evaluation.json")
    assert found["samples"]["pictures"] == 10 and found["record"]["seed"] == 3 and found["protocol"] is None
    assert found["record"]["sampling"]["temperature"] == 1.0 and "mmgen" in found["versions"]

    half, calls = tmp_path / "half", []
    shutil.copytree(tmp_path / "whole", half)
    (half / "pictures" / "00000004.npz").unlink()
    generate = generated.Generator.generate
    monkeypatch.setattr(generated.Generator, "generate", lambda *a, **k: calls.append(k["first_index"]) or generate(*a, **k))
    evaluate(class_folder, *asked, "--out", half)
    assert calls == [4] and read(half / "evaluation.json")["figures"] == found["figures"]


def test_nothing_is_drawn_for_a_reference_that_does_not_serve(class_folder, weights, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", mu=np.zeros(768), sigma=np.eye(768))
    (tmp_path / "empty").mkdir()
    asked = [class_folder, "--num", 4, "--inception", weights, "--out", tmp_path / "out"]
    assert "it is of another network" in refused(capsys, *asked, "--reference", tmp_path / "other.npz")
    assert "there are no pictures in" in refused(capsys, *asked, "--reference", tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_another_set_is_not_mixed_in(class_folder, weights, reference, tmp_path, capsys):
    asked = [class_folder, "--num", 4, "--reference", reference, "--inception", weights, "--out", tmp_path]
    evaluate(*asked)
    message = refused(capsys, *asked, "--seed", 1, "--temperature", 0.5)
    assert "holds pictures of another seed, sampling: choose another --out" in message


def test_a_checkpoint_is_evaluated_beside_its_run(class_folder, weights, reference, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(class_folder, run)

    def export(folder, out, checkpoint):
        shutil.copytree(folder, out)
        (out / "step.json").write_text(json.dumps({"step": int(checkpoint)}))

    monkeypatch.setattr(folders, "export", export)
    asked = [run, "--num", 4, "--reference", reference, "--inception", weights]
    evaluate(*asked, "--checkpoint", 30)
    found = read(run / "evaluation" / "own" / "30" / "evaluation.json")
    assert found["step"] == 30 and found["record"]["pictures"] == 4
    message = refused(capsys, *asked, "--checkpoint", 30, "--coordinator", "localhost:1", "--processes", 1, "--process", 0)
    assert "mmgen export" in message
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert "mmgen export" in refused(capsys, *asked, "--checkpoint", 30)


# Prompts -------------------------------------------------------------------------------------------------------------


def test_a_suite_is_drawn_scored_and_shown(text_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generated, "PIECE", 2)
    (tmp_path / "own_scorer.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    rows = [("red", "Warm"), ("blue", "Cold"), ("a red circle", "Warm")]
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    evaluate(text_folder, "--suite", "p.tsv", "-n", 2, "--scorer", "own_scorer:bright", "--out", tmp_path / "out", "--seed", 1)
    found = read(tmp_path / "out" / "evaluation.json")
    direct = mmgen.load(text_folder).generate(prompts=[a for a, _ in rows], num=2, seed=1).images
    bright = np.array([to_uint8(picture).mean() for picture in direct])
    np.testing.assert_allclose(found["scores"], bright)
    means = {name: figure["value"] for name, figure in found["figures"].items()}
    assert means == pytest.approx({"Warm": bright[[0, 1, 4, 5]].mean(), "Cold": bright[2:4].mean(), "all": bright.mean()})
    assert found["figures"]["Warm"]["pictures"] == 4
    sheet = Image.open(tmp_path / "out" / "Warm.png")
    assert sheet.text["prompts"].splitlines() == ["red", "red", "a red circle", "a red circle"]
    assert "Cold" in (tmp_path / "out" / "report.html").read_text() and "all" in capsys.readouterr().out
    evaluate(text_folder, "--suite", "p.tsv", "-n", 2, "--out", tmp_path / "out", "--seed", 1)  # scores need no new pictures
    assert read(tmp_path / "out" / "evaluation.json")["scores"] is None


def test_suites_that_cannot_be_done(text_folder, class_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red circle\n")
    for arguments, message in (
        ([text_folder, "--suite", "p.txt", "--reference", "p.txt"], "--reference cannot be given with --suite"),
        ([class_folder, "--suite", "p.txt"], "does not draw pictures from texts"),
        ([text_folder, "--suite", "shapes"], "does not draw pictures of shapes from captions, 32 or 64"),
        ([text_folder, "--suite", "nlvr"], "at least 32 pixels wide"),
        ([text_folder, "--suite", "shapes", "--scorer", "a:b"], "--scorer cannot be given with --suite shapes"),
        ([text_folder, "--suite", "p.tsv"], "there is no p.tsv"),
        ([text_folder, "--suite", "p.txt", "--scorer", "nowhere:score"], "there is no module nowhere"),
        ([text_folder], "--reference and --inception must be given"),
    ):
        assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either RUN, to draw from it, or --samples"),
        (["{run}", "--samples", "{reference}"], "give either RUN"),
        (
            ["--samples", "{reference}", "--num", "5", "--guidance", "2"],
            "--num, --guidance cannot be given with --samples",
        ),
        (["--samples", "{reference}", "--seed", "0"], "--seed cannot be given with --samples"),
        (["--samples", "{reference}", "--coordinator", "localhost:1"], "several processes need all three"),
        (["--samples", "{reference}", "--size", "16"], "has pictures of 8 x 8, not of 16 x 16"),
        (["{run}"], "name a --protocol, or say with --num"),
        (["{run}", "--size", "8", "--num", "4"], "--size cannot be given with a protocol"),
        (["{run}", "--protocol", "var_265"], "there is no protocol 'var_265'"),
        (["{run}", "--protocol", "var_256"], "the model draws 8 x 8 pixels, the protocol var_256 is of 256 x 256"),
        (["{run}", "--protocol", "rfid_val_256"], "is for tokenizers: mmgen-tokenizers evaluate"),
        (["{text}", "--num", "4"], "protocols draw classes and this model takes texts"),
        (["--samples", "nowhere.npz"], "there is no nowhere.npz"),
        (["{run}", "--classifier"], "--reference, --inception cannot be given with --classifier"),
    ],
)
def test_what_cannot_be_done_is_said(
    class_folder, text_folder, weights, reference, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    names = {"run": class_folder, "text": text_folder, "reference": reference}
    filled = [argument.format(**names) for argument in arguments]
    assert message in refused(capsys, *filled, "--reference", reference, "--inception", weights)
