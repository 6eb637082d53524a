"""Prompt suites as their authors publish them, and scorers of the user's."""

import json
import sys

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.evaluation.suites import Prompt, load_scorer, read_suite, scores_of


def test_files_of_every_kind(tmp_path):
    (tmp_path / "parti.tsv").write_text('Prompt\tCategory\tChallenge\na "cat\tAnimals\tBasic\n')
    rows = [{"tag": "counting", "prompt": "two cats"}, {"id": "7", "prompt": "a long one"}]
    (tmp_path / "geneval.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "tifa.json").write_text(json.dumps([{"id": "x", "caption": "a surfer"}, {"id": "no text"}]))
    (tmp_path / "color.txt").write_text("a green bench\n\n a blue bowl \n")
    found = read_suite([tmp_path / name for name in ("parti.tsv", "geneval.jsonl", "tifa.json", "color.txt")])
    assert found == [
        Prompt('a "cat', "Animals"), Prompt("two cats", "counting"), Prompt("a long one", "geneval"),
        Prompt("a surfer", "tifa"), Prompt("a green bench", "color"), Prompt("a blue bowl", "color"),
    ]  # fmt: skip


def test_published_suites_are_read_whole(shared):
    for name, count, categories in (
        ("PartiPrompts.tsv", 1632, 12), ("geneval/evaluation_metadata.jsonl", 553, 6), ("dpg_bench/prompts.jsonl", 1065, 1),
        ("tifa/tifa_v1.0_text_inputs.json", 4081, 1), ("t2i_compbench/color_val.txt", 300, 1),
    ):  # fmt: skip
        found = read_suite([shared(f"prompts/{name}")])
        assert (len(found), len({prompt.category for prompt in found})) == (count, categories), name


@pytest.mark.parametrize(("name", "text"), [("a.txt", "\n"), ("a.json", "{}"), ("a.jsonl", '{"x": 1}'), ("a.json", "[")])
def test_files_without_prompts(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="holds no prompts|is no file of prompts"):
        read_suite([tmp_path / name])


def test_scorers_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "judges_of_mine.py").write_text("def length(images, prompts):\n    return [len(p) for p in prompts]\n")
    scorer = load_scorer("judges_of_mine:length")
    assert scores_of(scorer, np.zeros((2, 4, 4, 3), np.uint8), ["a", "bcd"]).tolist() == [1, 3]
    (tmp_path / "broken_judge.py").write_text("import a_module_that_is_missing\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):  # the user's own trouble keeps its traceback
        load_scorer("broken_judge:f")
    for name, message in (
        ("judges_of_mine", "write module:function"),
        ("judges_of_mine:lenght", "has no function lenght. Did you mean 'length'"),
        ("judge_that_is_not:f", "there is no module judge_that_is_not"),
    ):
        with pytest.raises(UserError, match=message):
            load_scorer(name)


@pytest.mark.parametrize("given", [[1.0], [[1.0], [2.0]], [1.0, float("nan")], 3.0])
def test_scores_must_be_one_number_a_picture(given):
    with pytest.raises(UserError, match="it must give one finite number for each"):
        scores_of(lambda images, prompts: given, np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"])
