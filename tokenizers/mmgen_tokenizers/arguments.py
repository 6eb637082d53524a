"""The command line of `mmgen` and `mmgen-tokenizers`: argparse with errors of one line that name the nearest right word."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """`prog` is "mmgen VERB"; `text` the verb's docstring: what it does, and an example."""

    def __init__(self, prog: str, text: str):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=text.strip(), formatter_class=formatter, allow_abbrev=False)

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(arguments)
        if unknown:
            near = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            raise UserError(f"{self.prog} does not know {unknown[0]}.{near} ({self.prog} --help lists all)")
        return parsed

    def error(self, message: str) -> None:
        greedy = [action.option_strings[0] for action in self._actions if action.option_strings and action.nargs == "+"]
        missing = message.partition("arguments are required: ")[2]
        if greedy and missing and not missing.startswith("-"):  # a word that has no option: one with many values may have it
            message += f": write it first, for {' and '.join(greedy)} take all words that follow"
        raise UserError(f"{message} ({self.prog} --help shows how)")


def json_object(path: str | None) -> dict[str, Any] | None:
    """What the JSON file of an option holds; None where the option is not given."""
    if path is None:
        return None
    try:
        value = json.loads(existing(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


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
