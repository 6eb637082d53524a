"""quickstart in miniature: all stages, continued after a stop, with its figures and its page."""

import json

import numpy as np
import pytest
from mmgen_tokenizers.pictures import read_picture

import mmgen
from mmgen import quickstart
from mmgen.cli import main
from mmgen.config import Experiment, GeneratorTask
from mmgen.training.metrics import read_metrics

TINY = quickstart.Sizes(tokenizer_steps=3, generator_steps=3, pictures=96, prompts=4, scale=8)
FIGURES = {"psnr_test", "reconstructions_right", "prompts", "objects_right", "places_right", "seconds"}


@pytest.fixture(scope="module")
def stopped_and_finished(tmp_path_factory):
    """A run that was interrupted before the generator was trained, then continued."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    train = quickstart.train

    def interrupted(experiment: Experiment, folder):
        if isinstance(experiment.task, GeneratorTask):
            raise KeyboardInterrupt
        return train(experiment, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quickstart.run(out, TINY)
    assert not (out / "figures.json").exists()
    before = [(out / name).stat().st_mtime_ns for name in ("tokens/manifest.json", "tokenizer/checkpoints/3")]
    figures = quickstart.run(out, TINY)
    assert before == [(out / name).stat().st_mtime_ns for name in ("tokens/manifest.json", "tokenizer/checkpoints/3")]
    return out, figures


def test_the_figures(stopped_and_finished):
    out, figures = stopped_and_finished
    assert json.loads((out / "figures.json").read_text()) == figures
    assert set(figures) == FIGURES
    assert figures["prompts"] == 4
    assert 0 <= figures["places_right"] <= figures["objects_right"] <= 1
    assert 3 < figures["psnr_test"] < 40
    seconds = json.loads((out / "seconds.json").read_text())
    assert set(seconds) == {"tokenizer", "tokens", "generator", "drawing"}
    assert figures["seconds"] == pytest.approx(sum(seconds.values()), abs=0.1) and min(seconds.values()) > 0


def test_the_page(stopped_and_finished):
    out, figures = stopped_and_finished
    page = (out / "report.html").read_text()
    assert "http" not in page and "<script" not in page
    assert f"{figures['psnr_test']:.2f} dB" in page and "at least 24.00 dB" in page and "at most 15.00 minutes" in page
    assert page.count("<svg") == 4
    assert page.count("<img") == 2 * 24 + 4  # originals beside reconstructions, and the samples


def test_both_runs_can_be_used(stopped_and_finished):
    out, _ = stopped_and_finished
    assert [entry["step"] for entry in read_metrics(out / "tokenizer") if "validation/loss" in entry] == [3]
    generator = mmgen.load(out / "generator")
    assert generator.generate(prompts=["a small red circle above a large blue square"]).images.shape == (1, 32, 32, 3)
    assert generator.sampling.guidance > 1
    assert read_picture(out / "generator" / "previews" / "step-0000003.png").ndim == 3


def test_every_prompt_fits_and_has_a_piece_for_each_word(stopped_and_finished):
    out, _ = stopped_and_finished
    text = mmgen.load(out / "generator").text
    longest = "a small purple triangle right of a large yellow triangle and right of a large yellow triangle"
    ids, valid = text.encode([longest], quickstart.generator(out).task.model.condition.length)
    assert valid.sum() <= len(longest.split()) * 2 and text.decode(ids[0][valid[0]]) == longest


def test_the_command(monkeypatch, tmp_path, capsys):
    asked = []

    def run(out, sizes):
        asked.append((out, sizes))
        return dict(psnr_test=25.0, reconstructions_right=0.9, prompts=4, objects_right=0.5, places_right=0.25, seconds=60.0)

    monkeypatch.setattr(quickstart, "run", run)
    main.run(["quickstart", "--smoke", "--out", str(tmp_path)])
    main.run(["quickstart"])
    assert asked == [(str(tmp_path), quickstart.SMOKE), ("runs/quickstart", quickstart.Sizes())]
    told = capsys.readouterr().out
    assert "25.00 dB" in told and "90.0%" in told and "1.00 minutes" in told
    assert f"mmgen sample {tmp_path}/generator --prompt" in told


def test_the_networks_of_the_full_size_agree(tmp_path):
    tokenizer, generator = quickstart.tokenizer().task.model, quickstart.generator(tmp_path).task.model
    assert tokenizer.network.factor == 8 and tokenizer.image_size == 32
    assert generator.layout.sites == (tokenizer.image_size // tokenizer.network.factor) ** 2
    assert generator.layout.codebook_size == tokenizer.quantizer.size
    assert np.log2(generator.layout.codebook_size) == 10
