"""The report page: one file, no address outside, every figure and picture on it."""

import base64
from html.parser import HTMLParser

import numpy as np
import pytest
from mmgen_tokenizers.pictures import read_picture

from mmgen.report import Card, Chart, Figure, Gallery, Table, ticks, write_report

RED = np.full((4, 4, 3), (222, 55, 48), np.uint8)
BLUE = np.full((4, 4, 3), (42, 98, 222), np.uint8)


class Tags(HTMLParser):
    """Collects tags and checks that each one is closed."""

    EMPTY = {"meta", "img"}

    def __init__(self, page):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, name, kind=""):
        return [a for tag, a in self.seen if tag == name and kind in a.get("class", "")]


def page(tmp_path, figures=(), charts=(), galleries=(), title="A <run>"):
    path = tmp_path / "report.html"
    write_report(path, title, figures, charts, galleries, about="two & three")
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_else(tmp_path):
    text = page(tmp_path, [Figure("a", 1)], [Chart("b", {"c": ([0, 1], [2, 3])})], [Gallery("d", [Card([RED])])])
    assert "http" not in text and "<script" not in text and "<link" not in text and "url(" not in text
    assert "A &lt;run&gt;" in text and "two &amp; three" in text
    Tags(text)


def test_figures_stand_beside_their_targets(tmp_path):
    rows = [Figure("PSNR", 27.123, 24.0, "dB"), Figure("right", 0.5, 0.7, "%"), Figure("minutes", 9.0, 15.0, less=True),
            Figure("prompts", 256), Figure("device", "cpu")]  # fmt: skip
    text = page(tmp_path, rows)
    assert "27.12 dB" in text and "at least 24.00 dB" in text and "50.0%" in text and "at least 70.0%" in text
    assert "at most 15.00" in text and ">256<" in text and ">cpu<" in text
    assert (text.count("✓&nbsp;reached"), text.count("✗&nbsp;missed")) == (2, 1)


def test_pictures_are_lossless_and_verdicts_are_told(tmp_path):
    cards = [Card([RED, BLUE], "a 'red' one", True), Card([BLUE], "b", False, "two blue"), Card([RED])]
    text = page(tmp_path, galleries=[Gallery("samples", cards, "what they are", shown=64)])
    found = [base64.b64decode(a["src"].split(",")[1]) for a in Tags(text).all("img")]
    for data, expected in zip(found, (RED, BLUE, BLUE, RED), strict=True):
        np.testing.assert_array_equal(read_picture(data), expected)
    assert "✓&nbsp;right" in text and "✗&nbsp;two blue" in text and "what they are" in text
    assert [len(Tags(text).all("div", kind)) for kind in ("card good", "card bad", "card")] == [1, 1, 4]  # "cards" too


def test_curves_stay_on_the_paper(tmp_path):
    steps = np.arange(5000)
    curves = {"training": (steps, 5 * np.exp(-steps / 900) + 1), "validation": ([0, 2500, 4999], [6.0, float("nan"), 1.0])}
    text = page(tmp_path, charts=[Chart("loss", curves), Chart("empty", {"x": ([], [])})])
    lines = Tags(text).all("polyline")
    assert len(lines) == 2 and "empty" not in text
    for line in lines:
        points = np.array([point.split(",") for point in line["points"].split()], float)
        assert len(points) <= 300
        assert (points >= 0).all() and (points <= (460, 230)).all()
    down = np.array([point.split(",") for point in lines[0]["points"].split()], float)
    assert (np.diff(down[:, 0]) > 0).all() and (np.diff(down[:, 1]) >= 0).all()  # to the right and, as the loss falls, down
    assert text.count('class="key"') == 2
    assert len(Tags(text).all("circle", "dot c1")) == 2  # few points are marked, many are a line
    assert not Tags(text).all("circle", "dot c0")


@pytest.mark.parametrize("low, high", [(0, 1), (0, 4999), (1.37, 1.39), (-3, 12), (0, 0), (5, 5), (1e-6, 3e-6), (24.1, 31.7)])
def test_ticks_are_few_round_and_enclosing(low, high):
    made = ticks(low, high)
    assert 2 <= len(made) <= 8
    assert made[0] <= low + 1e-12 and made[-1] >= high - 1e-9 * max(1, abs(high))
    steps = np.diff(made)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert float(f"{steps[0]:e}".split("e")[0]) in (1, 2, 2.5, 5)


def test_tables(tmp_path):
    table = Table("Orders", ["", "right"], [["a < b", "1.0%"]])
    path = tmp_path / "report.html"
    write_report(path, "A", [], [], [], tables=[table])
    text = path.read_text()
    assert "<th>a &lt; b</th><td class=value>1.0%</td>" in text and "<h2>Orders</h2>" in text
    Tags(text)
    assert table.markdown == "|  | right |\n| --- | ---: |\n| a < b | 1.0% |"


def test_a_page_without_figures_has_no_table_of_them(tmp_path):
    write_report(tmp_path / "page.html", "No figures", [], [], [])
    assert "<table" not in (tmp_path / "page.html").read_text()
