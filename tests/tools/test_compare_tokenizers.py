"""tools/bench/compare_tokenizers.py: what it makes of figures. Training, tokenizing and drawing are tested where they live."""

import importlib.util
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from mmgen_tokenizers.files import write_json
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.pictures import write_png

from mmgen.data.shapes import draw, parse, scene


@pytest.fixture(scope="module")
def script(repository):
    spec = importlib.util.spec_from_file_location("compare_tokenizers", repository / "tools/bench/compare_tokenizers.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUALITY = {"psnr_emoji": 18.0, "psnr_kodak": 23.0, "ssim_emoji": 0.4, "ssim_kodak": 0.5, "usage": 0.995}
PICTURES = {"sites": 64, "groups": 1, "codes": 256, "bits": 512.0, "parameters": 750_000, **QUALITY}
TRAINED = {"steps": 10, "rows": 12_345, "seconds": 60.0, "cores": 1, "loss": 1.0}
SCENES = {"bits_needed": 100.4, "reconstructions_right": 0.5, "things_right": 0.25, "objects_right": 0.125, "places_right": 0.1}


@pytest.fixture
def out(tmp_path):
    """fsq is done, vq has its pictures only, titok is still training."""
    for family, stages in {"fsq": {"generator": TRAINED, "scenes": SCENES}, "vq": {}}.items():
        for name, figures in {"tokenizer": TRAINED, "pictures": PICTURES, **stages}.items():
            (tmp_path / f"{family}-512").mkdir(exist_ok=True)
            write_json(tmp_path / f"{family}-512" / f"{name}.json", figures)
    (tmp_path / "titok-512").mkdir()
    return tmp_path


def test_the_table_has_what_is_done(script, out):
    head, _, vq, fsq = script.table(script.rows(out)).splitlines()
    assert head.startswith("| family | ids | codes | bits |")
    assert vq == "| vq | 64 | 256 | 512 | 0.75M | 12.3k | 18.00 | 23.00 | 0.400 | 0.500 | 99.5% | - | - | - | - | - |"
    assert fsq.endswith("| 99.5% | 12.3k | 100 | 50.0% | 25.0% | 12.5% |")


def test_the_report_names_no_folder_and_plots_what_was_drawn(script, out):
    script.report(script.rows(out), "python compare", out / "r.json")
    plot = ET.parse(out / "r.svg").getroot()
    labels = [text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert "fsq 512" in labels and "vq 512" not in labels
    assert (out / "r.md").read_text() == script.table(script.rows(out))
    assert str(out) not in (out / "r.json").read_text()


def test_a_stage_is_done_once(script, tmp_path):
    assert script.once(tmp_path / "a" / "x.json", lambda: {"n": 1}) == {"n": 1}
    assert script.once(tmp_path / "a" / "x.json", lambda: 1 / 0) == {"n": 1}


def test_crops_come_from_each_picture_in_turn(script, tmp_path):
    for i, size in enumerate([(64, 100), (200, 64)]):
        write_png(tmp_path / f"{i}.png", np.full((*size, 3), 100 * i, np.uint8))
    found = script.crops(tmp_path, 5)
    assert found.shape == (5, 64, 64, 3)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 100, 0, 100, 0])


def test_scales_become_one_sequence(script):
    scales = TokenLayout("scales", 2, 2, 16, scales=((1, 1), (2, 2)))
    assert script.flat(scales) == TokenLayout("sequence", 1, 5, 16)
    assert script.flat(TokenLayout(height=8, width=8, codebook_size=4)) == TokenLayout(height=8, width=8, codebook_size=4)


def test_scenes_are_asked_for_once_and_few_things_at_a_time(script, monkeypatch):
    monkeypatch.setattr(script, "SCENES", {"test": 60})
    pictures, captions = script.asked_for()
    said = [parse(caption) for caption in captions]
    assert len(pictures) == len(set(said)) == len(said) < 60
    assert max(len(one.things) for one in said) == 2


def test_a_share_of_the_named_things_counts(script):
    made = next(made for made in (scene(i, "test") for i in range(100)) if len(made.objects) == 2)
    right = draw(made, 64)
    half = draw(type(made)(made.objects[:1], made.caption), 64)
    nothing = np.full_like(right, 255)
    judged = script.judged([made.caption] * 3, np.stack([right] * 3), np.stack([right, half, nothing]) / 127.5 - 1)
    assert script.things_right(judged) == pytest.approx((1 + 0.5 + 0) / 3)
    assert judged.objects_right == pytest.approx(1 / 3)
