"""`mmgen info`, `export` and `convert`."""

import json

import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.files import load_arrays
from safetensors.numpy import load_file

import mmgen
from mmgen.cli import main as cli

EXPERIMENT = """
from mmgen.config import *

def experiment():
    return Experiment(GeneratorTask(), Data(), optimizer=Optimizer(clip=None))
"""


def run(*arguments) -> int:
    return cli.main(list(map(str, arguments)))


def test_info_of_a_generator_and_its_tokenizer(text_folder, capsys):
    assert run("info", text_folder) == 0
    text = capsys.readouterr().out
    for line in ("a generator", "model.block.width  8", "sampling.guidance  2.0", "a tokenizer", "config.quantizer.size  32"):
        assert line in text
    assert "steps  4\n  padding  1.0\n  site -> step\n  0 1\n  2 3\n" in text


def test_info_of_an_experiment_lists_the_fields_as_the_command_line_takes_them(tmp_path, capsys):
    (tmp_path / "e.py").write_text(EXPERIMENT)
    assert run("info", tmp_path / "e.py") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in ("--data.source.kind Shapes", "--optimizer.clip none", "--data.flip false"):
        assert line.split() in lines

    from mmgen.config import load_experiment, overrides

    experiment = load_experiment(tmp_path / "e.py")
    fields = [word for line in lines if line[0].startswith("--") and len(line) == 2 and line[1] != "()" for word in line]
    assert overrides(experiment, fields) == experiment


def test_info_of_a_run_shows_its_last_figures(tmp_path, text_folder, capsys):
    from mmgen import config

    config.save(config.Experiment(config.TokenizerTask(), config.Data()), tmp_path / "experiment.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo')
    assert run("info", tmp_path) == 0
    text = capsys.readouterr().out
    assert "a run" in text and "loss  2.5" in text and "task.kind  TokenizerTask" in text
    assert run("export", tmp_path, "--out", tmp_path / "x") == 2
    assert "has no export/ yet" in capsys.readouterr().err


def test_info_of_something_else(tmp_path, capsys):
    assert run("info", tmp_path) == 2
    assert "config.json" in capsys.readouterr().err


def test_export_is_complete(text_folder, tmp_path):
    assert run("export", text_folder, "--out", tmp_path / "e") == 0
    one, two = mmgen.load(text_folder), mmgen.load(tmp_path / "e")
    assert (one.config, one.sampling) == (two.config, two.sampling)
    np.testing.assert_array_equal(*(gen.generate(prompts="a red circle", num=2).images for gen in (one, two)))


def test_export_of_a_tokenizer(tokenizer_folder, tmp_path):
    assert run("export", tokenizer_folder, "--out", tmp_path / "e") == 0
    np.testing.assert_array_equal(*(load_arrays(f)["quantizer"]["codebook"] for f in (tokenizer_folder, tmp_path / "e")))


def test_llamagen_there_and_back(class_folder, tokenizer_folder, tmp_path, capsys):
    assert run("export", class_folder, "--out", tmp_path / "theirs", "--format", "llamagen") == 0
    assert "the weights of the generator alone; export the folder tokenizer/" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["model.safetensors"]
    state = load_file(tmp_path / "theirs" / "model.safetensors")
    assert state["tok_embeddings.weight"].shape == (32, 8)
    (tmp_path / "c.json").write_text(json.dumps({"n_head": 1, "block_size": 4, "model_type": "c2i"}))
    more = ["--config", tmp_path / "c.json", "--tokenizer", tokenizer_folder]
    for checkpoint in (tmp_path / "theirs", tmp_path / "theirs" / "model.safetensors"):
        assert run("convert", "llamagen-gpt", checkpoint, "--out", tmp_path / "theirs", *more) == 2
        assert "itself, which would be overwritten: choose another --out" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="llamagen-gpt ignores the config keys model_type"):
        assert run("convert", "llamagen-gpt", tmp_path / "theirs" / "model.safetensors", "--out", tmp_path / "ours", *more) == 0
    assert "a generator" in capsys.readouterr().out
    one, two = mmgen.load(class_folder), mmgen.load(tmp_path / "ours")
    np.testing.assert_array_equal(*(gen.generate(labels=[0, 1, 2], guidance=2.0).tokens for gen in (one, two)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "llamagen-gtp", "{f}/model.safetensors", "--out", "x"], "Did you mean 'llamagen-gpt'?"),
        (["convert", "llamagen-vq", "{f}/model.safetensors", "--out", "x", "--tokenizer", "{f}"], "is a tokenizer itself"),
        (["convert", "llamagen-gpt", "{f}/model.safetensors", "--out", "x"], "it is not a LlamaGen GPT"),
        (["convert", "llamagen-gpt", "{f}/modle.safetensors", "--out", "x"], "Did you mean 'model.safetensors'?"),
        (["convert", "llamagen-gpt", "{f}/model.safetensors", "--out", "x", "--config", "{f}/model.safetensors"], "not JSON"),
        (["export", "{f}", "--out", "x", "--format", "llamgen"], "Did you mean 'llamagen'?"),
    ],
)
def test_mistakes(tokenizer_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*(word.format(f=tokenizer_folder) for word in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_export_of_one_checkpoint_of_a_run(tmp_path, capsys):
    from mmgen import config
    from mmgen.training.loop import train

    network = {"channels": 4, "multipliers": (1,), "encoder_blocks": 1, "decoder_blocks": 1, "attention_levels": (),
               "middle_blocks": 0, "middle_attention": False, "latent": 4, "groups": 2, "stem": 16}  # fmt: skip
    model = mt.VQGAN(network=mt.CNN(**network), quantizer=mt.VQ(size=32, dim=4), image_size=32)
    data = config.Data(config.Shapes("train", 16), size=32)
    chosen = config.Experiment(config.TokenizerTask(model), data, steps=3, batch=4, every_checkpoint=1, keep=3)
    train(chosen, tmp_path / "run")
    weights = {}
    for which in ("1", "3", "last"):
        assert run("export", tmp_path / "run", "--out", tmp_path / which, "--checkpoint", which) == 0
        weights[which] = load_arrays(tmp_path / which)["quantizer"]["codebook"]
    assert f"{tmp_path / 'last'}: tokenizer (vqgan), of step 3" in capsys.readouterr().out
    np.testing.assert_array_equal(weights["3"], weights["last"])
    assert run("info", tmp_path / "run") == 0 and "MB of weights of step 3\n" in capsys.readouterr().out
    assert np.abs(weights["1"] - weights["3"]).max() > 0
    assert run("export", tmp_path / "run", "--out", tmp_path / "x", "--checkpoint", "7") == 2
    assert "no checkpoint 7, it has those of step [1, 2, 3]" in capsys.readouterr().err
    assert run("export", tmp_path / "1", "--out", tmp_path / "x", "--checkpoint", "best") == 2
    assert "no run folder" in capsys.readouterr().err
