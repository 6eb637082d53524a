"""The command line of `mmgen` and `mmgen-tokenizers`: argparse with errors of one line that name the nearest right word."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError, is_full_disk, nearest, plain_warnings


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
            message += f": write it first, for {', '.join(greedy)} take all words that follow"
        raise UserError(f"{message} ({self.prog} --help shows how)")


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


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


def exit_code(run: Callable[[Sequence[str]], None], arguments: Sequence[str] | None) -> int:
    """Runs a command (None: with the process's arguments): 0, 2 for what the user can mend, 130 for ctrl-C, 141 where nobody
    reads what it writes. Our own mistakes keep their traceback."""
    plain_warnings()
    try:
        try:
            run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
        return 0
    except UserError as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes again at its end
        return 141
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        message = f"{error.strerror}: {error.filename}"
    except Exception as error:
        if not is_full_disk(error):
            raise
        path = getattr(error, "filename", None)
        folder = os.path.dirname(os.path.abspath(path)) if path else os.getcwd()
        message = f"the disk is full: free space for {folder} and start again"
    print(f"error: {message}", file=sys.stderr)
    return 2
