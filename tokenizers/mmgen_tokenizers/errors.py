"""The one exception for what a user can cause, and the hint that goes with a mistyped name."""

import contextlib
import difflib
import errno
import functools
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend: a single clear line that names the remedy. The commands print it and exit with 2."""


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an exception, or one that it was raised from, says that the disk (or the quota) is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):  # tensorstore and array_record raise ValueError or RuntimeError
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turns "no space left", however it is wrapped, into one clear line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        raise UserError(
            f"no space left on the disk of {folder}: what was complete is intact; free some and start the same command again"
        ) from error


def plain_warnings() -> None:
    """For commands: a warning is for the user, one line without the place in our code."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest of the choices, or "" when nothing is close: one letter wrong or exchanged
    in up to six, about one in four of more."""
    word, choices = str(word), [str(choice) for choice in choices]
    wrong = max(1, (len(word) + 1) // 4) / max(1, len(word))
    like = functools.partial(difflib.get_close_matches, n=1, cutoff=max(0.65, 1 - wrong - 1e-6))
    lowered = {choice.lower(): choice for choice in choices}
    found = like(word, choices) or like(word.lower(), lowered)
    return f" Did you mean {lowered.get(found[0], found[0])!r}?" if found else ""
