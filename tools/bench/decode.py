"""How fast tokens are drawn: beside what this device can give, and beside LlamaGen's own PyTorch code.

    python tools/bench/decode.py --peer PATH/TO/LlamaGen --out tools/bench/results/decode_cpu.json
    python tools/bench/decode.py --models GPT-L GPT-XL --tokens 576 --batches 1 64 --windows auto 16

PATH is a checkout of the public repository. Weights are random, and large enough that a token hangs on those before it: what is
measured is time, and what a forward costs. How many forwards parallel decoders save hangs on the weights: forwards.py tells it
of a trained model. The best of `--repeats` calls counts, in turns with the peer's. With guidance; no picture is decoded.

The roofline: a forward takes no less time than its bytes (weights as they are stored, the cache up to the middle of the
picture, logits and noise) at the rate of a large read, nor than its operations at the rate of a square product, both measured
in the same run.
"""

import argparse
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import peers
from common import best_of_each, matmul_rate, read_rate, report, run, write
from mmgen_tokenizers.cache import use_compilation_cache

from mmgen.decoding.choice import auto_window
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import GeneratorConfig, Sampling
from mmgen.model.kv_cache import bytes_per_row
from mmgen.pretrained import llamagen

FORMS = ("eager", "compiled")
GUIDANCE, EVERY = 2.0, 16  # a stream shows tokens after so many forwards


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


def work(c: GeneratorConfig, params: dict, itemsize: int, batch: int, slots: int) -> Work:
    """Of one forward over `slots` slots of each row in the middle of a picture, guided. `params`: of decode_params."""
    weights, rows = jax.tree.leaves((params["layers"], params["ends"]["heads"])), 2 * batch
    seen = c.condition.slots + c.layout.sites // 2
    logits = 4 * c.layout.groups * c.layout.codebook_size * slots
    attention = 4 * c.layers * c.block.heads * c.block.head_dim * seen
    # Logits are written and read for each row, noise for each picture.
    size = (
        sum(w.size * w.dtype.itemsize for w in weights) + rows * bytes_per_row(c, seen, itemsize) + 2 * logits * (rows + batch)
    )
    return Work(size, rows * slots * (2 * sum(w.size for w in weights) + attention))


def decoders(gen: Generator, draft: Generator | None, batch: int, windows: list[str | int]) -> dict[str, dict]:
    """Arguments of `generate`, or of `stream`, by the name that a row of the table has."""
    auto = auto_window(gen.config, gen._decode_params, 2 * batch, gen.dtype.itemsize)
    found = {"autoregressive": {}, "autoregressive, streamed": {"every": EVERY}}
    for window in dict.fromkeys(auto if window == "auto" else window for window in windows):
        found[f"jacobi {window}"] = {"decoder": "jacobi", "window": window}
        if draft:
            found[f"speculative {window}"] = {"decoder": "speculative", "window": window, "draft": draft}
    return found


def effort(gen: Generator, options: dict, batch: int, seconds: float, forwards: int, limits: Work) -> dict:
    """What a call of `generate` came to. `forwards`: of `gen`; a draft takes one a slot besides."""
    window, draft = options.get("window", 1), options.get("draft")
    parts = [(forwards, gen, window)] + ([(forwards * window, draft, 1)] if draft else [])
    works = [(n, work(g.config, g._decode_params, g.dtype.itemsize, batch, slots)) for n, g, slots in parts]
    moved, computed = map(sum, zip(*(each.times(n) for n, each in works), strict=True))
    return {
        "forwards": forwards,
        "milliseconds_per_forward": round(1e3 * seconds / forwards, 3),
        "gigabytes_per_second": round(moved / seconds / 1e9, 2),
        "teraflops": round(computed / seconds / 1e12, 4),
        "share_of_roofline": round(sum(n * each.seconds(limits) for n, each in works) / seconds, 4),
    }


def measured(gen: Generator, options: dict[str, dict], theirs: dict[str, Callable], batch: int, repeats: int, limits: Work):
    """A row for each decoder of one model and batch size, and for the peer's forms. `theirs`: each draws a batch."""
    sites, forwards, labels = gen.config.layout.sites, {}, [i % peers.CLASSES for i in range(batch)]

    def drawing(name: str):
        def draw():
            if "every" in options[name]:
                forwards[name] = sites
                deque(gen.stream(labels=labels, **options[name]), maxlen=0)
            else:
                forwards[name] = gen.generate(labels=labels, **options[name]).forwards

        return draw

    taken = best_of_each({name: drawing(name) for name in options} | theirs, repeats)
    for name, seconds in taken.items():
        row = {"decoder": name, "batch": batch, "tokens_per_second": round(batch * sites / seconds, 2)}
        row |= {"pictures_per_second": round(batch / seconds, 4)}
        row |= effort(gen, options[name], batch, seconds, forwards[name], limits) if name in options else {}
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)
        yield row


def peer_runs(arguments: argparse.Namespace, size: str, batch: int) -> dict[str, Callable]:
    forms = arguments.peer_forms if arguments.peer else ()
    given = arguments.peer, size, arguments.tokens, batch, GUIDANCE
    return {f"LlamaGen's own code, {form}": peers.sampling(*given, form) for form in forms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["GPT-B"], choices=llamagen.SIZES)
    parser.add_argument("--tokens", type=int, default=256, help="of a picture, a square number")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--windows", type=lambda w: w if w == "auto" else int(w), nargs="+", default=["auto"])
    parser.add_argument("--draft", choices=llamagen.SIZES, help="also measure speculative decoding with this draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--peer-forms", nargs="+", default=["eager"], choices=FORMS)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_compilation_cache()
    draft = untrained(arguments.draft, arguments.tokens, arguments.dtype) if arguments.draft else None
    rows, limits = [], None
    for size in arguments.models:
        gen = untrained(size, arguments.tokens, arguments.dtype)
        large = 2048 if jax.default_backend() == "cpu" else 8192
        limits = limits or Work(1e9 * read_rate(), 1e9 * matmul_rate(large, gen.dtype))
        for batch in arguments.batches:
            options = decoders(gen, draft, batch, arguments.windows)
            found = measured(gen, options, peer_runs(arguments, size, batch), batch, arguments.repeats, limits)
            rows += [{"model": size, "tokens": arguments.tokens, **row} for row in found]
    about = {"dtype": gen.dtype.name, "guidance": GUIDANCE}
    about |= {"read_gigabytes_per_second": round(limits.size / 1e9, 2), "product_teraflops": round(limits.operations / 1e12, 4)}
    what = "drawing tokens; the share of the roofline says how near the device's limit that is"
    write(report(what, rows, arguments.peer, "LlamaGen") | about, arguments.out)


if __name__ == "__main__":
    run(main)
