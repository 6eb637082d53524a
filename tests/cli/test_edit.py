"""`mmgen edit`: what is drawn anew, what is kept, and what is refused."""

import json

import numpy as np
import pytest
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import write_png
from PIL import Image

from mmgen import editing
from mmgen.cli import main as cli


def run(*arguments) -> int:
    return cli.main(["edit", *map(str, arguments)])


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.fixture
def picture(tmp_path):
    """8 x 8 pixels, the model's own size; its cells are 4 x 4."""
    path = tmp_path / "picture.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))
    return path


def mask(folder, rows: slice, columns: slice, size: tuple[int, int] = (8, 8)):
    white = np.zeros((*size, 3), np.uint8)
    white[rows, columns] = 255
    write_png(folder / "mask.png", white)
    return folder / "mask.png"


def test_only_what_the_mask_marks_is_drawn_anew(masked_folder, picture, tmp_path):
    hole, out = mask(tmp_path, slice(1, 4), slice(5, 8)), tmp_path / "out.png"
    assert run(masked_folder, picture, "--mask", hole, "--label", "dog", "--steps", 2, "--out", out) == 0
    before, after, inside = pixels(picture), pixels(out), np.zeros((8, 8), bool)
    inside[1:4, 5:8] = True
    assert (after == before)[~inside].all() and (after != before)[inside].any()
    about = json.loads(Image.open(out).text["mmgen"])
    assert about["label"] == "dog" and about["settings"] == {"steps": 2} and about["seed"] == 0


def test_tokens_of_cells_without_a_marked_pixel_are_given_and_kept(masked_folder, picture, tmp_path, monkeypatch):
    seen = {}

    def generate(self, **given):
        seen.update(given)
        return original(self, **given)

    original = editing.Generator.generate
    monkeypatch.setattr(editing.Generator, "generate", generate)
    hole = mask(tmp_path, slice(3, 4), slice(7, 8))
    assert run(masked_folder, picture, "--mask", hole, "--out", tmp_path / "out.png") == 0
    assert seen["known_mask"].tolist() == [[True, False, True, True]] and seen["labels"] == [3]  # the null class
    generator = editing.load(masked_folder)
    assert (seen["known"] == generator.tokenizer.encode(pixels(picture)[None])).all()
    tokens = original(generator, **seen).tokens
    assert (tokens[0, [0, 2, 3]] == seen["known"][0, [0, 2, 3]]).all()


@pytest.mark.parametrize(("side", "where"), [("left", np.s_[:, 3:]), ("top", np.s_[3:, :]), ("right", np.s_[:, :-3])])
def test_a_picture_is_continued_at_a_side(masked_folder, picture, tmp_path, side, where):
    out = tmp_path / "out.png"
    assert run(masked_folder, picture, "--extend", f"{side}=3", "--out", out) == 0
    after = pixels(out)
    assert after.shape == ((11, 8, 3) if side == "top" else (8, 11, 3))
    assert (after[where] == pixels(picture)).all()


def test_info_of_a_masked_model_tells_its_rounds(masked_folder, capsys):
    assert cli.main(["info", str(masked_folder)]) == 0
    text = capsys.readouterr().out
    assert "steps  2" in text and "step -> share of the tokens that it finds hidden\n  1.00 0.71\n" in text


def test_a_window_moves_with_the_edge(picture):
    """Of a picture of 8 x 20 pixels, continued to the left by 2, the model sees the leftmost 6."""
    wide = np.random.default_rng(0).integers(0, 256, (8, 20, 3)).astype(np.uint8)

    def draw(window, anew):
        assert (window[:, 2:] == wide[:, :6]).all() and anew[:, :2].all() and not anew[:, 2:].any()
        return np.where(anew[..., None], 7, window)

    after = editing.continue_at(wide, "left", 2, 8, draw)
    assert (after[:, 2:] == wide).all() and (after[:, :2] == 7).all() and after.shape == (8, 22, 3)
    tall = editing.continue_at(wide.transpose(1, 0, 2), "left", 2, 8, lambda window, anew: window)
    assert tall.shape == (8, 10, 3)  # its middle


def test_coarse_cells_stay_where_most_of_them_does():
    layout = TokenLayout("scales", 4, 4, 7, scales=((1, 1), (2, 2), (3, 3), (4, 4)))
    anew = np.zeros((16, 16), bool)
    anew[8:, 6:] = True
    one, two, three, four = np.split(editing.kept_sites(layout, anew), (1, 5, 14))
    assert one.tolist() == [True] and two.tolist() == [True, True, True, False]
    # Cells of 16 / 3 pixels: of the middle row half is marked, of the middle column 7 / 8.
    assert three.reshape(3, 3).tolist() == [[True] * 3, [True, True, True], [True, False, False]]
    assert four.reshape(4, 4).tolist() == [[True] * 4] * 2 + [[True, False, False, False]] * 2


def test_next_token_continues_downwards_and_says_why_no_more(class_folder, picture, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert run(class_folder, picture, "--extend", "bottom=4", "--label", "cat", "--out", out) == 0
    assert (pixels(out)[:8] == pixels(picture)).all() and pixels(out).shape == (12, 8, 3)
    assert run(class_folder, picture, "--extend", "top=4", "--out", out) == 2
    assert "NextToken cannot look ahead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "small.png"], "small.png is 4 x 8 pixels, the picture 8 x 8: they must have the same size"),
        (["--mask", "black.png"], "marks nothing: what is to be drawn anew must be white"),
        (["--mask", "white.png", "--prompt", "x"], "this model takes labels, not prompts"),
        (["--mask", "white.png", "--label", "cta"], "Did you mean 'cat'?"),
        (["--mask", "wihte.png"], "Did you mean 'white.png'?"),
        (["--extend", "left"], "write SIDE=PIXELS"),
        (["--extend", "up=3"], "with a side of left, right, top, bottom"),
        (["--mask", "white.png", "--seed", "-1"], "seed -1 must be a whole number"),
        (["--extend", "left=8"], "the model's pictures are 8 pixels wide; continue by 1 to 7"),
        ([], "one of the arguments --mask --extend is required"),
    ],
)
def test_mistakes(masked_folder, picture, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, value, width in (("small", 255, 4), ("black", 0, 8), ("white", 255, 8)):
        write_png(f"{name}.png", np.full((8, width, 3), value, np.uint8))
    assert run(masked_folder, picture, *arguments, "--out", "out.png") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.png").exists()


def test_a_text_model_draws_without_a_prompt_too(text_folder, picture, tmp_path, capsys):
    out = tmp_path / "out.png"
    for more in ([], ["--prompt", "a red circle"]):
        assert run(text_folder, picture, "--extend", "bottom=4", *more, "--out", out) == 0
    assert run(text_folder, picture, "--extend", "bottom=4", "--label", 1, "--out", out) == 2
    assert "this model takes prompts, not labels" in capsys.readouterr().err
