"""A collapse of the codebook is told, with what to change."""

import dataclasses
import functools
import math
import re

import mmgen_tokenizers as mt
import pytest
from mmgen_tokenizers.configs import to_json
from models import VQGAN, tokenizer_experiment

from mmgen.training import collapse
from mmgen.training.clock import Clock
from mmgen.training.report import Report
from mmgen.training.tokenizer_task import TokenizerTraining

NET = VQGAN.network


def experiment(model=VQGAN, **fields):
    """Of four tokens a picture, 4 pictures a step; judged from step 5 on."""
    chosen = tokenizer_experiment(**fields)
    return dataclasses.replace(chosen, task=dataclasses.replace(chosen.task, model=model))


def with_quantizer(quantizer):
    return mt.VQGAN(dataclasses.replace(NET, latent=quantizer.dim), quantizer, image_size=32, quant_conv=0)


def test_what_even_use_would_show():
    assert collapse.even_share(0, 10) == 0 and collapse.even_share(10**9, 16) == 1
    assert collapse.even_share(65536, 2**18) == collapse.even_share(10**9, 2**18) == pytest.approx(1 - math.exp(-0.25))


def test_a_collapse_is_one_line_with_remedies():
    said = collapse.warning(experiment(), 40, {"usage": 0.03})
    assert said.startswith("step 40: the codebook collapses: usage 3.0% (even use would show 100.0%). Change --optimizer.")
    assert said.endswith("or --task.model.quantizer.entropy (0.1)") and "revive_after" not in said
    for after in (None, 21):
        assert "--task.revive_after (20:" in collapse.remedies(experiment(revive_after=after).task)


def test_silence_where_all_is_well_or_nothing_can_be_said_yet():
    assert collapse.warning(experiment(), 40, {"usage": 0.26, "loss": 1.0}) == ""
    assert collapse.warning(experiment(), 4, {"usage": 0.03}) == ""  # dead codes come back after two steps
    assert collapse.warning(experiment(), 40, {"loss": 1.0}) == ""
    large = with_quantizer(mt.LFQ(18))  # 16 choices a step among 2^18
    assert collapse.warning(experiment(large), 10, {"usage": 160 / 2**18}) == ""
    assert "even use would show 0.1%" in collapse.warning(experiment(large), 10, {"usage": 10 / 2**18})


def test_the_scale_that_collapses_is_named():
    net = dataclasses.replace(NET, stem=8)
    scales = mt.MultiScale(net, mt.MultiScaleVQ(size=32, dim=4, scales=(1, 2, 4), phis=2), image_size=32, quant_conv=1)
    said = collapse.warning(experiment(scales), 100, {"usage": 1.0, "usage/1x1": 0.1, "usage/2x2": 0.5, "usage/4x4": 1.0})
    assert "collapses: usage/1x1 10.0% (even use would show 100.0%). Change" in said and "--task.start_from" in said


@pytest.mark.parametrize("quantizer", [VQGAN.quantizer, mt.FSQ((8, 5)), mt.MultiScaleVQ(size=32, dim=4, scales=(1, 4), phis=0)])
def test_what_is_to_be_changed_are_fields(quantizer):
    chosen = experiment(with_quantizer(quantizer), revive_after=None)
    for flag in re.findall(r"--(\S+)", collapse.remedies(chosen.task)):
        field = functools.reduce(lambda tree, name: tree[name], flag.split("."), to_json(chosen))
        assert not isinstance(field, dict), flag


@pytest.mark.parametrize(
    "quantizer, words", [(mt.FSQ((8, 5)), "quantizer.levels"), (mt.BSQ(8), "quantizer.entropy (more than 0.1)")]
)
def test_remedies_suit_the_quantizer(quantizer, words):
    said = collapse.warning(experiment(with_quantizer(quantizer)), 1000, {"usage": 0.01})
    assert words in said and "revive_after" not in said


def test_a_run_tells_it_once_until_it_is_over(tmp_path, capsys):
    chosen = experiment(steps=100, every_log=10)
    with Report(chosen, TokenizerTraining(chosen), tmp_path, None, 0, Clock()) as report:
        for step, usage in ((10, 0.03), (20, 0.03), (25, 0.9), (30, 0.9), (40, 0.02)):
            report.read(step, {"finite": True, "loss": 1.0, "usage": usage})
    told = [line for line in capsys.readouterr().err.splitlines() if "collapses" in line]
    assert [line.split(":")[0] for line in told] == ["step 10", "step 40"]
