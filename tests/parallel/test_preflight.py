"""`mmgen preflight`: the step of a run that nothing is there for, neither data nor devices.

One command compiles for four fake CPU devices; libtpu's programs are compiled where it is installed (the extra `tpu`).
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.config import Data, Experiment, GeneratorTask, MeshSizes, TokenShards, overrides
from mmgen.model.config import GeneratorConfig
from mmgen.parallel import chips, hlo, preflight, sampling
from mmgen.parallel.forecast import NO_TEXT, describe, forecast
from mmgen.parallel.overhear import copied, overheard

EXPERIMENT = """
from mmgen.config import Data, Experiment, GeneratorTask, TokenShards
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig, TokenLayout

def experiment():
    layout, block = TokenLayout(height=4, width=4, codebook_size=256), BlockConfig(width=64, heads=4, mlp=128)
    model = GeneratorConfig(layout=layout, condition=ClassCondition(7), block=block, depth=2)
    return Experiment(GeneratorTask(model, tokenizer="not/there"), Data(TokenShards("not/there")), batch=8)
"""
D, F, V, L, S = 64, 128, 256, 2, 16
LAYER = 4 * D * D + 3 * D * F


def command(folder, *arguments) -> subprocess.CompletedProcess:
    file = folder / "small.py"
    file.write_text(EXPERIMENT)
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    line = [sys.executable, "-m", "mmgen.cli.main", "preflight", file, "--json", folder / "found.json", *arguments]
    return subprocess.run(line, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preflight")
    done = command(folder, "--topology", "cpu:4", "--mesh.tensor", "2", "--task.model.remat", "true")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()) | {"text": done.stdout, "stderr": done.stderr}


def test_a_device_holds_its_pieces_of_the_state(found):
    """By hand: matrices are in four pieces, vectors of width D (a norm of the head, two of each layer) in two over fsdp."""
    matrices = L * LAYER + V * D + 8 * D + D * V  # layers, table of tokens, of classes (no tensor axis), head
    parameters = 4 * (matrices / 4 + 8 * D / 4 + (2 * L + 1) * D / 2)
    assert found["parameters"] == matrices + (2 * L + 1) * D
    assert found["bytes"]["parameters"] == pytest.approx(parameters, rel=1e-3)
    assert found["bytes"]["optimizer"] == pytest.approx(2 * parameters, rel=1e-3)
    assert found["bytes"]["other"] == 4 + 8 // 2 * (S * 4 + 4)  # the number of the step, and half of the batch


def test_with_remat_each_layer_keeps_its_input(found):
    assert found["bytes"]["activations"] == pytest.approx(L * 8 // 2 * S * D * 4, rel=0.05)


def test_operations_of_the_program_are_those_of_the_formula_and_what_remat_repeats(found):
    """But for the last product of each layer, whose result the way back does not need."""
    counted, forward = found["operations"], 2 * 8 * (S * L * LAYER + 2 * L * S * S * D)
    assert counted["model_full"] == 3 * (forward + 2 * 8 * S * D * V)
    assert counted["model_full"] - counted["model_causal"] == 6 * 8 * 2 * L * D * (S * (S - 1) // 2)
    assert counted["model_full"] + 0.75 * forward < counted["hardware"] < counted["model_full"] + forward


def test_collectives_are_counted_by_kind(found):
    """fsdp gathers the pieces of a layer for the way there and the way back, from one other device; tensor sums twice a layer
    and direction."""
    gathered = 4 * LAYER / 2 / 2
    assert 2 * L * gathered <= found["collectives"]["all-gather"]["received"] < 4 * L * gathered
    assert found["collectives"]["all-reduce"]["count"] >= 4 * L


def test_people_read_the_same(found):
    assert "cpu:4: 4 devices, mesh replica 1 x fsdp 2 x tensor 2 x sequence 1\nbatch 8\n" in found["text"]
    assert re.search(r"all-gather +\d\.\d+ GiB received", found["text"]) and "time" not in found
    assert found["copied"] == [] and not found["stderr"]


def test_what_draws_pictures_needs_weights_and_a_cache(tmp_path):
    """By hand: 16 guided rows on two replicas, each of two devices; 16 forwards, whose caches have one slot, then all."""
    done = command(tmp_path, "--topology", "cpu:4", "--sample", "8", "--mesh.tensor", "2", "--task.sampling.guidance", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    rows, slots = 16, 1 + 15 * 16
    assert found["bytes"]["cache"] == 2 * L * D * 16 * 4 * (rows // 2) / 2
    assert found["bytes"]["parameters"] == 4 * ((L * LAYER + 2 * V * D) / 2 + 9 * D - D + (2 * L + 1) * D)
    assert found["operations"] == {"hardware": 2 * rows * (S * (L * LAYER + V * D) + 2 * L * D * slots)}
    assert found["collectives"]["all-reduce"]["count"] >= 2 * L * S and found["collectives"]["all-reduce"]["count"] < 4 * L * S
    assert "8 pictures are drawn at once, in 16 forwards with guidance" in done.stdout and found["rows_at_once"] is None


def test_pictures_that_replicas_cannot_share_are_refused():
    experiment = Experiment(GeneratorTask(GeneratorConfig()), Data(TokenShards("x")))
    with pytest.raises(UserError, match="each of 4 replicas draws a power of two pictures, so give 4, 8, 16"):
        sampling.prepared(experiment, chips.Topology("x:4", (None,) * 4, None, exact=True), 12)


def test_what_does_not_fit_is_mended_by_trial(tmp_path, monkeypatch, capsys):
    """Memory of which the state takes a half: the first change that is enough ends the search."""
    from mmgen.cli import preflight as verb

    def needs(step, optimize) -> preflight.Needs:
        asked.extend([] if optimize else [step])
        return made(temporaries=sizes[len(asked) - 1], optimized=optimize)

    asked, sizes = [], [2**31, 2**30, 2**28]
    chip = chips.Chip(("x",), memory=1.0, peak=1, bandwidth=1, link=1)
    monkeypatch.setattr(chips, "topology", lambda name: chips.Topology(name, (None,) * 4, chip, exact=True))
    monkeypatch.setattr(preflight, "prepared", lambda experiment, topology: Prepared(experiment))
    monkeypatch.setattr(preflight, "compiled", needs)
    (tmp_path / "small.py").write_text(EXPERIMENT)
    with pytest.raises(SystemExit) as stopped:
        verb.main([str(tmp_path / "small.py"), "--topology", "x:4", "--json", str(tmp_path / "found.json")])
    assert stopped.value.code == 1
    tried = json.loads((tmp_path / "found.json").read_text())["tried"]
    assert [(one["flags"], one["fits"]) for one in tried] == [
        (["--task.model.remat", "true"], False),
        (["--task.model.remat", "true", "--accumulate", "2"], True),
    ]
    assert [(step.experiment.task.model.remat, step.experiment.accumulate) for step in asked] == [
        (False, 1),
        (True, 1),
        (True, 2),
    ]
    assert "this fits: --task.model.remat true --accumulate 2" in capsys.readouterr().out


class Prepared:
    def __init__(self, experiment: Experiment):
        self.experiment, self.parts = experiment, {"parameters": 2**29}


def made(**fields) -> preflight.Needs:
    """Needs of 1 GiB but for what is given."""
    usual = dict(about={"rows": 64, "accumulate": 1}, mesh=(1, 4, 1, 1), parameters=1, parts={"parameters": 2**29},
                 kept=("activations", 2**28), temporaries=2**29, moved=1, operations=10, formula=None, unit=("pictures", 1),
                 traffic={}, copied=[], optimized=True, seconds=1.0)  # fmt: skip
    return preflight.Needs(**usual | fields)


def test_heads_are_split_where_a_batch_in_parts_does_not_help(monkeypatch):
    """Its 96 rows have twelve divisors: each would be a compilation."""
    chip = chips.Chip((), memory=1.0, peak=1, bandwidth=1, link=1)
    monkeypatch.setattr(
        preflight, "compiled", lambda step, optimize: made(temporaries=2**29 if step.experiment.mesh.tensor == 2 else 2**30)
    )
    experiment = Experiment(GeneratorTask(GeneratorConfig(remat=True)), Data(TokenShards("x")), batch=384)
    tried, topology = preflight.changes(experiment, 4), chips.Topology("x:4", (None,) * 4, chip, exact=True)
    found = [flags for flags, _ in preflight.nearest(lambda flags: Prepared(overrides(experiment, flags)), tried, topology)]
    assert found == [
        *(["--accumulate", str(n)] for n in (2, 8, 96)),
        ["--mesh.replica", "1", "--mesh.fsdp", "2", "--mesh.tensor", "2"],
    ]


def test_what_might_not_fit_is_compiled_as_a_run_is(monkeypatch):
    def needs(step, optimize) -> preflight.Needs:
        asked.append(optimize)
        return made(temporaries=step, optimized=optimize)

    asked, topology = [], chips.Topology("x:4", (None,) * 4, chips.Chip((), 1.0, 1, 1, 1), exact=True)
    monkeypatch.setattr(preflight, "compiled", needs)
    tried = (2**28, False), (2**28 + 2**25, False), (2**29 - 2**26, False), (2**30, False), (2**28, True)
    for temporaries, optimize in tried:
        preflight.measured(temporaries, topology, optimize)
    assert asked == [False, False, False, True, False, True, True]
    preflight.measured(2**28, replace(topology, exact=False))
    assert asked[-1]


def test_changes_keep_to_the_devices():
    """From the smallest: remat, no replicas, the batch in parts, heads over devices, a smaller batch."""
    experiment = Experiment(GeneratorTask(GeneratorConfig()), Data(TokenShards("x")), batch=64, mesh=MeshSizes(2, 2, 2, 1))
    found = [" ".join(flags) for flags in preflight.changes(experiment, 8)]
    common = "--task.model.remat true --mesh.replica 1 --mesh.fsdp 4"
    assert found[:4] == ["--task.model.remat true", common, f"{common} --accumulate 2", f"{common} --accumulate 8"]
    assert "--task.model.remat true --mesh.replica 1 --mesh.fsdp 2 --mesh.tensor 4" in found
    assert found[-1] == f"{common} --batch 8"


def test_the_time_of_a_step_is_a_roofline():
    """What is at most is so with all three at once."""
    chip = chips.Chip((), memory=5, peak=1, bandwidth=10, link=5)  # GiB, TFLOP/s, GB/s, GB/s
    traffic = {"all-gather": hlo.Traffic(3, 4e9), "all-reduce": hlo.Traffic(1, 1e9)}
    needs = made(mesh=(1, 2, 1, 1), parts={"parameters": 3 * 10**9}, temporaries=10**9, moved=8 * 10**9, operations=4 * 10**12,
                 traffic=traffic, formula=(10**10, 2 * 10**10), unit=("tokens", 256))  # fmt: skip
    topology = chips.Topology("x:2", (None,) * 2, chip, exact=True)
    found = forecast(topology, needs)
    time, wanted = found["time"], {"products": 2.0, "memory": 0.8, "links": 1.0}
    assert {name: time[name] for name in wanted} == wanted and time["step"] == [2.0, 3.8]
    assert found["operations"]["model_full"] == 64 * 2e10
    assert time["mfu"] == {"causal": [0.64e12 / 2e12 / s for s in (2.0, 3.8)], "full": [1.28e12 / 2e12 / s for s in (2.0, 3.8)]}
    assert time["pictures_a_day"] == 64 * 86400 / 2.0 and time["tokens_a_day"] == 256 * time["pictures_a_day"]
    text = describe(found)
    assert found["fits"] and "links 1 s; 2 s at best, 3.8 s without overlap" in text
    assert "MFU at most 16% (causal) or 32% (full); 8% (causal) or 17% (full) without overlap" in text
    assert "MFU" not in describe(forecast(topology, replace(needs, formula=None)))


def test_what_is_not_known_is_said():
    """GPUs are estimated; some compilers do not tell what they made; others say what they could not do well."""
    topology = chips.Topology("h200:4", (None,) * 4, chips.CHIPS["h200"], exact=False)
    found = forecast(topology, made(traffic=None, copied=["jit(step)/take"]))
    text = describe(found)
    assert not found["exact"] and found["collectives"] is None and "time" not in found
    assert "an ESTIMATE: compiled by XLA for CPUs" in text and f"collectives: {NO_TEXT}" in text and "MFU" not in text
    assert "copied whole to every device (involuntary full rematerialization): jit(step)/take" in text
    known = describe(forecast(replace(topology, exact=True), made()))
    assert "ESTIMATE" not in known and NO_TEXT not in known and "rematerialization" not in known
    no_program = describe(forecast(topology, made(traffic=None, temporaries=2**40)))
    assert NO_TEXT not in no_program and "collectives: not known, for there is no program" in no_program


REFUSALS = {  # by libtpu 0.0.42.1; the first counts what a device holds before the step, too
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded by 1.75G.": 17.5 - 2,
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (79.98G) exceeds available "
    "HBM (15.75G).": 79.98,
}


@pytest.mark.parametrize("text", REFUSALS)
def test_needs_of_what_libtpu_refuses_are_those_that_it_names(text):
    found = preflight._refused(jax.errors.JaxRuntimeError(text), held=2 * chips.GIB)
    assert found == pytest.approx(REFUSALS[text] * chips.GIB)


@pytest.mark.parametrize("text", ["RESOURCE_EXHAUSTED: Used 17M of 16M vmem", "INTERNAL: Used 17.50G of 15.75G hbm"])
def test_other_errors_are_not_taken_for_a_refusal(text):
    with pytest.raises(jax.errors.JaxRuntimeError, match="17"):
        preflight._refused(jax.errors.JaxRuntimeError(text), held=0)


def test_warnings_of_compilers_are_heard_and_the_rest_is_shown(capfd):
    """Line by line as libtpu and XLA write to stderr; what is said twice counts once."""
    copies = "W1121 20:23:02.1 7 a.cc:6] [SPMD] Involuntary full rematerialization. ... for HLO operation %p = f32[8] sine(%x)"
    named = f'{copies}, metadata={{op_name="jit(step)/take"}}\n'
    warned = [named, "and more of it\n", f"{copies}\n", f"{copies}\n", "E1121 20:23:02.1 8 b.cc:9] something\n"]
    with overheard() as lines:
        os.write(2, "".join(["python says\n", *warned, "*** SIGSEGV\n", "by 7\n"]).encode())
    os.write(2, b"later\n")
    assert lines == warned and copied(lines) == ["jit(step)/take", "%p = f32[8]"]
    assert capfd.readouterr().err == "python says\n*** SIGSEGV\nby 7\nlater\n"


@pytest.mark.parametrize("name", ["h900:8", "v5e", "v5e:0x4", "h200:", "cpu:x"])
def test_topologies_need_a_name_that_is_known(name):
    with pytest.raises(UserError, match="name a chip and a grid, such as v5e:4x4"):
        chips.topology(name)


def test_devices_are_known_by_their_kind():
    kinds = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "NVIDIA H200": "h200"}
    assert {kind: chips.chip_of(kind) for kind in kinds} == {kind: chips.CHIPS[name] for kind, name in kinds.items()}
    assert chips.chip_of("NVIDIA H100 80GB HBM3") is chips.CHIPS["h100"] and chips.chip_of("cpu") is None


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(chips.jax.config, "update", lambda *_: None)
    with pytest.raises(UserError, match=r"pip install 'mmgen\[tpu\]'"):
        chips.topology("v5e:2x2")


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not here (the extra `tpu`)")
def test_tpus_scatter_gradients_and_sum_twice_a_layer(tmp_path):
    wide = "--task.model.block.width 1024 --task.model.block.mlp 2048 --batch 64 --task.model.remat true".split()
    done = command(tmp_path, "--topology", "v5e:2x2", "--mesh.tensor", "2", *wide)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["exact"] and found["collectives"]["reduce-scatter"]["count"] >= L
    assert found["collectives"]["all-reduce"]["count"] >= 4 * L and 0 < found["time"]["mfu"]["causal"][0] < 1
    assert found["copied"] == [] and not done.stderr


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not here (the extra `tpu`)")
def test_forwards_for_tpus(tmp_path):
    """Two sums a layer; and splash attention takes the head dims of VAR and LlamaGen (100: of its 3B)."""
    (tmp_path / "small.py").write_text(EXPERIMENT)
    wide = "--task.model.block.width 1024 --task.model.block.mlp 2048 --batch 64 --mesh.tensor 2".split()
    line = [sys.executable, Path(__file__).parent / "tpus.py", "v5e:2x2", tmp_path / "small.py", *wide]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    few, many = found["sums"]
    assert many - few == 2 * 3 and found["copied"] == []
    assert found["kernels"] == {"64": True, "100": True, "128": True}
