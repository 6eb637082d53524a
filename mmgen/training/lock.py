"""One process at a time in a run folder: two would mix their checkpoints and figures."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mmgen_tokenizers.errors import UserError

FILE = ".lock"  # in the run folder: who has it, or had it last


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run; the system lets them in again when this one ends, killed or not.

    Makes the folder if need be. Raises UserError where another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks, or one that may only be read: nobody is kept out
            _take(stack.enter_context((folder / FILE).open("ab+", buffering=0)), folder)
        yield


def _take(file: BinaryIO, folder: Path) -> None:
    file.seek(0)
    holder = file.read().decode() or "another process"
    remedy = "let it finish, or stop it (ctrl-C there saves first); another run needs another folder"
    exclusive(file, f"{folder} is in use by {holder}: {remedy}")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())


def exclusive(file: BinaryIO, taken: str) -> None:
    """Keeps other processes from this file while it is open here. Raises UserError(taken) where one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(taken) from None
