"""Train a tokenizer and a text-to-picture generator on embedded scenes, on this machine, and draw pictures from prompts.

It needs no data and about ten minutes on two CPU cores. Stopped or killed and started again, it continues. At the end
OUT/report.html shows curves, reconstructions and samples with the checker's verdicts, OUT/figures.json has the figures.

example:
  mmgen quickstart
  mmgen sample runs/quickstart/generator --prompt 'a small red circle above a large blue square' -n 4
"""

from collections.abc import Sequence

from mmgen.cli.parsing import Parser


def parser() -> Parser:
    p = Parser("mmgen quickstart", __doc__)
    p.add_argument("--out", metavar="DIR", help="folder for all of it (default: runs/quickstart, with --smoke runs/smoke)")
    p.add_argument("--smoke", action="store_true", help="a miniature that shows that everything runs; its pictures are poor")
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    out = args.out or ("runs/smoke" if args.smoke else "runs/quickstart")

    from mmgen import quickstart
    from mmgen.evaluation.shapes import describe

    figures = quickstart.run(out, quickstart.SMOKE if args.smoke else quickstart.Sizes())
    print(describe(figures, quickstart.TARGETS))
    print(f"{out}: report.html, figures.json, previews in tokenizer/ and generator/. Draw your own:")
    print(f"  mmgen sample {out}/generator --prompt 'a small red circle above a large blue square' -n 4")
