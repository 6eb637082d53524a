"""`mmgen sample`: what is drawn, and the files that are written."""

import itertools
import json
import signal
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
from mmgen_tokenizers import progress
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import to_uint8
from PIL import Image

import mmgen
from mmgen import samples
from mmgen.cli import main as cli
from mmgen.generator import Output
from mmgen.model.config import FeatureCondition, Sampling
from mmgen.training.lock import exclusive


def sample(*arguments) -> None:
    assert cli.main(["sample", *map(str, arguments)]) == 0


def error(capsys, *arguments) -> str:
    assert cli.main(["sample", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_grid_with_its_prompts(text_folder, tmp_path, capsys):
    path = tmp_path / "grid.png"
    sample(text_folder, "--prompt", "a red circle", "--prompt", "a blue square", "-n", 3, "--out", path)
    page, drawn = pixels(path), to_uint8(mmgen.load(text_folder).generate(prompts=["a red circle"], num=3).images)
    assert page.shape == (2 * (128 + 14) + 6, 3 * 128 + 2 * 6, 3)  # a row for each prompt, below each picture a line
    np.testing.assert_array_equal(page[:128:16, 134:262:16], drawn[1])
    assert (page[128:142] < 128).any() and (page[128:130] == 255).all()
    assert Image.open(path).text["prompts"].splitlines() == ["a red circle"] * 3 + ["a blue square"] * 3
    about = json.loads(path.with_suffix(".json").read_text())
    assert [p["prompt"] for p in about["pictures"]] == ["a red circle"] * 3 + ["a blue square"] * 3
    assert str(path) in capsys.readouterr().out


def test_files_tokens_and_array_hold_the_same_pictures(text_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n a blue square \n")
    npz, tokens, folder = tmp_path / "all.npz", tmp_path / "tokens.npz", tmp_path / "pictures"
    asked = ["--prompts", tmp_path / "prompts.txt", "-n", 2, "--seed", 5]
    sample(text_folder, *asked, "--out", folder, "--npz", npz, "--tokens", tokens)
    entries = json.loads((folder / "samples.json").read_text())["pictures"]
    files = np.stack([pixels(folder / entry["file"]) for entry in entries])
    array, ids = np.load(npz)["arr_0"], np.load(tokens)
    assert array.dtype == np.uint8 and array.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(files, array)
    assert Image.open(folder / "00002.png").text["prompt"] == "a blue square" == entries[2]["prompt"]
    expected = mmgen.load(text_folder).generate(prompts=["a red circle", "a blue square"], num=2, seed=5).tokens
    np.testing.assert_array_equal(ids["tokens"], expected)
    assert ids["prompts"].tolist() == ["a red circle"] * 2 + ["a blue square"] * 2


def test_labels_by_number_and_name(class_folder, tmp_path):
    sample(class_folder, "--label", "eel", "0", "--label", "dog", "--out", tmp_path / "a.png")
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["pictures"] == [{"label": 2, "name": "eel"}, {"label": 0, "name": "cat"}, {"label": 1, "name": "dog"}]


def test_without_labels_all_classes_take_turns_and_pieces_change_nothing(class_folder, tmp_path, monkeypatch):
    one, pieces, labels = tmp_path / "one.npz", tmp_path / "pieces.npz", tmp_path / "labels.npz"
    sample(class_folder, "--num", 7, "--npz", one, "--tokens", labels)
    monkeypatch.setattr(mmgen.Generator, "rows_at_once", 2)
    sample(class_folder, "--num", 7, "--npz", pieces)
    assert np.load(labels)["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(np.load(one)["arr_0"], np.load(pieces)["arr_0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.npz", "one.npz", "pieces.npz"]  # no grid, nothing temporary


def test_settings_reach_the_model(class_folder, tmp_path):
    ids = []
    flags = "--label 1 --top-k 1 --guidance 3 --guidance-schedule power_cosine:2 --temperature 0.7".split()
    for seed in (0, 1):  # top-k 1 draws the likeliest token whatever the seed
        sample(class_folder, *flags, "--seed", seed, "--tokens", tmp_path / "t.npz", "--out", tmp_path / "t.png")
        ids.append(np.load(tmp_path / "t.npz")["tokens"])
    np.testing.assert_array_equal(*ids)
    settings = json.loads((tmp_path / "t.json").read_text())["settings"]
    given = {"guidance": 3, "guidance_schedule": ["power_cosine", 2], "temperature": 0.7, "top_k": 1}
    assert settings == vars(Sampling()) | given  # what was not given is recorded too


def test_parallel_decoders_draw_the_same_pictures(class_folder, tmp_path, capsys):
    ids = []
    for flags in ("", "--decoder jacobi --window 3 --init upper", f"--decoder speculative --window 4 --draft {class_folder}"):
        sample(class_folder, "--label", 1, "-n", 3, "--temperature", 9, *flags.split(), "--tokens", tmp_path / "t.npz")
        ids.append(np.load(tmp_path / "t.npz")["tokens"])
        np.testing.assert_array_equal(ids[-1], ids[0])
    assert "2 forwards for 4 sites" in capsys.readouterr().out.splitlines()[-1]
    assert len(np.unique(ids[0])) > 3


KILLED = """
import os, signal, sys
import mmgen
from mmgen.cli import main as cli
draw, calls = mmgen.Generator.generate, []
def generate(*args, **options):
    calls.append(0)
    return draw(*args, **options) if len(calls) < 3 else os.kill(os.getpid(), signal.SIGKILL)
mmgen.Generator.generate, mmgen.Generator.rows_at_once = generate, 2
cli.main(sys.argv[1:])
"""


@pytest.fixture
def pieces(monkeypatch) -> "Pieces":
    """Pictures come two by two; the first index of each piece that is drawn. `pieces.stop`: where ctrl-C comes."""
    generate, pieces = mmgen.Generator.generate, Pieces()

    def counted(*args, **options):
        pieces.append(options["first_index"])
        if pieces[-1] == pieces.stop:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(mmgen.Generator, "generate", counted)
    monkeypatch.setattr(mmgen.Generator, "rows_at_once", 2)
    return pieces


class Pieces(list):
    stop = None


def contents(folder) -> dict[str, bytes | list[bytes]]:
    """Of all files, the arrays of archives (which hold the time) in their place."""
    arrays = {p.name: [array.tobytes() for array in np.load(p).values()] for p in folder.glob("*.npz")}
    return arrays | {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*") if p.suffix != ".npz"}


def test_a_thousand_prompts_take_the_memory_of_a_piece_and_show_how_many_are_done(text_folder, tmp_path, monkeypatch, capsys):
    """Pieces of 50; when one is drawn, at most the last one's pictures are still held. A look at the clock takes 11 s."""
    made, held, clock = [], [], itertools.count(0, 11)

    def generate(self, prompts, first_index, **_):
        held.append(sum(picture() is not None for picture in made))
        return Output(np.zeros((len(prompts), 4), np.int32), kept(np.full((len(prompts), 8, 8, 3), -1, np.float32)), 4)

    def kept(pictures: np.ndarray) -> np.ndarray:
        made.append(weakref.ref(pictures))
        return pictures

    monkeypatch.setattr(mmgen.Generator, "generate", generate)
    monkeypatch.setattr(mmgen.Generator, "rows_at_once", 50)
    monkeypatch.setattr(samples, "to_uint8", lambda pictures: kept(to_uint8(pictures)))
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    (tmp_path / "prompts.txt").write_text("\n".join(f"a red circle {i}" for i in range(1000)))
    sample(text_folder, "--prompts", tmp_path / "prompts.txt", "--npz", tmp_path / "a.npz", "--tokens", tmp_path / "t.npz")
    assert len(made) == 40 and len(held) == 20 and max(held) == 2  # as floats and as bytes
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (1000, 8, 8, 3)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in shown if "pictures" in line] == [f"{n}/1000" for n in range(50, 1001, 50)]


@pytest.mark.parametrize("how", ["ctrl-C", "SIGKILL"])
def test_a_stopped_job_goes_on_with_the_same_pictures(text_folder, tmp_path, pieces, how):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["a red circle", "a blue square", "a red square"] * 3))

    def job(folder, seed=3) -> list[str]:
        sinks = {"--out": folder / "pictures", "--npz": folder / "all.npz", "--tokens": folder / "ids.npz"}
        asked = ["--prompts", prompts, "--seed", seed, "--temperature", 9]
        return ["sample", *map(str, [text_folder, *asked, *(word for pair in sinks.items() for word in pair)])]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main(job(whole)) == 0 and pieces == [0, 2, 4, 6, 8]
    if how == "ctrl-C":
        pieces.stop = 4
        assert cli.main(job(stopped)) == 130
        pieces.stop = None
    else:
        assert subprocess.run([sys.executable, "-c", KILLED, *job(stopped)]).returncode == -signal.SIGKILL
    assert len(list(stopped.glob("pictures/*.png"))) == 4 and not (stopped / "all.npz").exists()
    (stopped / "pictures" / "00003.png").unlink()  # as if the disk had lost it: its piece is drawn again
    pieces.clear()
    assert cli.main(job(stopped)) == 0 and pieces == [2, 4, 6, 8]
    assert contents(stopped) == contents(whole)
    (stopped / "ids.npz").unlink()  # of several files some are whole
    pieces.clear()
    assert cli.main(job(stopped)) == 0 and pieces == [0, 2, 4, 6, 8] and contents(stopped) == contents(whole)
    pieces.clear()
    assert cli.main(job(stopped)) == 0 and pieces == []
    assert len(set(contents(whole)["all.npz"][0])) > 50
    pieces.clear()
    assert cli.main(job(stopped, seed=4)) == 0 and pieces == [0, 2, 4, 6, 8]
    assert contents(stopped).keys() == contents(whole).keys() and contents(stopped) != contents(whole)


@pytest.mark.parametrize(("option", "left"), [("--npz", ["a.npz.part", "a.npz.part.json"]), ("--out", ["a"])])
def test_another_job_does_not_go_on_with_a_stopped_one(class_folder, tmp_path, pieces, option, left):
    path = tmp_path / ("a.npz" if option == "--npz" else "a")
    asked = ["sample", str(class_folder), "--num", "5", "--temperature", "9", option, str(path)]
    pieces.stop = 4
    assert cli.main([*asked, "--seed", "1"]) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    pieces.stop = 2
    assert cli.main([*asked, "--seed", "2"]) == 130
    pieces.stop = None
    assert cli.main([*asked, "--seed", "2"]) == 0 and pieces == [0, 2, 4, 0, 2, 2, 4]
    expected = mmgen.load(class_folder).generate(labels=[0, 1, 2, 0, 1], seed=2, temperature=9.0, first_index=0).images
    made = np.load(path)["arr_0"] if path.is_file() else np.stack([pixels(file) for file in sorted(path.glob("*.png"))])
    np.testing.assert_array_equal(made, to_uint8(expected))
    assert list(tmp_path.iterdir()) == [path]


def test_two_jobs_do_not_write_one_file(class_folder, tmp_path, capsys):
    with (tmp_path / "a.npz.part").open("ab") as file:
        exclusive(file, "")
        message = error(capsys, class_folder, "--num", 2, "--npz", tmp_path / "a.npz")
    assert "a.npz is being written by another process: let it finish, or name another file" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "cta"], "there is no label 'cta': give a number in 0 .. 2 or one of its names: "),
        (["--label", "3"], "there is no label '3': give a number in 0 .. 2"),
        (["--prompt", "a cat"], "this model takes labels, not prompts: give --label K, a number in 0 .. 2"),
        (["-n", "0"], "--num 0: ask for at least one picture"),
        (["--out", "x.jpg"], "pictures are written as FILE.png or into a folder"),
        (["--npz", "x.png"], "--npz x.png: arrays are written as FILE.npz"),
        (["--tokens", "."], "--tokens .: arrays are written as FILE.npz"),
        (["--tokens", "x.npz", "--npz", "./x.npz"], "--tokens and --npz both name ./x.npz: name two files"),
        (["-n", "2000"], "2000 pictures are too many for one grid: give --out DIR (one file each) or --npz FILE"),
        (["--guidance-schedule", "liner"], "Did you mean 'linear'?"),
        (["--guidance-schedule", "power_cosine:x"], "write power_cosine:P with a number P"),
        (["--temperature", "-1"], "temperature -1.0 must be positive"),
        (["--decoder", "jacobi", "--window", "1"], "window 1 must be 2 or more"),
        (["--window", "4"], "window is a setting of decoder 'jacobi' or 'speculative', not of 'autoregressive'"),
        (["--decoder", "speculative"], "needs a draft"),
    ],
)
def test_mistakes(class_folder, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error(capsys, class_folder, *arguments)
    assert not list(tmp_path.iterdir())


def test_what_another_command_wrote_is_not_replaced(class_folder, tmp_path, capsys):
    array, text, picture = tmp_path / "a.npz", tmp_path / "README.md", tmp_path / "photo.png"
    np.savez(array, features=np.zeros(3))
    text.write_text("mine")
    Image.new("RGB", (2, 2)).save(picture)
    for option in ("--npz", "--tokens"):
        assert f"{option} {array}: another file is there" in error(capsys, class_folder, option, array)
    assert "pictures are written as FILE.png" in error(capsys, class_folder, "--out", text)
    assert "another picture is there" in error(capsys, class_folder, "--out", picture)
    (tmp_path / "bad.npz").write_text("no archive")
    assert "another file is there" in error(capsys, class_folder, "--npz", tmp_path / "bad.npz")
    assert text.read_text() == "mine" and list(np.load(array)) == ["features"] and pixels(picture).shape == (2, 2, 3)


def test_what_the_same_command_wrote_is(class_folder, tmp_path):
    npz, tokens, grid, folder = tmp_path / "a.npz", tmp_path / "t.npz", tmp_path / "g.png", tmp_path / "pictures"
    for count in (3, 2):
        sample(class_folder, "-n", count, "--npz", npz, "--tokens", tokens, "--out", grid)
    assert len(np.load(npz)["arr_0"]) == len(np.load(tokens)["tokens"]) == 2 and pixels(grid).shape == (142, 262, 3)
    sample(class_folder, "-n", 3, "--out", folder)
    with pytest.warns(UserWarning, match=r"holds 1 other pictures, such as 00002.png, .* samples.json lists those of this job"):
        sample(class_folder, "-n", 2, "--out", folder)
    assert len(json.loads((folder / "samples.json").read_text())["pictures"]) == 2
    with pytest.warns(UserWarning, match="2 pictures of another job in .* are being replaced"):
        sample(class_folder, "-n", 2, "--seed", 5, "--out", folder)
    assert json.loads((folder / "samples.json").read_text())["seed"] == 5


@pytest.mark.parametrize(
    "arguments",
    ["-n 0", "--seed -1", "--top-p 2", "--guidance nan", "--guidance-schedule liner", "--window 4", "--out x.jpg", "--npz x"],
)
def test_mistakes_show_before_anything_is_loaded(class_folder, arguments, monkeypatch):
    monkeypatch.setattr(samples, "load", None)
    assert cli.main(["sample", str(class_folder), *arguments.split()]) == 2


def test_words_without_quotes(text_folder, tmp_path):
    with pytest.warns(UserWarning, match="taken for 3 prompts of one word; quote what is one: --prompt 'a red bird'"):
        sample(text_folder, "--prompt", "a", "red", "bird", "--out", tmp_path / "a.png")
    about = json.loads((tmp_path / "a.json").read_text())
    assert [p["prompt"] for p in about["pictures"]] == ["a", "red", "bird"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [3]}, r"prompts must be texts, at least one: not \[3\]"),
        ({"prompts": 3}, "prompts must be texts"),
        ({"prompts": []}, "prompts must be texts"),
        ({"seed": 1.5}, "seed 1.5 must be a whole number in 0"),
        ({"seed": "one"}, "seed 'one' must be a whole number"),
        ({"seed": -1}, "seed -1 must be a whole number in 0 .. 4294967295"),
        ({"num": 2.5}, "num 2.5 must be a whole number from 1 on"),
        ({"first_index": -1}, "first_index -1 must be a whole number from 0 on"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
    ],
)
def test_arguments_of_another_kind_are_refused(text_folder, arguments, message):
    with pytest.raises(UserError, match=message):
        mmgen.load(text_folder).generate(**{"prompts": "a red circle"} | arguments)


def test_labels_of_another_kind_are_refused(class_folder):
    for labels in (1.5, [0, 1.5], [None], [[0]]):
        with pytest.raises(UserError, match="labels must be whole numbers or names"):
            mmgen.load(class_folder).generate(labels=labels)


def test_what_a_prompt_of_python_shows(class_folder):
    generator = mmgen.load(class_folder)
    assert repr(generator) == "Generator(labels -> 2 x 2 = 4 ids of 32 codes, NextToken, 0.00M parameters, float32)"
    assert repr(generator.tokenizer) == "Tokenizer(vqgan, 0.00M parameters, 8 x 8 pixels -> 2 x 2 = 4 ids of 32 codes)"
    out = generator.generate(labels=1)
    assert repr(out) == "Output(tokens int32 [1, 4], images float32 [1, 8, 8, 3], forwards 4)"
    assert repr(out._replace(images=None)) == "Output(tokens int32 [1, 4], images none, forwards 4)"


def test_a_model_of_features_says_where_they_are_taken(class_folder):
    generator = types.SimpleNamespace(config=types.SimpleNamespace(condition=FeatureCondition()))
    with pytest.raises(UserError, match=r"use mmgen.load\(DIR\).generate\(features=...\)"):
        samples.conditions(generator, ["a red bird"], None, None)


def test_a_text_model_needs_a_prompt_and_cuts_a_long_one_with_a_warning(text_folder, tmp_path, capsys, monkeypatch):
    assert "give --prompt TEXT" in error(capsys, text_folder)
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "holds no prompts" in error(capsys, text_folder, "--prompts", tmp_path / "empty.txt")
    with pytest.warns(UserWarning, match="cut to 6 tokens"):
        sample(text_folder, "--prompt", "a red circle " * 9, "--out", tmp_path / "a.png")


def test_without_a_tokenizer_only_ids_can_be_written(class_folder, tmp_path, capsys):
    gen = mmgen.load(class_folder)
    gen.tokenizer = None
    gen.save(tmp_path / "bare")
    assert "this model has no tokenizer" in error(capsys, tmp_path / "bare")
    sample(tmp_path / "bare", "--label", 1, "--tokens", tmp_path / "t.npz")
    assert np.load(tmp_path / "t.npz")["tokens"].shape == (1, 4)


def test_a_tokenizer_is_no_generator(tokenizer_folder, capsys):
    assert "does not hold a generator" in error(capsys, tokenizer_folder)


def test_schedule_names():
    assert samples.schedule(None) is None
    assert samples.schedule("linear") == "linear"
    assert samples.schedule("power_cosine:2.75") == ("power_cosine", 2.75)
