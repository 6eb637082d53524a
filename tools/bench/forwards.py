"""How many forwards a trained model takes with Jacobi windows, by window, temperature and top-k.

    python tools/bench/forwards.py runs/shapes_generator --out tools/bench/results/forwards_shapes.json

The recommended settings come first, then each of the temperatures with each top-k, without top-p; guidance is the recommended
one. Prompts are captions of the run's validation data, labels all classes in turn. Of each window: forwards (of the slowest
picture of a batch, in the mean of the batches) over N, seconds over those of plain decoding, which takes turns with it, and the
share of tokens that are those of plain decoding; no picture is decoded. Beside OUT are written a page with curves (.html), a
table (.md) and the curves of the first batch size (.svg).

What OUT holds already is not measured again: the same command goes on after a stop.
"""

import argparse
import itertools
import zlib
from pathlib import Path

import numpy as np
from common import best_of_each, report, run
from mmgen_tokenizers.cache import use_compilation_cache
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.files import read_json, write_json

from mmgen import config
from mmgen.data import batches
from mmgen.decoding.coupling import COUPLINGS
from mmgen.decoding.jacobi import INITS
from mmgen.generator import Generator, load
from mmgen.model.config import TextCondition
from mmgen.report import Chart, Figure, Table, chart_file, write_report
from mmgen.samples import Rows, conditions, digest, read_prompts

TARGET = 0.6  # forwards over N, at the recommended settings


def asked(gen: Generator, folder: Path, prompts: Path | None, count: int) -> Rows:
    """As many conditions as pictures are drawn."""
    texts = None
    if isinstance(gen.config.condition, TextCondition):
        validation = None if prompts else config.load(folder / "experiment.json").validation
        texts = read_prompts(prompts) if prompts else next(batches(validation, count, repeat=False))["text"]
    rows = conditions(gen, texts, None, None)
    return Rows(rows.name, [rows.values[i % len(rows.values)] for i in range(count)], [])


def settings_of(gen: Generator, temperatures: list[float], top_ks: list[int]) -> list[dict]:
    """The recommended ones first."""
    own = {name: getattr(gen.sampling, name) for name in ("temperature", "top_k", "top_p")}
    others = [{"temperature": t, "top_k": k, "top_p": 1.0} for t, k in itertools.product(temperatures, top_ks)]
    return [own, *(other for other in others if other != own)]


def measured(gen: Generator, rows: Rows, batch: int, settings: dict, jacobi: dict, windows: list[int], repeats: int) -> list:
    """An entry for each window. `jacobi`: more arguments of `generate`."""
    sites, made = gen.config.layout.sites, {}
    firsts = range(0, len(rows.values), batch)
    calls = [{rows.name: rows.values[i : i + batch], "first_index": i, **settings} for i in firsts]

    def drawing(name: str, options: dict):
        def draw():
            made[name] = [gen.generate(**call, **options) for call in calls]

        return draw

    runs = {str(window): drawing(str(window), {"window": window, **jacobi}) for window in windows}
    seconds = best_of_each({"plain": drawing("plain", {}), **runs}, repeats)
    tokens = {name: np.concatenate([out.tokens for out in each]) for name, each in made.items()}
    entries = []
    for name in runs:
        forwards = float(np.mean([out.forwards for out in made[name]]))
        same = float((tokens[name] == tokens["plain"]).mean())
        entry = {"batch": batch, **settings, "window": int(name), "forwards": forwards, "share": round(forwards / sites, 4)}
        entries.append(
            entry | {"seconds_over_plain": round(seconds[name] / seconds["plain"], 3), "same_tokens": round(same, 4)}
        )
        print(entries[-1], flush=True)
    return entries


def resumed(out: Path, about: dict) -> list[dict]:
    """The entries that a file holds, if they are of this model and these options."""
    if not out.exists():
        return []
    found = read_json(out)
    if {name: found.get(name) for name in about} != about:
        raise UserError(f"{out} is of another model or other options: name another file, or delete it")
    return found["figures"]


def label(entry: dict) -> str:
    parts = [f"temperature {entry['temperature']:g}", f"top-k {entry['top_k']}" if entry["top_k"] else "no top-k"]
    return ", ".join(parts + ([f"top-p {entry['top_p']:g}"] if entry["top_p"] < 1 else []))


def charts(entries: list[dict]) -> list[Chart]:
    """One for each batch size: a curve for each setting."""
    found: dict[int, dict[str, tuple[list, list]]] = {}
    for entry in entries:
        windows, shares = found.setdefault(entry["batch"], {}).setdefault(label(entry), ([], []))
        windows.append(entry["window"])
        shares.append(entry["share"])
    return [Chart(f"Forwards over N by window, batch {batch}", curves, "window") for batch, curves in found.items()]


def page(path: Path, what: str, entries: list[dict], own: dict) -> None:
    """Figures of the recommended settings, all curves, all entries."""
    figures = []
    for batch in dict.fromkeys(entry["batch"] for entry in entries):
        best = min((e for e in entries if own.items() <= e.items() and e["batch"] == batch), key=lambda e: e["share"])
        name = f"Batch {batch}, recommended settings, window {best['window']}: forwards over N"
        figures.append(Figure(name, best["share"], TARGET, "%", less=True))
    columns = ["settings", "batch", "window", "forwards", "over N", "seconds over plain", "tokens as plain"]
    rows = [
        [label(e), str(e["batch"]), str(e["window"]), f"{e['forwards']:.1f}", f"{100 * e['share']:.1f}%",
         f"{e['seconds_over_plain']:.2f}", f"{100 * e['same_tokens']:.2f}%"]
        for e in entries
    ]  # fmt: skip
    write_report(path, "Jacobi decoding", figures, charts(entries), [], what, [Table("All settings", columns, rows)])


def table(entries: list[dict]) -> str:
    """Markdown: a row for each setting and batch size, a column for each window."""
    cells: dict[tuple[str, int], dict[int, str]] = {}
    for e in entries:
        cell = f"{100 * e['share']:.0f}% ({e['seconds_over_plain']:.2f})"
        cells.setdefault((label(e), e["batch"]), {})[e["window"]] = cell
    windows = sorted({entry["window"] for entry in entries})
    head = ["settings", "pictures at once", *(f"window {window}" for window in windows)]
    rows = [[name, str(batch), *(row.get(w, "") for w in windows)] for (name, batch), row in cells.items()]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(["Forwards over sites (seconds over plain decoding's).", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run, or an exported folder")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="instead of the run's captions")
    parser.add_argument("--pictures", type=int, default=16, help="for each setting and batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--temperatures", type=float, nargs="*", default=[1.0])
    parser.add_argument("--top-ks", type=int, nargs="+", default=[0])
    parser.add_argument("--init", choices=INITS, default="law")
    parser.add_argument("--coupling", choices=COUPLINGS, default="gumbel")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    use_compilation_cache()
    gen = load(a.run, a.dtype)
    rows, settings = asked(gen, a.run, a.prompts, a.pictures), settings_of(gen, a.temperatures, a.top_ks)
    jacobi = {"decoder": "jacobi", "init": a.init, "coupling": a.coupling}
    about = {
        "model": digest(gen),
        "dtype": gen.dtype.name,
        "pictures": a.pictures,
        "asked": zlib.crc32(repr(rows.values).encode()),
        "windows": a.windows,
        "options": jacobi,
        "recommended": settings[0],
    }
    gen.tokenizer = None
    entries = resumed(a.out, about)
    done = [(e["batch"], {name: e[name] for name in settings[0]}) for e in entries]
    name = "/".join(a.run.parts[-2:])
    what = f"{name}: forwards of Jacobi decoding over the {gen.config.layout.sites} of plain decoding"
    for batch, each in itertools.product(a.batches, settings):
        if (batch, each) not in done:
            entries += measured(gen, rows, batch, each, jacobi, a.windows, a.repeats)
            write_json(a.out, report(what, entries, str(a.run), name) | about)
    page(a.out.with_suffix(".html"), what, entries, settings[0])
    a.out.with_suffix(".md").write_text(table(entries))
    a.out.with_suffix(".svg").write_text(chart_file(charts(entries)[0]))


if __name__ == "__main__":
    run(main)
