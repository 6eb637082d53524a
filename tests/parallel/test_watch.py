"""What a process does when another one is gone; tests/scale kills real ones.

Time is a number that the tests move. What they wait for in earnest is what another thread does, however slow the machine.
"""

import contextlib
import fcntl
import re
import resource
import socket
import threading
import time
import types

import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.parallel import watch
from mmgen.parallel.distributed import Elsewhere
from mmgen.parallel.watch import Peer, Watch

LONG = 30.0  # seconds after which a test has failed


class Ended(BaseException):
    pass


@pytest.fixture
def ends(monkeypatch):
    """Exit codes of processes that ended themselves: here, threads."""
    codes = []

    def end(code):
        codes.append(code)
        raise Ended

    monkeypatch.setattr(watch.os, "_exit", end)
    monkeypatch.setattr(watch, "atexit", types.SimpleNamespace(register=lambda *about: None))
    monkeypatch.setattr(threading, "excepthook", lambda about: None)
    return codes


@pytest.fixture
def clock(monkeypatch):
    """Whose `now` is the time that processes see."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def watching(ends, clock):
    """`watching(2)`: a process that watches two others, and their ends of the connections. It begins `wait` seconds after it
    has greeted them; its own ends are descriptors from `descriptor` on."""
    begun = []

    def begin(count: int, wait: float = 0.0, descriptor: int = 0) -> tuple[Watch, list[Peer]]:
        made, others = Watch(), []
        for index in range(1, count + 1):
            pair, other = socket.socketpair()
            with pair:
                mine = socket.socket(fileno=fcntl.fcntl(pair, fcntl.F_DUPFD, descriptor))
            other.settimeout(LONG)
            made._peers.append(Peer(mine, f"process {index}"))
            others.append(Peer(other, "process 0"))
        begun.append(made)
        clock.now += wait
        made._thread.start()
        assert all(other.lines() == ["at 0"] for other in others)  # a sign of life: it watches
        return made, others

    yield begin
    for made in begun:
        made._over.set()
        made._thread.join(LONG)


def said(peer: Peer) -> list[str]:
    """All that came before the end, without signs of life."""
    found = []
    while (lines := peer.lines()) is not None:
        found += (line for line in lines if not line.startswith("at "))
        if found:
            break
    return found


def tells(other: Peer, mine: Peer, line: str, clock) -> None:
    """Twenty seconds later `other` says a line, which the process at the end `mine` of its connection has read then."""
    clock.now += 20
    other.say(line)
    deadline = time.monotonic() + LONG
    while mine.heard != clock.now:
        assert time.monotonic() < deadline, f"nobody has heard {line!r}"
        time.sleep(0.01)


def test_who_is_gone_is_named_to_all(watching, ends, capfd):
    made, (first, second) = watching(2)
    first.connection.close()
    made._thread.join(LONG)
    assert ends == [75] and said(second) == ["gone 75 process 1 is gone"]
    assert "error: process 1 is gone; start all processes again" in capfd.readouterr().err


def test_who_is_silent_is_named(watching, clock, ends, capfd):
    made, (first,) = watching(1)
    clock.now += watch.PATIENCE + 1
    made._thread.join(LONG)
    assert ends == [75] and "process 1 has given no sign of life for 30 s" in capfd.readouterr().err


def test_silence_counts_from_when_watching_begins(watching, clock, ends):
    """Not from the greeting: the others of a large job are greeted after it."""
    made, (first,) = watching(1, wait=watch.PATIENCE + 1)
    clock.now += watch.BEAT + 1
    assert first.lines() == ["at 0"]  # another sign of life: it has looked for silence in between
    made.__exit__(None, None, None)
    assert not ends


@pytest.mark.parametrize(
    ("mine", "theirs", "seconds", "told"),
    [
        (5, 4, 100, r"process 1 has not gone on for 100 s, and the others wait for it"),
        (4, 5, 100, r"process 0 \(.*\) has not gone on for 100 s, and the others wait for it"),
        (5, 5, 600, r"no process has gone on for 600 s: one hangs"),  # as where a device does
    ],
)
def test_whose_training_hangs_is_named(watching, clock, ends, monkeypatch, capfd, mine, theirs, seconds, told):
    """Though its machine gives signs of life. Time counts from when another is further: what all do together may be long."""
    monkeypatch.setattr(watch, "PATIENCE", 10**6)
    made, (first,) = watching(1)
    made._stuck = 100
    peer = made._peers[0]
    for count in (1, 2, 3):
        made.goes_on()
        tells(first, peer, f"at {count}", clock)
    clock.now += 400
    tells(first, peer, "at 3", clock)
    for _ in range(mine - 3):
        made.goes_on()
    tells(first, peer, f"at {theirs}", clock)
    clock.now += seconds - 70
    for _ in range(2):  # the second is heard by one who has thought about the first
        tells(first, peer, f"at {theirs}", clock)
    assert not ends
    clock.now += 80
    made._thread.join(LONG)
    assert ends == [75] and re.search(f"error: {told}", capfd.readouterr().err)


def four_steps(made: Watch, others: list[Peer], counts: tuple[int, int], clock) -> None:
    """This process has done so many; then the two others tell of theirs."""
    while made._work.count < 4:
        made.goes_on()
    for other, mine, count in zip(others, made._peers, counts, strict=True):
        tells(other, mine, f"at {count}", clock)


def test_what_the_first_process_does_alone_may_be_long(watching, clock, ends, monkeypatch, capfd):
    """Such as a preview. What comes next may take as long as ever."""
    monkeypatch.setattr(watch, "PATIENCE", 10**6)
    made, others = watching(2)
    made._stuck = 100
    with made.alone():
        for _ in range(5):  # two times 20 seconds each
            four_steps(made, others, (5, 5), clock)
    for _ in range(2):
        four_steps(made, others, (5, 5), clock)
    assert not ends
    clock.now += 40
    made._thread.join(LONG)
    assert ends == [75] and re.search(r"error: process 0 \(.*\) has not gone on for 100 s", capfd.readouterr().err)


@pytest.mark.parametrize(("last", "seconds", "told"), [(4, 100, "process 2 has not"), (5, 600, "no process has")])
def test_who_hangs_meanwhile_is_named(watching, clock, ends, monkeypatch, capfd, last, seconds, told):
    monkeypatch.setattr(watch, "PATIENCE", 10**6)
    made, others = watching(2)
    made._stuck = 100
    with made.alone():
        four_steps(made, others, (5, last), clock)
        clock.now += seconds - 60
        four_steps(made, others, (5, last), clock)
        assert not ends
        clock.now += 40
        made._thread.join(LONG)
    assert ends == [75] and f"error: {told} gone on for {seconds} s" in capfd.readouterr().err


def test_how_long_the_others_wait_is_a_number(monkeypatch):
    """A mistake is one of the user's, in all processes."""
    monkeypatch.setattr(watch.jax, "process_count", lambda: 2)
    monkeypatch.setattr(watch, "in_turn", contextlib.nullcontext)
    monkeypatch.setattr(watch, "_connected", list)
    monkeypatch.setattr(watch, "all_say", lambda ok: ok)
    for wrong in ("abc", "", "0", "-5", "1.5"):
        monkeypatch.setenv("MMGEN_STUCK", wrong)
        with pytest.raises(UserError, match=f"^MMGEN_STUCK={wrong}: set it to a number of seconds"):
            Watch().__enter__()
    monkeypatch.setenv("MMGEN_STUCK", "7")
    assert Watch().__enter__()._stuck == 7


def test_who_is_slow_does_not_hang(watching, clock, ends):
    """And before their second step processes load and compile for as long as they need."""
    made, (first,) = watching(1)
    made._stuck = 10
    peer = made._peers[0]
    for _ in range(9):
        made.goes_on()
    for count in (0, 1, 1, 1, 1, 1):  # two minutes: twice the time after which nothing may stand still, too
        tells(first, peer, f"at {count}", clock)
    made._stuck = 30
    for count in (2, 3, 4, 5):
        tells(first, peer, f"at {count}", clock)
    made.__exit__(None, None, None)
    assert not ends


def test_connections_may_be_many(watching, clock, ends):
    """`select` knows descriptors below 1024 only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft <= 1100:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1101, hard))
    made, (first,) = watching(1, descriptor=1100)
    tells(first, made._peers[0], "", clock)
    made.__exit__(None, None, None)
    assert not ends


def test_who_cannot_watch_says_so_and_ends(watching, ends, monkeypatch, capfd):
    """Else the others would miss its signs of life, and take it for one that hangs."""
    monkeypatch.setattr(Peer, "fileno", lambda peer: -1)
    made, (mine, other) = Watch(), socket.socketpair()
    other.settimeout(LONG)
    made._peers.append(Peer(mine, "process 1"))
    made._thread.start()
    made._thread.join(LONG)
    assert ends == [75] and "cannot watch the others any longer: ValueError" in said(Peer(other, ""))[0]
    assert "error: process 0 (" in capfd.readouterr().err


def test_a_goodbye_is_no_loss(watching, clock, ends):
    made, (first, second) = watching(2)
    mine = made._peers[1]
    first.say("bye")
    first.connection.close()
    for _ in range(3):  # longer than PATIENCE
        tells(second, mine, "", clock)
    assert made._thread.is_alive()
    made.__exit__(None, None, None)
    assert not ends and said(second) == ["bye"]


def test_a_mistake_is_waited_for(watching, clock, ends, monkeypatch, capfd):
    """It may be one that this process makes too, and tells better."""
    monkeypatch.setattr(watch, "GRACE", LONG)
    made, (first,) = watching(1)
    tells(first, made._peers[0], "gone 2 process 1 ended: no such folder", clock)
    made.__exit__(UserError, UserError("no such folder"), None)
    assert not ends and "gone 2 process 0" in said(first)[0]
    monkeypatch.setattr(watch, "GRACE", 0)
    made, (first,) = watching(1)
    first.say("gone 2 process 1 ended: no such folder")
    made._thread.join(LONG)
    assert ends == [2] and "error: process 1 ended: no such folder;" in capfd.readouterr().err


def test_who_ends_by_a_mistake_says_so_by_its_exit_code(watching, ends, monkeypatch):
    """When the others are gone, for whom JAX would wait."""
    last = []
    monkeypatch.setattr(watch, "atexit", types.SimpleNamespace(register=lambda *about: last.extend(about)))
    made, (first,) = watching(1)
    made.__exit__(UserError, UserError("no such folder"), None)
    assert "gone 2 process 0" in said(first)[0] and not ends
    assert not last  # a program that catches the error goes on, and ends as it likes
    monkeypatch.setattr(Watch, "ends_program", True)
    made, (first,) = watching(1)
    made.__exit__(UserError, UserError("no such folder"), None)
    leave, code = last
    first.connection.close()
    with pytest.raises(Ended):
        leave(code)
    assert ends == [2]


def test_an_error_waits_for_the_word_of_the_others(watching, ends, monkeypatch):
    """A collective fails at once where another process died; why, its connection tells."""
    made, (first,) = watching(1)
    first.connection.close()
    made.__exit__(ValueError, ValueError("connection closed by peer"), None)
    assert ends == [75]
    monkeypatch.setattr(watch, "PATIENCE", 0.1)
    monkeypatch.setattr(watch, "BEAT", 0.1)
    made, (first,) = watching(1)
    made.__exit__(ValueError, ValueError("its own\nfault"), None)
    assert ends == [75] and said(first)[0].endswith("ended: its own")


def test_whose_own_error_it_is_speaks_first(watching, ends, monkeypatch):
    """The others wait longer: they end with its word, and so with 75."""
    waits, others = [], []
    for error in (OSError("its disk"), Elsewhere("process 1 ended: its disk")):
        made, (other,) = watching(1)
        others.append(other)  # else its end is closed
        with monkeypatch.context() as patch:
            patch.setattr(made._thread, "join", lambda *seconds: waits.extend(seconds))
            made.__exit__(type(error), error, None)
    own, elsewhere = waits
    assert elsewhere >= own + 2 * watch.BEAT and own > watch.PATIENCE and not ends
