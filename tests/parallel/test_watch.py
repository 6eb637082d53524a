"""What a process does when another one is gone; tests/scale kills real ones."""

import socket
import threading

import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.parallel import watch
from mmgen.parallel.watch import Peer, Watch


class Ended(Exception):
    pass


@pytest.fixture
def ends(monkeypatch):
    """Exit codes of processes that ended themselves: here, threads."""
    codes = []

    def end(code):
        codes.append(code)
        raise Ended

    monkeypatch.setattr(watch.os, "_exit", end)
    monkeypatch.setattr(threading, "excepthook", lambda about: None)
    monkeypatch.setattr(watch, "PATIENCE", 1.0)
    monkeypatch.setattr(watch, "BEAT", 0.1)
    monkeypatch.setattr(watch, "GRACE", 1.0)
    return codes


def watching(count: int) -> tuple[Watch, list[Peer]]:
    """A process that watches others, and their ends of the connections."""
    made, others = Watch(), []
    for index in range(1, count + 1):
        mine, other = socket.socketpair()
        made._peers.append(Peer(mine, f"process {index}"))
        others.append(Peer(other, "process 0"))
    made._thread.start()
    return made, others


def said(peer: Peer) -> list[str]:
    """All that came before the end, without signs of life."""
    found = []
    while (lines := peer.lines()) is not None:
        found += filter(None, lines)
        if found:
            break
    return found


def test_who_is_gone_is_named_to_all(ends, capfd):
    made, (first, second) = watching(2)
    first.connection.close()
    made._thread.join(5)
    assert ends == [75] and said(second) == ["gone 75 process 1 is gone"]
    assert "error: process 1 is gone; start all processes again" in capfd.readouterr().err


def test_who_is_silent_is_named(ends, capfd):
    made, (first,) = watching(1)
    made._thread.join(5)
    assert ends == [75] and "process 1 has given no sign of life for 1.0 s" in capfd.readouterr().err


def test_a_goodbye_is_no_loss(ends):
    made, (first, second) = watching(2)
    first.say("bye")
    first.connection.close()
    for _ in range(15):  # longer than PATIENCE
        second.say()
        made._over.wait(0.1)
    assert made._thread.is_alive()
    made.__exit__(None, None, None)
    assert not ends and said(second) == ["bye"]


def test_a_mistake_is_waited_for(ends, capfd):
    """It may be one that this process makes too, and tells better."""
    made, (first,) = watching(1)
    first.say("gone 2 process 1 ended: no such folder")
    made._thread.join(0.3)
    assert made._thread.is_alive() and not ends
    made.__exit__(UserError, UserError("no such folder"), None)
    assert not ends and "gone 2 process 0" in said(first)[0]
    made, (first,) = watching(1)
    first.say("gone 2 process 1 ended: no such folder")
    made._thread.join(5)
    assert ends == [2] and "error: process 1 ended: no such folder;" in capfd.readouterr().err


def test_an_error_waits_for_the_word_of_the_others(ends):
    """A collective fails at once where another process died; why, its connection tells."""
    made, (first,) = watching(1)
    first.connection.close()
    made.__exit__(ValueError, ValueError("connection closed by peer"), None)
    assert ends == [75]
    made, (first,) = watching(1)
    keeps = threading.Thread(target=lambda: [(first.say(), made._over.wait(0.1)) for _ in range(20)])
    keeps.start()
    made.__exit__(ValueError, ValueError("its own\nfault"), None)
    keeps.join()
    assert ends == [75] and said(first)[0].endswith("ended: its own")
