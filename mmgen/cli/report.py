"""Write a page of one run, or of several side by side: figures with intervals, curves, pictures.

The figures are those that `mmgen evaluate` left in RUN/evaluation; where it was given several checkpoints (--checkpoint), also
as curves over their steps. The curves of training are those of RUN/metrics.jsonl. The page is one file that needs nothing else.

example:
  mmgen report runs/my_generator
  mmgen report runs/next_token runs/next_scale --out both.html
"""

from collections.abc import Sequence
from pathlib import Path

from mmgen.cli.parsing import Parser, existing


def parser() -> Parser:
    p = Parser("mmgen report", __doc__)
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folders, at most four")
    p.add_argument("--out", metavar="FILE.html", help="(default: RUN/evaluation/report.html of the first)")
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    for run in args.runs:
        existing(run)

    from mmgen.evaluation.page import write_page

    out = Path(args.out or Path(args.runs[0]) / "evaluation" / "report.html")
    write_page(args.runs, out)
    print(f"wrote {out}")
