"""tools/bench/training.py: what it measures, and how it counts. How fast that is, is its to tell."""

import json
import math
import os
import sys
from dataclasses import replace

import pytest

from mmgen.model import attention
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, TokenLayout
from mmgen.model.flops import training_operations
from mmgen.parallel.chips import GIB, Chip

CONFIG = GeneratorConfig(
    layout=TokenLayout(height=3, width=4, codebook_size=7),
    condition=ClassCondition(3),
    block=BlockConfig(width=16, heads=2, mlp=24),
    depth=1,
    remat=True,
    remat_keep=("qkv",),
)


@pytest.fixture(scope="module")
def training(script):
    return script("training")


def test_models_are_the_published_ones_without_dropout(training):
    c = training.config_of(training.Setting("GPT-XL", 576, 8, remat="qkv mlp", attention="cudnn"))
    assert (c.layout.sites, c.depth, c.block.width, c.dropout) == (576, 36, 1280, Dropout())
    assert c.remat and c.remat_keep == ("qkv", "mlp") and c.attention == "cudnn"
    c = training.config_of(training.Setting("VAR-d30", 256, 8))
    assert (c.layout.sites, c.depth, c.block.width, c.dropout) == (680, 30, 1920, Dropout())
    assert not c.remat and c.attention == "xla"
    assert "VAR-d16" in training.MODELS and "GPT-3B" in training.MODELS


def test_each_row_has_a_process_of_its_own(training):
    assert training.apart(os.getpid) != os.getpid()


def test_what_does_not_fit_is_told_from_mistakes(training, monkeypatch):
    def steps(path, s):
        raise RuntimeError(path)

    monkeypatch.setattr(training, "peer_steps", steps)
    peer = training.Setting("GPT-B", 256, 1, "peer")
    assert training.measured(peer, "CUDA out of memory. Tried to allocate 2 GiB", 1, 1) is None
    with pytest.raises(RuntimeError, match="no such kernel"):
        training.measured(peer, "no such kernel", 1, 1)


def test_attention_that_is_replaced_is_no_row(training, monkeypatch):
    monkeypatch.setattr(training, "config_of", lambda s: replace(CONFIG, attention=s.attention))
    attention._announce.cache_clear()
    with pytest.raises(UserWarning, match="cuDNN is for NVIDIA GPUs"):
        training.measured(training.Setting("GPT-B", 256, 1, attention="cudnn"), None, 1, 1)


@pytest.fixture(scope="module")
def found(training, tmp_path_factory):
    """Two steps of ours take half a second, and so do the peer's; compiled, the peer's do not fit."""
    out, asked = tmp_path_factory.mktemp("bench") / "t.json", []

    def peer_steps(path, s):
        asked.append((path, s))
        if "compiled" in s.code:
            raise RuntimeError("CUDA out of memory")
        return lambda count: 5.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "config_of", lambda s: CONFIG)
        patch.setattr(training, "peer_steps", peer_steps)
        patch.setattr(training, "apart", lambda function, *arguments: function(*arguments))
        patch.setattr(training, "best_of", lambda run, repeats: run() or 0.5)
        patch.setattr(training, "peak", lambda ours: 3 * GIB if ours else None)
        patch.setattr(training, "matmul_rate", lambda *_: 100.0)
        patch.setattr(training, "chip_of", lambda kind: Chip((), 1, 1e-5, 1, 1))
        line = "training.py --batches 2 --remat yes --keep qkv --peer P --peer-forms eager compiled --steps 2 --out"
        patch.setattr(sys, "argv", [*line.split(), str(out)])
        training.main()
    assert [path for path, _ in asked] == ["P", "P"] and not out.with_name("t.json.part").exists()
    return json.loads(out.read_text()), out.with_suffix(".md").read_text().splitlines()


def test_rows_tell_pace_share_of_the_peak_and_memory(found):
    told, _ = found
    ours, eager, compiled = told["figures"]
    assert ours["code"] == "mmgen" and ours["remat"] == "qkv" and (ours["tokens"], ours["batch"]) == (12, 2)
    assert ours["milliseconds"] == 250 and ours["tokens_per_second"] == 2 * 12 / 0.25 and ours["memory_gib"] == 3
    for name, operations in training_operations(CONFIG)._asdict().items():
        rate = 2 * operations / 0.25 / 1e12
        assert ours[f"teraflops_{name}"] == pytest.approx(rate, rel=1e-3)
        assert ours[f"mfu_{name}"] == eager[f"mfu_{name}"] == pytest.approx(rate / 1e-5, abs=1e-4)
    assert ours["mfu_causal"] < ours["mfu_full"]
    assert ours["loss"] == pytest.approx(math.log(7), rel=0.1)  # a model that has seen nothing but chance
    assert eager["loss"] == 5.0 and "memory_gib" not in eager
    assert compiled["code"] == "LlamaGen's own, compiled" and not compiled["fits"] and "mfu_causal" not in compiled
    assert told["product_teraflops"] == 0.1


def test_the_table_says_the_same(found):
    told, lines = found
    head, _, ours, _, compiled = lines
    assert head.startswith("| model | tokens | batch | code | remat | attention | ms a step | tokens/s |")
    assert ours.startswith("| GPT-B | 12 | 2 | mmgen | qkv | xla | 250.0 | 96.0 |")
    assert ours.endswith(f"| {told['figures'][0]['mfu_full']:.1%} | 3.0 |")
    assert "| does not fit |" in compiled
