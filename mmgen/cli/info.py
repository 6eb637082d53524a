"""Describe what a folder or an experiment file holds: a run, an exported generator or tokenizer, token shards, settings.

example:
  mmgen info runs/my_generator
  mmgen info runs/my_generator --all                every field of its experiment and of its model
  mmgen info experiments/shapes/generator.py        every field that `mmgen train` lets you set
"""

from collections.abc import Sequence

from mmgen.cli.parsing import Parser, existing


def parser() -> Parser:
    p = Parser("mmgen info", __doc__)
    p.add_argument("path", metavar="DIR", help="a folder, or an experiment's .py")
    p.add_argument("--all", action="store_true", help="of a run or a model: every field and figure as well")
    return p


def main(arguments: Sequence[str]) -> None:
    args = parser().parse_args(arguments)
    path = existing(args.path)

    from mmgen.description import describe

    print(describe(path, args.all))
