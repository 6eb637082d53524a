"""`mmgen info`, `export` and `convert`."""

import json
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.families import vqgan
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


def test_info_of_a_generator_says_first_what_it_is_and_how_to_use_it(text_folder, capsys):
    assert run("info", text_folder) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:3] == [
        f"{text_folder}/export: a generator",
        "draws 2 x 2 = 4 ids of 32 codes, NextToken",
        "from prompts of up to 6 tokens",
    ]
    assert "sampling guidance 2.0" in lines and "turns 8 x 8 pixels into 2 x 2 = 4 ids of 32 codes" in lines
    count = sum(p.size for p in jax.tree.leaves(mmgen.load(text_folder).params)) / 1e6
    assert f"network {count:.2f}M parameters: 1 layers of width 8, 1 heads" in lines
    assert f"draw mmgen sample {text_folder} --prompt 'a red bird' -n 4" in lines
    assert "steps  4\n  padding  0.0% of the slots\n  site -> step\n  0 1\n  2 3\n" in text
    assert "model.block.width" not in text
    assert run("info", text_folder, "--all") == 0
    text = capsys.readouterr().out
    for line in ("model.block.width  8", "sampling.guidance  2.0", "config.quantizer.size  32"):
        assert line in text


def test_info_of_classes_names_some(class_folder, capsys):
    assert run("info", class_folder) == 0
    text = capsys.readouterr().out
    assert "labels of 3 classes: cat, dog, eel\n" in text and f"mmgen sample {class_folder} --label 0 -n 4" in text


def test_info_of_a_tokenizer(tokenizer_folder, capsys):
    assert run("info", tokenizer_folder) == 0
    text = capsys.readouterr().out
    assert "vqgan with VQ" in text and f"mmgen-tokenizers reconstruct PICTURES --tokenizer {tokenizer_folder}" in text
    assert "trained here" in text and "config.quantizer" not in text


def test_info_of_an_experiment_lists_the_fields_as_the_command_line_takes_them(tmp_path, capsys):
    (tmp_path / "e.py").write_text(EXPERIMENT)
    assert run("info", tmp_path / "e.py") == 0
    text = capsys.readouterr().out
    lines = [line.partition("   (")[0].split() for line in text.splitlines()]
    assert "--data.source.kind Shapes   (Shapes, ImageFolder, TFDS, TokenShards, NLVR)\n" in text
    assert "--data.crop center   (center, random)\n" in text
    for line in ("--data.source.kind Shapes", "--optimizer.clip none", "--data.flip false"):
        assert line.split() in lines

    from mmgen.config import load_experiment, overrides

    experiment = load_experiment(tmp_path / "e.py")
    fields = [word for line in lines if line[0].startswith("--") and len(line) == 2 and line[1] != "()" for word in line]
    assert overrides(experiment, fields) == experiment


def test_info_of_a_run_shows_how_far_it_is(tmp_path, text_folder, capsys):
    from mmgen import config

    data = config.Data(config.ImageFolder("my_pictures"))
    config.save(config.Experiment(config.TokenizerTask(), data, steps=9), tmp_path / "experiment.json")
    entries = '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 2, "validation/loss": 2.25}\n{"step": 3, "lo'
    (tmp_path / "metrics.jsonl").write_text(entries)
    assert run("info", tmp_path) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"{tmp_path}: a run of a tokenizer",
        "data ImageFolder (folder my_pictures, caption text)",
        "step 2 of 9",
        "loss 2.5",
        "validation loss 2.25 (step 2)",
        "no export/ yet: it is written at the first checkpoint",
    ]
    assert run("info", tmp_path, "--all") == 0
    text = capsys.readouterr().out
    assert "task.kind  TokenizerTask" in text and "validation/loss  2.25" in text
    for command in (["export", tmp_path, "--out", tmp_path / "x"], ["sample", tmp_path, "--prompt", "x"]):
        assert run(*command) == 2
        assert "has no export/ yet" in capsys.readouterr().err


def test_info_of_something_else(tmp_path, capsys):
    assert run("info", tmp_path) == 2
    assert "config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"architectures": ["ViT"]}')
    assert run("info", tmp_path) == 2
    assert "config.json is not one of ours" in capsys.readouterr().err


def test_a_folder_of_runs_names_them(text_folder, capsys):
    """As quickstart's is."""
    for command in (["sample", text_folder.parent, "--prompt", "x"], ["info", text_folder.parent]):
        assert run(*command) == 2
        assert f"holds models and is none itself: name {text_folder}" in capsys.readouterr().err


def test_export_is_complete(text_folder, tmp_path):
    assert run("export", text_folder, "--out", tmp_path / "e") == 0
    one, two = mmgen.load(text_folder), mmgen.load(tmp_path / "e")
    assert (one.config, one.sampling) == (two.config, two.sampling)
    np.testing.assert_array_equal(*(gen.generate(prompts="a red circle", num=2).images for gen in (one, two)))


def test_export_of_a_tokenizer(tokenizer_folder, tmp_path):
    for overwrite, code in (((), 0), ((), 2), (("--overwrite",), 0)):
        assert run("export", tokenizer_folder, "--out", tmp_path / "e", *overwrite) == code
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
    convert = ["convert", "llamagen-gpt", tmp_path / "theirs" / "model.safetensors", "--out", tmp_path / "ours", *more]
    with pytest.warns(UserWarning, match="llamagen-gpt ignores the config keys model_type"):
        assert run(*convert) == 0
    assert "a generator" in capsys.readouterr().out
    assert run(*convert[:-2]) == 2 and (tmp_path / "ours" / "tokenizer").is_dir()  # it would lose its tokenizer
    assert "ours holds a model already: choose another --out, or add --overwrite" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="ignores"):
        assert run(*convert, "--overwrite") == 0
    assert run("export", class_folder, "--out", tmp_path / "ours", "--format", "llamagen") == 2
    assert "ours holds a model in our own form, whose weights these would replace" in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_head": "one"}, "llamagen-gpt: config n_head is 'one', but must be a whole number from 1 on"),
        ({"n_head": 1, "block_size": 4.5}, "config block_size is 4.5, but must be a whole number"),
        ({"n_head": 1, "norm_eps": "1e-5"}, "config norm_eps is '1e-5', but must be a number"),
        ({"n_head": 0}, "config n_head is 0"),
        ({"n_head": True}, "config n_head is True"),
        ({"n_head": 1, "block_size": 4, "dim": "eight"}, "the config has dim eight, but here it is 8"),
        ({"block_size": 4}, 'pass config n_head (--config FILE.json with {"n_head": ...})'),
    ],
)
def test_settings_of_another_kind(class_folder, tmp_path, capsys, config, message):
    if not (class_folder.parent / "theirs").exists():
        assert run("export", class_folder, "--out", class_folder.parent / "theirs", "--format", "llamagen") == 0
    (tmp_path / "c.json").write_text(json.dumps(config))
    arguments = [class_folder.parent / "theirs", "--out", tmp_path / "x", "--config", tmp_path / "c.json"]
    assert run("convert", "llamagen-gpt", *arguments) == 2
    assert message in capsys.readouterr().err


def test_nar_is_not_called_llamagen(class_folder, tmp_path, capsys):
    assert run("export", class_folder, "--out", tmp_path / "x", "--format", "nar") == 2
    assert "NAR's code has no model like this one" in capsys.readouterr().err


def test_tokenizers_are_converted_from_python_too(tmp_path):
    config = mt.VQGAN(mt.CNN(4, (1, 1), 1, 2, attention_levels=(1,), latent=4, groups=2), mt.VQ(size=32, dim=4), image_size=8)
    tokenizer = mt.Tokenizer(config, vqgan.init(config, jax.random.key(0)))
    tokenizer.save(tmp_path / "ours")
    assert run("export", tmp_path / "ours", "--out", tmp_path / "theirs", "--format", "llamagen") == 0
    made = mmgen.convert("llamagen-vq", tmp_path / "theirs", tmp_path / "vq", {"group_norm_groups": 2, "image_size": 8})
    assert made.fingerprint == mt.load(tmp_path / "vq").fingerprint == tokenizer.fingerprint


def test_export_of_one_checkpoint_of_a_run(tokenizer, tmp_path, monkeypatch, capsys):
    """What is in a checkpoint, tests/training/test_tokenizer_task.py shows."""
    from mmgen.training import loop

    def exported(folder, out, which):
        assert (folder, which) == (str(tmp_path / "run"), 3)
        tokenizer.save(out)
        (Path(out) / "step.json").write_text('{"step": 3}')
        return 3

    with monkeypatch.context() as patch:
        patch.setattr(loop, "export", exported)
        assert run("export", tmp_path / "run", "--out", tmp_path / "out", "--checkpoint", 3) == 2
        (tmp_path / "run").mkdir()
        assert run("export", tmp_path / "run", "--out", tmp_path / "out", "--checkpoint", 3) == 0
    assert f"{tmp_path / 'out'}: tokenizer (vqgan), of step 3" in capsys.readouterr().out
    assert mt.load(tmp_path / "out").fingerprint == tokenizer.fingerprint
    assert run("info", tmp_path / "out") == 0 and "MB of step 3," in capsys.readouterr().out
    tokenizer.save(tmp_path / "other")
    assert run("export", tmp_path / "other", "--out", tmp_path / "out", "--overwrite") == 0
    assert run("info", tmp_path / "out") == 0 and "of step" not in capsys.readouterr().out
    assert run("export", tmp_path / "other", "--out", tmp_path / "x", "--checkpoint", "best") == 2
    assert "no run folder" in capsys.readouterr().err
