"""tools/bench/compare_tokenizers.py: what it makes of figures. Training, tokenizing and drawing are tested where they live."""

import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import write_png

from mmgen.data.shapes import parse


@pytest.fixture(scope="module")
def bench(script):
    return script("compare_tokenizers")


QUALITY = {"psnr_emoji": 18.0, "psnr_kodak": 23.0, "ssim_emoji": 0.4, "ssim_kodak": 0.5, "usage": 0.995}
PICTURES = {"sites": 64, "groups": 1, "codes": 256, "bits": 512.0, "parameters": 750_000, **QUALITY}
TRAINED = {"steps": 10, "pictures": 12_345, "seconds": 99.0, "cores": 1, "loss": 1.0}
SCENES = {"bits_needed": 100.4, "readable_unseen": 0.5, "verified_learned": 0.25, "verified_unseen": 0.125}


@pytest.fixture
def out(bench, tmp_path, monkeypatch):
    """fsq is done, vq has its pictures only, titok is still training."""
    monkeypatch.setattr(bench, "seconds_of", lambda folder: 60.0)
    first = {"tokenizer: steps": 10, "tokenizer: training": TRAINED}
    pictures = {**first, "pictures": PICTURES}
    stages = {"titok": first, "vq": pictures, "fsq": {**pictures, "generator: training": TRAINED, "scenes": SCENES}}
    for family, done in stages.items():
        write_json(tmp_path / f"{family}-512" / "stages.json", done)
    return tmp_path


def test_the_table_has_what_is_done(bench, out):
    head, _, vq, fsq = bench.table(bench.rows(out)).splitlines()
    assert head.startswith("| family | bits | ids x codes | PSNR emoji |")
    assert vq == "| vq | 512 | 64 x 256 | 18.00 | 23.00 | 0.400 | 0.500 | 99.5% | - | - | - | - |"
    assert fsq.endswith("| 99.5% | 100 | 50.0% | 25.0% | 12.5% |")
    assert bench.rows(out)[1]["generator"] == {"steps": 10, "pictures": 12_345, "cores": 1, "seconds": 60.0}


def test_ids_are_told_with_their_groups(bench, out):
    row = {**bench.rows(out)[0], "groups": 3}
    assert "| 64 x 3 x 256 |" in bench.table([row])


def test_what_was_drawn_is_plotted(bench, out):
    """20.5 dB lie between 20 and 25, 25% at the top; two discs at one place have their names above each other."""
    bench.write_all(bench.rows(out), out / "r.json")
    assert (out / "r.md").read_text() == bench.table(bench.rows(out))
    fsq = bench.rows(out)[1]
    kind = "{http://www.w3.org/2000/svg}"
    alone, both = (ET.fromstring(svg) for svg in ((out / "r.svg").read_text(), bench.plot([fsq, {**fsq, "family": "lfq"}])))
    labels = [text.text for text in alone.iter(f"{kind}text")]
    assert {"fsq 512", "20", "25", "15"} <= set(labels) and "vq 512" not in labels
    [disc] = alone.iter(f"{kind}circle")
    assert (float(disc.get("cx")), float(disc.get("cy"))) == (bench.LEFT + 55, bench.TOP)
    heights = [float(text.get("y")) for text in both.iter(f"{kind}text") if text.text in ("fsq 512", "lfq 512")]
    assert len(heights) == 2 and abs(heights[0] - heights[1]) >= 14


def test_names_in_the_plot_do_not_cover_each_other(bench):
    assert bench.free_place(300.0, 200.0, [(90.0, 200.0)]) == (300, 200)
    assert bench.free_place(100.0, 200.0, [(90.0, 200.0), (120.0, 184.0)]) == (100, 170)  # above both: too little between them


def test_what_the_first_ids_show_has_a_table(bench, out):
    rows = [row | {"psnr_of_first": {"1": 12.0, "5": 13.25}} for row in bench.rows(out)[:1]] + bench.rows(out)[1:]
    bench.write_all(rows, out / "r.json")
    assert (out / "r.md").read_text() == bench.table(rows) + "\n" + bench.prefix_table(rows)
    assert bench.prefix_table(rows).splitlines()[2:] == ["| vq | 512 | 1: 12.00, 5: 13.25 |"]


def test_the_readme_shows_the_results(repository):
    table = (repository / "tools" / "bench" / "results" / "tokenizers_cpu.md").read_text()
    assert table in (repository / "tokenizers" / "README.md").read_text()


def test_a_misspelt_family_is_told_before_anything_is_done(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare_tokenizers.py", str(tmp_path / "out"), "--families", "vq,lqf"])
    with pytest.raises(UserError, match="there are the families vq, ibq, lfq"):
        bench.main()
    assert not (tmp_path / "out").exists()


def test_crops_come_from_each_picture_in_turn(bench, tmp_path):
    for i, size in enumerate([(64, 100), (200, 64)]):
        write_png(tmp_path / f"{i}.png", np.full((*size, 3), 100 * i, np.uint8))
    found = bench.crops(tmp_path, 5)
    assert found.shape == (5, 64, 64, 3)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 100, 0, 100, 0])


def test_scales_become_one_sequence(bench):
    scales = TokenLayout("scales", 2, 2, 16, scales=((1, 1), (2, 2)))
    assert bench.flat(scales) == TokenLayout("sequence", 1, 5, 16)
    assert bench.flat(TokenLayout(height=8, width=8, codebook_size=4)) == TokenLayout(height=8, width=8, codebook_size=4)


def test_each_caption_of_one_thing_is_asked_for_as_often(bench):
    pictures, captions = bench.asked_for("test")
    times = Counter(captions).values()
    assert len(pictures) == len(captions) == bench.DRAWN and max(times) - min(times) <= 1
    assert all(len(parse(caption).things) == 1 for caption in captions)
    assert bench.share_right(captions, pictures / 127.5 - 1) == 1  # each is true of the picture beside it
    assert bench.share_right(captions, pictures[::-1] / 127.5 - 1) < 0.2
    assert not set(captions) & set(bench.scenes("train")[1])
