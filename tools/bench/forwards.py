"""How many forwards a trained model takes with Jacobi windows, by window, temperature and top-k: `decode.py --run DIR`.

Of each setting: forwards (of a batch's slowest picture, in the mean of the batches) over N, seconds over those of plain
decoding (without the tokenizer), and whether the tokens are the same. A page with curves is written beside the JSON.
"""

import argparse
import time

import numpy as np
from common import report, write

from mmgen.generator import Generator, load
from mmgen.report import Chart, Figure, write_report
from mmgen.samples import Rows, conditions, read_prompts


def batches(gen: Generator, rows: Rows, batch: int, settings: dict) -> tuple[np.ndarray, float, float]:
    """Tokens, forwards in the mean of the batches, and seconds of all, after a call that compiles."""
    calls = [
        {rows.name: rows.values[first : first + batch], "first_index": first, **settings}
        for first in range(0, len(rows.values), batch)
    ]
    gen.generate(**calls[0])
    start = time.perf_counter()
    made = [gen.generate(**call) for call in calls]
    seconds = time.perf_counter() - start
    return np.concatenate([out.tokens for out in made]), float(np.mean([out.forwards for out in made])), seconds


def measured(gen: Generator, rows: Rows, batch: int, settings: dict, windows: list[int]) -> list[dict]:
    """A row for each window, of one batch size and setting."""
    sites = gen.config.layout.sites
    expected, _, plain = batches(gen, rows, batch, settings)
    found = []
    for window in (w for w in windows if w <= sites):
        tokens, forwards, seconds = batches(gen, rows, batch, {**settings, "decoder": "jacobi", "window": window})
        found.append(
            {"batch": batch, **settings, "window": window, "forwards": forwards, "share": round(forwards / sites, 4),
             "seconds_over_plain": round(seconds / plain, 3), "same_tokens": bool((tokens == expected).all())}
        )  # fmt: skip
        print(found[-1], flush=True)
    return found


def charts(rows: list[dict]) -> list[Chart]:
    """One for each batch size: a curve for each setting."""
    found = {}
    for row in rows:
        name = f"temperature {row['temperature']:g}, " + (f"top-k {row['top_k']}" if row["top_k"] else "no top-k")
        steps, shares = found.setdefault(row["batch"], {}).setdefault(name, ([], []))
        steps.append(row["window"])
        shares.append(row["share"])
    return [Chart(f"Forwards over N by window, batch {batch}", curves) for batch, curves in found.items()]


def settings_of(gen: Generator, arguments: argparse.Namespace) -> list[dict]:
    """The recommended one first."""
    temperatures = dict.fromkeys((gen.sampling.temperature, *arguments.temperatures))
    top_ks = dict.fromkeys((gen.sampling.top_k, *arguments.top_ks))
    return [{"temperature": t, "top_k": k} for t in temperatures for k in top_ks]


def report_forwards(arguments: argparse.Namespace) -> None:
    gen = load(arguments.run, arguments.dtype)
    gen.tokenizer = None  # time is that of the tokens
    asked = conditions(gen, read_prompts(arguments.prompts) if arguments.prompts else None, None, None)
    rows = Rows(asked.name, [asked.values[i % len(asked.values)] for i in range(arguments.pictures)], [])
    settings = settings_of(gen, arguments)
    found = [
        row for batch in arguments.batches for each in settings for row in measured(gen, rows, batch, each, arguments.windows)
    ]
    sites, guidance = gen.config.layout.sites, gen.sampling.guidance
    what = f"forwards of Jacobi decoding over the {sites} of plain decoding, guidance {guidance:g}"
    more = {"dtype": gen.dtype.name, "recommended": settings[0]}
    write(report(what, found, str(arguments.run), arguments.run.name) | more, arguments.out)
    if arguments.out:
        own = [row for row in found if settings[0].items() <= row.items()]
        best = [min((row for row in own if row["batch"] == b), key=lambda row: row["share"]) for b in arguments.batches]
        figures = [
            Figure(f"Batch {row['batch']}, recommended setting, window {row['window']}", row["share"], 0.6, "%", less=True)
            for row in best
        ]
        write_report(arguments.out.with_suffix(".html"), "Jacobi decoding", figures, charts(found), [], what)
