"""Several processes that notice when one of them is gone: it died, its machine hangs, or only its training does."""

import atexit
import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import jax
import numpy as np
from mmgen_tokenizers.errors import UserError

from mmgen.parallel.distributed import Elsewhere, all_say, first_process, in_turn

BEAT = 5  # seconds between two signs of life
PATIENCE = 30  # seconds without one after which a process counts as gone
STUCK = 600  # seconds that the others wait for one whose machine works; MMGEN_STUCK changes it
GRACE = 5  # seconds for a mistake that all processes notice by themselves, such as a loss that is not finite
AGAIN = "start all processes again, and training continues from the last checkpoint"
LOST, MISTAKE = 75, 2  # exit codes: EX_TEMPFAIL; as for any UserError


class Work:
    """How often the main thread of a process has gone on: all do so equally often, or wait for those that have not yet."""

    def __init__(self, name: str):
        self.name, self.count, self.moved = name, 0, time.monotonic()
        self.level = self.moved  # when nobody was known to be further

    def reaches(self, count: int) -> None:
        if count != self.count:
            self.moved = time.monotonic()  # before the count: another thread reads them
            self.count = count


class Peer:
    """Another process, at the other end of a connection. Lines pass over it: those like "at 7" are signs of life, and tell of
    its work."""

    def __init__(self, connection: socket.socket, name: str):
        self.connection, self.name, self.heard, self._rest = connection, name, time.monotonic(), b""
        self.left = False  # it said goodbye
        self.work = Work(name)

    def fileno(self) -> int:
        return self.connection.fileno()

    def say(self, line: str) -> None:
        try:
            self.connection.sendall(line.encode() + b"\n")
        except OSError:
            pass  # the reader of this connection notices

    def lines(self) -> list[str] | None:
        """What has come; None at the end of the connection."""
        try:
            data = self.connection.recv(4096)
        except OSError:
            data = b""
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode() for line in lines] if data else None


class Watch:
    """Within `with Watch() as watch:` of every process, each ends with a word about it when another is gone. Without it those
    that are left would wait in the next collective, for ever where a machine hangs.

    All have a connection to the first process; that one tells the others. The main thread calls `watch.goes_on()` before it
    waits for the others: who is behind then is known, though its machine gives signs of life.
    """

    ends_program: ClassVar[bool] = False  # whether an error within is the end of this process too: set by commands

    def __init__(self):
        self._peers: list[Peer] = []
        self._work, self._alone, self._stuck = Work(_own_name()), False, STUCK
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self):
        if jax.process_count() > 1:
            with in_turn():
                self._stuck = _told_stuck()
            self._peers = _connected()
            if all_say(bool(self._peers)):
                self._thread.start()
            elif first_process():
                print("processes cannot watch each other: one that hangs will not be noticed", file=sys.stderr)
        return self

    def __exit__(self, kind, error, trace):
        if not self._thread.is_alive():
            return
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # It may be that another is gone: then this process ends here. Whose own error it is gives up waiting first.
            self._thread.join(PATIENCE + (4 if isinstance(error, Elsewhere) else 2) * BEAT)
        self._over.set()
        self._thread.join()
        well = error is None or isinstance(error, SystemExit)
        for peer in self._peers:
            peer.say("bye" if well else _last_words(error))
            if well:
                peer.connection.close()
        if not well and self.ends_program:
            atexit.register(self._leave, MISTAKE if isinstance(error, UserError) else 1)

    def _leave(self, code: int) -> None:
        """Ends this process after its last word: JAX's own end would wait minutes for those that are gone. The first process
        leaves last, since JAX aborts the others where it is gone."""
        sys.stdout.flush()
        deadline = time.monotonic() + 2 * GRACE
        for peer in self._peers if first_process() else ():
            peer.connection.settimeout(max(deadline - time.monotonic(), 0.1))
            while peer.lines() is not None:
                pass
        os._exit(code)

    def goes_on(self) -> None:
        """The main thread has done what it does alone before a step, a piece of validation or a checkpoint."""
        self._work.reaches(self._work.count + 1)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The first process does what it alone does, such as a preview: it may be behind for longer than others may."""
        self._alone = True
        try:
            yield
        finally:
            self._work.moved = time.monotonic()  # before `_alone`: another thread reads them
            self._alone = False

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                self._watch(selector)
        except Exception as error:  # silence would have the others take this process for one that hangs
            self._end(None, LOST, f"{_own_name()} cannot watch the others any longer: {error!r}")

    def _watch(self, selector: selectors.BaseSelector) -> None:
        beat = 0.0
        for peer in self._peers:
            selector.register(peer, selectors.EVENT_READ)
            peer.heard = time.monotonic()  # the first to be greeted have waited for all the others
        while not self._over.is_set() and self._peers:
            if time.monotonic() > beat:
                beat = time.monotonic() + BEAT
                for peer in self._peers:
                    peer.say(f"at {self._work.count}")
            for key, _ in selector.select(0.2):
                self._read(key.fileobj)
            for peer in self._peers:
                if time.monotonic() - peer.heard > PATIENCE:
                    self._end(peer, LOST, f"{peer.name} has given no sign of life for {PATIENCE} s: it hangs, or is cut off")
            if first_process():
                self._look_at_work()
            for peer in [peer for peer in self._peers if peer.left]:
                selector.unregister(peer)
                self._peers.remove(peer)

    def _read(self, peer: Peer) -> None:
        lines = peer.lines()
        if lines is None:
            self._end(peer, LOST, f"{peer.name} is gone")
        for line in lines or ():
            word, _, rest = line.partition(" ")
            if word == "at":
                peer.work.reaches(int(rest))
            elif word == "bye":
                peer.left = True
            elif word == "gone":
                code, _, reason = rest.partition(" ")
                self._end(peer, int(code), reason)

    def _look_at_work(self) -> None:
        """Ends all where one is behind for long; or where none goes on for very long, since what hangs may be a device.

        Only from the second step on: until then one may load or compile what others have at hand.
        """
        works = [self._work, *(peer.work for peer in self._peers)]
        now, furthest = time.monotonic(), max(work.count for work in works)
        last = min(works[1:] if self._alone else works, key=lambda work: work.count)
        for work in works:
            if work.count == furthest:
                work.level = now
        if last.count < 2:
            return
        if now - max(last.moved, last.level) > self._stuck:
            self._end(None, LOST, f"{last.name} has not gone on for {self._stuck} s, and the others wait for it: it hangs")
        if now - max(work.moved for work in works) > 6 * self._stuck:
            self._end(None, LOST, f"no process has gone on for {6 * self._stuck} s: one hangs, and they cannot tell which")

    def _end(self, by: Peer | None, code: int, reason: str) -> None:
        for peer in self._peers:
            if peer is not by:
                peer.say(f"gone {code} {reason}")
        if code == MISTAKE and self._over.wait(GRACE):
            return
        os.write(2, f"\nerror: {reason}; {AGAIN}\n".encode())
        os._exit(code)


def _told_stuck() -> int:
    told = os.environ.get("MMGEN_STUCK", str(STUCK))
    if not (told.isdecimal() and int(told)):
        raise UserError(f"MMGEN_STUCK={told}: set it to a number of seconds, such as 1200, or not at all")
    return int(told)


def _own_name() -> str:
    return f"process {jax.process_index()} ({socket.gethostname()}, process id {os.getpid()})"


def _last_words(error: BaseException) -> str:
    code = MISTAKE if isinstance(error, UserError) else LOST
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"gone {code} {_own_name()} ended: {reason}"


def _connected() -> list[Peer]:
    """This process's connections to those that it watches; none where that fails."""
    from jax.experimental.multihost_utils import process_allgather

    with socket.create_server(("", 0)) as server:
        mine = [*socket.inet_aton(_own_address()), server.getsockname()[1]]
        *address, port = process_allgather(np.array(mine, np.int32))[0].tolist()
        try:
            if first_process():
                server.settimeout(PATIENCE)
                return [_greeted(server.accept()[0]) for _ in range(jax.process_count() - 1)]
            return [_greeted(socket.create_connection((socket.inet_ntoa(bytes(address)), port), PATIENCE))]
        except OSError:
            return []


def _greeted(connection: socket.socket) -> Peer:
    """Each side says who it is."""
    connection.settimeout(PATIENCE)
    connection.sendall(f"{_own_name()}\n".encode())
    name = b""
    while not name.endswith(b"\n"):
        name += connection.recv(1) or b"?\n"
    return Peer(connection, name.decode().strip())


def _own_address() -> str:
    """That others see this machine by; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
