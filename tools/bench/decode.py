"""How fast tokens are drawn: beside what this device can give, and beside the authors' own PyTorch code.

    python tools/bench/decode.py --models GPT-B --batches 1 8 --peer PATH/TO/LlamaGen --out tools/bench/results/decode_cpu.json
    python tools/bench/decode.py --models d16 --peer PATH/TO/VAR
    python tools/bench/decode.py --run runs/shapes/generator --prompts prompts.txt --out forwards.json

PATH is a checkout of the public repository. Weights are random: what is measured is time, and what a forward costs. How many
forwards parallel decoders save depends on the weights: --run tells it of a trained model (forwards.py). The best of `--repeats`
calls counts, in turns with the peer's; pictures are not decoded, neither here nor there.

The roofline: a forward can take no less time than its bytes (weights as they are stored, the cache up to the middle of the
picture, logits and noise) at the rate of a copy, nor than its operations at the rate of a square product, both measured in the
same run.
"""

import argparse
from pathlib import Path

import jax
import peers
from common import best_of_each, copy_rate, matmul_rate, report, write
from forwards import report_forwards
from mmgen_tokenizers.families.multiscale import MultiScale

from mmgen.decoding.choice import auto_window
from mmgen.decoding.window import is_sequential
from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import Sampling
from mmgen.model.kv_cache import bytes_per_row
from mmgen.pretrained import llamagen, var

FORMS = ("eager", "compiled")


def untrained(name: str, tokens: int, dtype: str | None) -> Generator:
    """A published size of LlamaGen or VAR, with the settings that its authors sample with."""
    if name in var.SIZES:
        config, sampling = var.preset(name, MultiScale()), var.RECOMMENDED
    else:
        config, sampling = llamagen.preset(name, tokens=tokens), Sampling(guidance=2.0)
    params = transformer.init(config, jax.random.key(0))
    for head in params["ends"]["heads"].values():  # fresh ones are zero: every guess would be right
        head["map"] = 3 * jax.random.normal(jax.random.key(1), head["map"].shape) * config.block.width**-0.5
    return Generator(config, params, sampling=sampling, dtype=dtype)


def work(gen: Generator, pictures: int, slots: float) -> tuple[float, float]:
    """Bytes and operations of one forward over `slots` slots of each row, guided, in the middle of a picture."""
    c, rows = gen.config, 2 * pictures
    weights = jax.tree.leaves((gen._decode_params["layers"], gen._decode_params["ends"]["heads"]))
    seen = c.condition.slots + c.layout.sites // 2
    logits = 4 * c.layout.groups * c.layout.codebook_size * slots
    cache = rows * bytes_per_row(c, seen, gen.dtype.itemsize)
    attention = 4 * c.layers * c.block.heads * c.block.head_dim * seen
    # Logits are written and read for each row, noise for each picture.
    size = sum(w.nbytes for w in weights) + cache + 2 * logits * (rows + pictures)
    return size, rows * slots * (2 * sum(w.size for w in weights) + attention)


def decoders(gen: Generator, draft: Generator | None, batch: int, window: str | int) -> dict[str, dict]:
    """Arguments of `generate`."""
    if not is_sequential(gen._decoder.plan):
        return {"autoregressive": {}}
    if window == "auto":
        window = auto_window(gen.config, gen._decode_params, 2 * batch, gen.dtype.itemsize)
    parallel = {"jacobi": {}} | ({"speculative": {"draft": draft}} if draft else {})
    return {"autoregressive": {}} | {name: {"decoder": name, "window": window, **more} for name, more in parallel.items()}


def entry(gen: Generator, options: dict, batch: int, seconds: float, forwards: int, rates: dict) -> dict:
    """One row of the table. `forwards`: of `gen`; a draft takes one a slot besides."""
    plan, window, draft = gen._decoder.plan, options.get("window"), options.get("draft")
    parts = [(forwards, *work(gen, batch, window or plan.slots / plan.times))]
    parts += [(forwards * window, *work(draft, batch, 1))] if draft else []
    moved, computed = (sum(part[0] * part[i] for part in parts) for i in (1, 2))
    least = sum(count * max(size / rates["copy"], flops / rates["product"]) for count, size, flops in parts)
    return {
        "window": window,
        "forwards": forwards,
        "milliseconds_per_forward": round(1e3 * seconds / forwards, 3),
        "gigabytes_per_second": round(moved / seconds / 1e9, 2),
        "teraflops": round(computed / seconds / 1e12, 4),
        "share_of_roofline": round(least / seconds, 4),
    }


def speed(name: str, batch: int, sites: int, seconds: float) -> dict:
    rates = {"tokens_per_second": round(batch * sites / seconds, 2), "pictures_per_second": round(batch / seconds, 4)}
    return {"batch": batch, "decoder": name, "seconds": round(seconds, 4)} | rates


def peer_runs(path: str | None, forms: list[str], model: str, gen: Generator, batch: int) -> dict:
    """The authors' code as functions to time."""
    if path is None:
        return {}
    if model in var.SIZES:
        return {"VAR's own code": peers.var_sampling(path, var.SIZES[model][0], batch, gen.sampling)}
    sites, guidance = gen.config.layout.sites, gen.sampling.guidance
    return {
        f"LlamaGen's own code, {form}": peers.llamagen_sampling(path, model, sites, batch, guidance, form) for form in forms
    }


def measured(gen: Generator, draft, model: str, batch: int, arguments: argparse.Namespace, rates: dict) -> list[dict]:
    """All decoders of one model and batch size, and the peer."""
    forwards, labels = {}, [i % 1000 for i in range(batch)]

    def drawing(name: str, options: dict):
        def run():
            forwards[name] = gen.generate(labels=labels, **options).forwards

        return run

    options = decoders(gen, draft, batch, arguments.window)
    ours = {name: drawing(name, given) for name, given in options.items()}
    theirs = peer_runs(arguments.peer, arguments.peer_forms, model, gen, batch)
    seconds = best_of_each(ours | theirs, arguments.repeats)
    rows = [speed(name, batch, gen.config.layout.sites, each) for name, each in seconds.items()]
    for row, name in zip(rows, ours, strict=False):  # the peers' come behind
        row |= entry(gen, options[name], batch, seconds[name], forwards[name], rates)
    for row in rows:
        print(model, *(f"{name} {value}" for name, value in row.items()), flush=True)
    return [{"model": model, "tokens": gen.config.layout.sites, **row} for row in rows]


def report_speed(arguments: argparse.Namespace) -> None:
    rows, rates = [], {}
    for model in arguments.models:
        gen = untrained(model, arguments.tokens, arguments.dtype)
        draft = untrained(arguments.draft, arguments.tokens, arguments.dtype) if arguments.draft else None
        size = 2048 if jax.default_backend() == "cpu" else 8192
        rates = rates or {"copy": 1e9 * copy_rate(), "product": 1e9 * matmul_rate(size, gen.dtype)}
        for batch in arguments.batches:
            rows += measured(gen, draft, model, batch, arguments, rates)
    what = "drawing tokens with guidance; the share of the roofline says how near the device's limit that is"
    limits = {"gigabytes_per_second": round(rates["copy"] / 1e9, 2), "teraflops": round(rates["product"] / 1e12, 3)}
    found = report(what, rows, arguments.peer, "VAR" if arguments.models[0] in var.SIZES else "LlamaGen")
    write(found | {"dtype": gen.dtype.name, "limits": limits}, arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["GPT-B"], choices=[*llamagen.SIZES, *var.SIZES])
    parser.add_argument("--tokens", type=int, default=256, help="of LlamaGen's models: 256 or 576")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--window", type=lambda w: w if w == "auto" else int(w), default="auto")
    parser.add_argument("--draft", choices=[*llamagen.SIZES], help="also measure speculative decoding with this draft")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--peer", help="checkout of LlamaGen or VAR")
    parser.add_argument("--peer-forms", nargs="+", default=["eager"], choices=FORMS, help="of LlamaGen's code")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path)
    trained = parser.add_argument_group("forwards of a trained model")
    trained.add_argument("--run", type=Path, metavar="DIR")
    trained.add_argument("--prompts", type=Path, metavar="FILE", help="for a model that draws from texts")
    trained.add_argument("--pictures", type=int, default=16, help="for each setting and batch size")
    trained.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    trained.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="besides the recommended one")
    trained.add_argument("--top-ks", type=int, nargs="+", default=[0], help="besides the recommended one")
    arguments = parser.parse_args()
    report_forwards(arguments) if arguments.run else report_speed(arguments)


if __name__ == "__main__":
    main()
