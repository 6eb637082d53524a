"""tools/bench/decode.py and forwards.py: what they count. How fast it is, and how few forwards, is theirs to tell."""

import json
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.decoding.autoregressive import decode_params
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig, Sampling
from mmgen.pretrained import llamagen

CONFIG = GeneratorConfig(
    layout=TokenLayout(height=3, width=4, codebook_size=7),
    condition=ClassCondition(3),
    block=BlockConfig(width=16, heads=2, mlp=24),
    depth=1,
)
N = 12


@pytest.fixture(scope="module")
def gen():
    return Generator(CONFIG, plans.parameters(CONFIG), sampling=Sampling(guidance=2.0, temperature=0.7, top_p=0.9))


def test_the_work_of_a_forward_is_that_of_the_published_sizes(script):
    """research/decoding.md, section 4: GPT-XL reads 1.505 GB of weights and 184,320 bytes of cache a token and row."""
    decode, c = script("decode"), llamagen.preset("GPT-XL", tokens=576)
    params = jax.eval_shape(lambda: decode_params(c, transformer.init(c, jax.random.key(0)), jnp.bfloat16))
    one, more = decode.work(c, params, 2, 1, 1), decode.work(c, params, 2, 64, 16)
    logits = 8 * 16384 * (2 + 1)
    assert one.size == pytest.approx(1.505e9 + 2 * 289 * 184_320 + logits, rel=1e-3)
    assert one.operations == pytest.approx(2 * (2 * 752.4e6 + 4 * 36 * 1280 * 289), rel=1e-2)
    assert more.operations == 64 * 16 * one.operations
    assert more.size - one.size == 63 * 2 * 289 * 184_320 + (64 * 16 - 1) * logits
    assert decode.Work(10, 10).seconds(decode.Work(5, 2)) == 5 and decode.Work(20, 2).seconds(decode.Work(5, 2)) == 4


def test_decoders_and_the_peer_stand_in_one_table(script, gen, tmp_path):
    decode, calls = script("decode"), []
    options = decode.decoders(gen, gen, 2, ["auto", 3, 3])
    auto = decode.auto_window(CONFIG, gen.fused, 4, 4)
    streamed, right, drafted = "autoregressive, streamed", "jacobi 3, every draft right", "speculative 3"
    assert list(options) == [
        "autoregressive", streamed, f"jacobi {auto}, every draft right", f"speculative {auto}", right, drafted
    ]  # fmt: skip
    chosen = {name: options[name] for name in ("autoregressive", streamed, right, drafted)}
    theirs = {"theirs": decode.Draw(lambda: calls.append("run"), lambda: calls.append("warm"))}
    draws, limits = decode.draws(gen, chosen, 2) | theirs, decode.Work(1e9, 1e12)
    taken = decode.best(decode.Stages(tmp_path / "part"), "tiny", draws, 2)
    rows = list(decode.measured(gen, chosen, taken, 2, limits))
    assert [row["decoder"] for row in rows] == [*chosen, "theirs"] and calls == ["warm", "run", "run"]
    fewest = 1 + -(-(N - 1) // 3)  # a model is right about itself
    assert [row.get("forwards") for row in rows] == [N, N, fewest, fewest, None]
    plain = rows[0]
    seconds = N * plain["milliseconds_per_forward"] / 1e3
    least = N * decode.work(CONFIG, gen.fused, 4, 2, 1).seconds(limits)
    assert plain["tokens_per_second"] == pytest.approx(2 * N / seconds, rel=0.01)
    assert plain["share_of_roofline"] == pytest.approx(least / seconds, rel=0.05, abs=1e-4)


def test_the_time_of_a_forward_is_that_between_looks(script, gen, monkeypatch):
    """The first look, 90 seconds late, waits for the compiler; of the others the shortest counts."""
    decode, ticks = script("decode"), iter([90.0, 94.0, 96.0])
    monkeypatch.setattr(decode, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(decode, "LOOK", 1)
    monkeypatch.setattr(decode, "LOOKS", 3)
    assert decode.seconds_a_forward(gen, 3, 2.0) == 2.0


def test_a_stopped_measurement_goes_on(script, gen, tmp_path, monkeypatch):
    decode, calls, costs = script("decode"), [], {1: 0.01, 16: 0.025}
    monkeypatch.setattr(decode, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(decode, "untrained", lambda *_: gen)
    monkeypatch.setattr(decode, "read_rate", lambda: calls.append("read") or 10.0)
    monkeypatch.setattr(decode, "matmul_rate", lambda *_: 100.0)
    monkeypatch.setattr(decode, "seconds_a_forward", lambda _, slots, guidance: costs[slots] * guidance)
    monkeypatch.setattr(decode, "decoders", lambda *_: {"autoregressive": {}})

    def sampling(*_):
        def run(count=None):
            calls.append(count)
            if count is None and calls.count(None) == 1:
                raise KeyboardInterrupt

        return run

    monkeypatch.setattr(decode.peers, "sampling", sampling)
    out = tmp_path / "d.json"
    monkeypatch.setattr(sys, "argv", ["decode.py", "--peer", "P", "--batches", "2", "--slots", "16", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        decode.main()
    assert [path.name for path in tmp_path.iterdir()] == ["d.json.part"]
    decode.main()
    assert calls == ["read", 2, None, 2, None] and list(tmp_path.iterdir()) == [out]
    found = json.loads(out.read_text())
    assert [row["decoder"] for row in found["figures"]] == ["autoregressive", "LlamaGen's own code, eager"]
    assert [row["over_one_slot"] for row in found["forwards"]] == [1.0, 2.5] * 2
    assert found["forwards"][0]["milliseconds"] == 20.0 and found["forwards"][0]["guidance"] == 2.0


def test_forwards_are_counted_once(script, gen, tmp_path, monkeypatch):
    forwards, counted = script("forwards"), []
    gen.save(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--pictures", "4", "--batches", "2", "--windows", "3", "--repeats", "1"]
    monkeypatch.setattr(forwards, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(forwards, "load", lambda *_: gen)
    generate = gen.generate
    monkeypatch.setattr(gen, "generate", lambda **asked: counted.append(asked) or generate(**asked))

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["forwards.py", *arguments, *more, "--out", str(tmp_path / "f.json")])
        forwards.main()
        return json.loads((tmp_path / "f.json").read_text())

    first = run("--temperatures")["figures"]
    assert first == [first[0] | {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "window": 3, "same_tokens": 1.0}]
    expected = [
        generate(labels=[0, 1], decoder="jacobi", window=3),
        generate(labels=[2, 0], first_index=2, decoder="jacobi", window=3),
    ]
    assert first[0]["forwards"] == np.mean([out.forwards for out in expected])
    assert first[0]["share"] == pytest.approx(first[0]["forwards"] / N, abs=1e-4)
    before = len(counted)
    found = run("--temperatures", "1.0")
    assert found["figures"][0] == first[0] and len(found["figures"]) == 2
    assert {asked["temperature"] for asked in counted[before:]} == {1.0}
    assert str(tmp_path) not in found["command"].partition("--out")[0]
    shown = (tmp_path / "f.html").read_text()
    assert "temperature 0.7, no top-k, top-p 0.9" in shown and "Forwards over N by window, batch 2" in shown
    lines = (tmp_path / "f.md").read_text().splitlines()
    assert lines[2] == "| settings | pictures at once | window 3 |" and len(lines) == 6
    share, seconds = 100 * first[0]["share"], first[0]["seconds_over_plain"]
    assert lines[4] == f"| temperature 0.7, no top-k, top-p 0.9 | 2 | {share:.0f}% ({seconds:.2f}) |"
    plot = ElementTree.parse(tmp_path / "f.svg").getroot()
    names = {text.text for text in plot.iter("{http://www.w3.org/2000/svg}text")}
    assert {"temperature 0.7, no top-k, top-p 0.9", "temperature 1, no top-k"} < names
    assert len(list(plot.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    with pytest.raises(UserError, match="another model or other options"):
        run("--init", "left")


def test_a_draft_that_is_wrong_shows_in_the_share_of_tokens(script, gen, monkeypatch):
    """Tokens of another seed stand for those of a decoder with a mistake."""
    forwards, generate = script("forwards"), gen.generate
    mistaken = lambda **asked: generate(**{**asked, "seed": int(asked.get("decoder") == "jacobi")})  # noqa: E731
    monkeypatch.setattr(gen, "generate", mistaken)
    rows = forwards.Rows("labels", [0, 1], [])
    (entry,) = forwards.measured(gen, rows, 2, {"temperature": 0.7, "top_k": 0, "top_p": 0.9}, {"decoder": "jacobi"}, [3], 1)
    assert entry["same_tokens"] < 0.9
