"""What XLA writes to the terminal while it compiles, and nobody is told otherwise."""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def overheard() -> Iterator[list[str]]:
    """The lines of warnings and errors that XLA logs to stderr meanwhile, complete when the block ends. They are kept from the
    terminal, where all else goes: what kills the process too."""
    lines, terminal = [], os.dup(2)
    reading, writing = os.pipe()
    # A writer may hold Python's lock, which the listener waits for: the pipe, which can grow on Linux, must take all it says.
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 2**20)
    os.dup2(writing, 2)
    os.close(writing)
    listener = threading.Thread(target=_listen, args=(reading, terminal, lines))
    listener.start()
    try:
        yield lines
    finally:
        os.dup2(terminal, 2)  # the pipe has no other end: the listener comes to its own
        listener.join()


def _listen(reading: int, terminal: int, lines: list[str]) -> None:
    logged = False
    with open(reading, errors="replace") as heard, open(terminal, "w") as passed:
        for line in heard:
            # glog's letters, or the signal of a crash; what follows without one belongs to it.
            if start := re.match(r"([IWEF])\d{4} |\*\*\* ", line):
                logged = start[1] is not None and start[1] in "WE"
            if logged:
                lines.append(line)
            else:
                print(line, end="", file=passed, flush=True)


def copied(lines: list[str]) -> list[str]:
    """Operations of which XLA says that it copies their results whole to every device, by their names in the program."""
    told = [line for line in lines if "nvoluntary full rematerialization" in line]
    return list(dict.fromkeys(map(_operation, told)))


def _operation(line: str) -> str:
    named = re.search(r'op_name="([^"]*)"', line) or re.search(r"(%\S+ = \S+)", line)
    return named[1] if named else line.strip()
