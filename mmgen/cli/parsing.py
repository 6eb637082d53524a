"""argparse with errors of one line that name the nearest right option, and `--any.field VALUE` pairs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmgen_tokenizers.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """`prog` is "mmgen VERB"; `text` the verb's docstring: what it does, and an example.

    With `takes_fields` options that the verb does not declare are collected, with their values, in `fields`.
    """

    def __init__(self, prog: str, text: str, takes_fields: bool = False):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=text.strip(), formatter_class=formatter, allow_abbrev=False)
        self.takes_fields = takes_fields

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        arguments, fields = self._split(arguments) if self.takes_fields else (arguments, [])
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            near = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            raise UserError(f"{self.prog} does not know {unknown[0]}.{near} ({self.prog} --help lists all)")
        parsed.fields = fields
        return parsed

    def error(self, message: str) -> None:
        raise UserError(f"{message} ({self.prog} --help shows how)")

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        own, fields, rest = [], [], list(arguments)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word.partition("=")[0] in self._option_string_actions:
                own.append(word)
                continue
            fields.append(word)
            if "=" not in word and rest and not rest[0].startswith("--"):
                fields.append(rest.pop(0))
        return own, fields


def existing(path: str) -> Path:
    """The path, or a UserError that names the nearest one there is."""
    path = Path(path)
    if path.exists():
        return path
    parent, name = path.parent, path.name
    while not parent.exists():  # the first part that is missing
        parent, name = parent.parent, parent.name
    near = nearest(name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
    missing = "" if parent / name == path else f" ({parent / name} is missing)"
    raise UserError(f"there is no {path}{missing}.{near}")
