"""How a tokenizer's and a generator's training went, from their metrics.jsonl, as charts of a report."""

from pathlib import Path

from mmgen.report import Chart
from mmgen.training.metrics import read_metrics

CHARTS = (
    ("Tokenizer: loss", "tokenizer", "loss"),
    ("Tokenizer: PSNR in dB", "tokenizer", "psnr"),
    ("Tokenizer: share of the codebook in use", "tokenizer", "usage"),
    ("Generator: loss in nats a token", "generator", "loss"),
)


def charts(tokenizer_run: str | Path | None, generator_run: str | Path) -> list[Chart]:
    """Training and validation in one pair of axes; a run that is not here gives no chart."""
    runs = {"tokenizer": tokenizer_run, "generator": generator_run}
    return [
        Chart(title, {"training": curve(runs[run], name), "unseen pictures": curve(runs[run], f"validation/{name}")})
        for title, run, name in CHARTS
        if runs[run] is not None
    ]


def curve(run: str | Path, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure of a run."""
    entries = [entry for entry in read_metrics(run) if name in entry]
    return [entry["step"] for entry in entries], [entry[name] for entry in entries]
