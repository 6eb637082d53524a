"""How fast tokens are drawn: beside what this device can give, and beside LlamaGen's own PyTorch code.

    python tools/bench/decode.py --peer PATH/TO/LlamaGen --out tools/bench/results/decode_cpu.json
    python tools/bench/decode.py --models GPT-L GPT-XL --tokens 576 --batches 1 64 --windows auto 16 --out gpu.json

PATH is a checkout of the public repository. Weights are random, and large enough that a token hangs on those before it: what is
measured is time, and what a forward costs. How many forwards parallel decoders save hangs on the weights: forwards.py tells it
of a trained model; here Jacobi's drafts are all right, which no window can beat. The best of `--repeats` calls counts, in turns
with the peer's. With guidance; no picture is decoded.

Beside it stands what a forward of more slots costs over that of one, of one picture, with guidance and without. What has been
measured stands in OUT.part until all is: the same command goes on after a stop.

The roofline: a forward takes no less time than its bytes (weights as they are stored, the cache up to the middle of the
picture, logits and noise) at the rate of a large read, nor than its operations at the rate of a square product, both measured
in the same run.
"""

import argparse
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peers
from common import Stages, cores, matmul_rate, read_rate, report, run, write
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.errors import UserError

from mmgen.decoding.choice import auto_window
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import GeneratorConfig, Sampling
from mmgen.model.kv_cache import bytes_per_row
from mmgen.pretrained import llamagen

FORMS = ("eager", "compiled")
GUIDANCE, EVERY = 2.0, 16  # a stream shows tokens after so many forwards
LOOK, LOOKS = 8, 6  # a forward's time is told by so many looks, each after so many forwards
HOLDS = "the tokens that will be drawn"


class Draw(NamedTuple):
    run: Callable[[], int | None]  # gives the number of forwards, where that is known
    warm: Callable[[], Any]  # compiles what `run` needs


class Work(NamedTuple):
    """At least so many bytes are moved, and so many operations done."""

    size: float
    operations: float

    def times(self, count: int) -> "Work":
        return Work(count * self.size, count * self.operations)

    def seconds(self, limits: "Work") -> float:
        """`limits`: what the device does in a second."""
        return max(self.size / limits.size, self.operations / limits.operations)


def untrained(size: str, tokens: int, dtype: str | None) -> Generator:
    config = llamagen.preset(size, tokens=tokens)
    params = transformer.init(config, jax.random.key(0))
    for head in params["ends"]["heads"].values():  # fresh ones are zero: every guess would be right
        head["map"] = 3 * jax.random.normal(jax.random.key(1), head["map"].shape) * config.block.width**-0.5
    return Generator(config, params, sampling=Sampling(GUIDANCE), dtype=dtype)


def work(c: GeneratorConfig, params: dict, itemsize: int, batch: int, slots: int, pair: int = 2) -> Work:
    """Of one forward over `slots` slots of each row in the middle of a picture. `pair`: rows of a picture, two with guidance;
    `params`: of decode_params."""
    weights, rows = jax.tree.leaves((params["layers"], params["ends"]["heads"])), pair * batch
    seen = c.condition.slots + c.layout.sites // 2
    logits = 4 * c.layout.groups * c.layout.codebook_size * slots
    attention = 4 * c.layers * c.block.heads * c.block.head_dim * seen
    # Logits are written and read for each row, noise for each picture.
    size = (
        sum(w.size * w.dtype.itemsize for w in weights) + rows * bytes_per_row(c, seen, itemsize) + 2 * logits * (rows + batch)
    )
    return Work(size, rows * slots * (2 * sum(w.size for w in weights) + attention))


def decoders(gen: Generator, draft: Generator | None, batch: int, windows: list[str | int]) -> dict[str, dict]:
    """Arguments of `generate`, or of `stream`, by the name that a row of the table has. `HOLDS`: drafts are the tokens that
    will be drawn, so that forwards are as few as they can be."""
    auto = auto_window(gen.config, gen.fused, 2 * batch, gen.dtype.itemsize)
    found = {"autoregressive": {}, "autoregressive, streamed": {"every": EVERY}}
    for window in dict.fromkeys(auto if window == "auto" else window for window in windows):
        found[f"jacobi {window}, every draft right"] = {"decoder": "jacobi", "window": window, "init": HOLDS}
        if draft:
            found[f"speculative {window}"] = {"decoder": "speculative", "window": window, "draft": draft}
    return found


def effort(gen: Generator, options: dict, batch: int, seconds: float, forwards: int, limits: Work) -> dict:
    """What a call of `generate` came to. `forwards`: of `gen`; a draft takes one a slot besides."""
    window, draft = options.get("window", 1), options.get("draft")
    parts = [(forwards, gen, window)] + ([(forwards * window, draft, 1)] if draft else [])
    works = [(n, work(g.config, g.fused, g.dtype.itemsize, batch, slots)) for n, g, slots in parts]
    moved, computed = map(sum, zip(*(each.times(n) for n, each in works), strict=True))
    return {
        "forwards": forwards,
        "milliseconds_per_forward": round(1e3 * seconds / forwards, 3),
        "gigabytes_per_second": round(moved / seconds / 1e9, 2),
        "teraflops": round(computed / seconds / 1e12, 4),
        "share_of_roofline": round(sum(n * each.seconds(limits) for n, each in works) / seconds, 4),
    }


def draws(gen: Generator, options: dict[str, dict], batch: int) -> dict[str, Draw]:
    """Of one batch by each decoder."""
    sites, labels = gen.config.layout.sites, [i % peers.CLASSES for i in range(batch)]
    plain = functools.cache(lambda: gen.generate(labels=labels).tokens)

    def drawing(given: dict) -> Callable[[], int]:
        def draw() -> int:
            if "every" in given:
                deque(gen.stream(labels=labels, **given), maxlen=0)
                return sites
            init = {"init": plain()} if given.get("init") == HOLDS else {}
            return gen.generate(labels=labels, **given | init).forwards

        return draw

    return {name: Draw(run, run if given else plain) for name, given in options.items() for run in [drawing(given)]}


def peer_draws(a: argparse.Namespace, size: str, batch: int) -> dict[str, Draw]:
    found = {}
    for form in a.peer_forms if a.peer else ():
        run = peers.sampling(a.peer, size, a.tokens, batch, GUIDANCE, form)
        found[f"LlamaGen's own code, {form}"] = Draw(run, functools.partial(run, 2) if form == "eager" else run)
    return found


def best(stages: Stages, name: str, draws: dict[str, Draw], repeats: int) -> dict[str, tuple[float, int | None]]:
    """Seconds of the fastest call of each, and its forwards. They take turns; a call that was timed before a stop is not
    made again."""
    warmed, taken = set(), {each: [] for each in draws}

    def once(each: str) -> tuple[float, int | None]:
        if each not in warmed:
            draws[each].warm()
            warmed.add(each)
        start = time.perf_counter()
        forwards = draws[each].run()
        return time.perf_counter() - start, forwards

    for number, each in itertools.product(range(repeats), draws):
        taken[each].append(stages.once(f"{name}, {each}, call {number + 1}", functools.partial(once, each)))
    return {each: tuple(min(calls)) for each, calls in taken.items()}


def measured(gen: Generator, options: dict[str, dict], taken: dict[str, tuple], batch: int, limits: Work) -> Iterator[dict]:
    """A row for each decoder of one model and batch size, and for the peer's forms."""
    for name, (seconds, forwards) in taken.items():
        row = {"decoder": name, "batch": batch, "tokens_per_second": round(batch * gen.config.layout.sites / seconds, 2)}
        row |= {"pictures_per_second": round(batch / seconds, 4)}
        row |= effort(gen, options[name], batch, seconds, forwards, limits) if name in options else {}
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)
        yield row


def seconds_a_forward(gen: Generator, slots: int, guidance: float) -> float:
    """Of one picture, in the middle of it: from one look at a stream to the next."""
    given = {"decoder": "jacobi", "window": slots, "init": "uniform"} if slots > 1 else {}
    shown = gen.stream(labels=[0], every=LOOK, guidance=guidance, **given)
    times = [time.perf_counter() for _ in itertools.islice(shown, LOOKS)]
    return float(np.diff(times[1:]).min()) / LOOK  # the first waits for the compiler


def forward_costs(gen: Generator, stages: Stages, name: str, slots: list[int], limits: Work) -> Iterator[dict]:
    """What more slots a forward cost at batch 1, with guidance and without."""
    for guidance, width in itertools.product((GUIDANCE, 1.0), sorted({1, *slots})):
        stage = f"{name}, a forward of {width}, guidance {guidance}"
        seconds = stages.once(stage, functools.partial(seconds_a_forward, gen, width, guidance))
        one = seconds if width == 1 else one
        rows = 2 if guidance != 1 else 1
        least = work(gen.config, gen.fused, gen.dtype.itemsize, 1, width, rows).seconds(limits)
        row = {"slots": width, "guidance": guidance, "milliseconds": round(1e3 * seconds, 3)}
        row |= {"over_one_slot": round(seconds / one, 3), "share_of_roofline": round(least / seconds, 4)}
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["GPT-B"], choices=llamagen.SIZES)
    parser.add_argument("--tokens", type=int, default=256, help="of a picture, a square number")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--windows", type=lambda w: w if w == "auto" else int(w), nargs="+", default=["auto"])
    parser.add_argument("--draft", choices=llamagen.SIZES, help="also measure speculative decoding with this draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--slots", type=int, nargs="*", default=[8, 16], help="widths of a forward whose time is told")
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--peer-forms", nargs="+", default=["eager"], choices=FORMS)
    parser.add_argument("--repeats", type=int, default=1, help="calls timed, after one that is not")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    if a.peer and a.dtype:
        raise UserError("--peer computes in what its authors do, float32 on a CPU, else bfloat16: leave --dtype out")
    use_compilation_cache()
    stages = Stages(a.out.with_name(a.out.name + ".part"))
    stages.settle({"tokens": a.tokens, "dtype": a.dtype, "draft": a.draft, "cores": cores()})
    draft = untrained(a.draft, a.tokens, a.dtype) if a.draft else None
    rows, costs = [], []
    for size in a.models:
        gen = untrained(size, a.tokens, a.dtype)
        large = 2048 if jax.default_backend() == "cpu" else 8192
        rates = stages.once("rates", lambda: [1e9 * read_rate(), 1e9 * matmul_rate(large, gen.dtype)])  # noqa: B023
        limits, about = Work(*rates), {"model": size, "tokens": a.tokens}
        costs += [about | row for row in forward_costs(gen, stages, size, a.slots, limits)]
        for batch in a.batches:
            options = decoders(gen, draft, batch, a.windows)
            every = draws(gen, options, batch) | peer_draws(a, size, batch)
            taken = best(stages, f"{size}, batch {batch}", every, a.repeats)
            rows += [about | row for row in measured(gen, options, taken, batch, limits)]
    about = {"forwards": costs, "dtype": gen.dtype.name, "guidance": GUIDANCE}
    about |= {"read_gigabytes_per_second": round(limits.size / 1e9, 2), "product_teraflops": round(limits.operations / 1e12, 4)}
    what = "drawing tokens; the share of the roofline says how near the device's limit that is"
    write(report(what, rows, a.peer, "LlamaGen") | about, a.out)
    stages.path.unlink()


if __name__ == "__main__":
    run(main)
