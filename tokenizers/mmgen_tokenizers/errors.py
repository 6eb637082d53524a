"""The one exception for what a user can cause, and the hint that goes with a mistyped name."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend: a single clear line that names the remedy. The commands print it and exit with 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of the choices, or "" when nothing is close."""
    choices = [str(choice) for choice in choices]
    lowered = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(str(word), choices, n=1) or difflib.get_close_matches(str(word).lower(), lowered, n=1)
    return f" Did you mean {lowered.get(found[0], found[0])!r}?" if found else ""
