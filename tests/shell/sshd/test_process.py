import os
import signal
import socket
from pathlib import Path

import pytest

from pqtun.shell.sshd import process
from tests.net.process import wait_until
from tests.shell.sshd.world import World


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("end", "code"), [(None, 0), (SystemExit(7), 7), (SystemExit("x"), 1), (ValueError("x"), 1)])
def test_its_end(end: BaseException | None, code: int) -> None:
    def body() -> None:
        if end is not None:
            raise end

    assert outcome(process.start("name", body)) == code


def test_its_name() -> None:
    pid = process.start("sshd: a-very-long-name", signal.pause)
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sshd: a-very-lo\n", 10, "its name")
    process.kill(pid)


def test_it_is_reaped_once() -> None:
    pid = process.start("name", signal.pause)
    assert not process.ended(pid)
    process.kill(pid)
    assert process.ended(pid)
    process.kill(pid)


@pytest.mark.root
def test_a_signal_to_a_child_does_not_reach_its_parent(world: World) -> None:
    """However early it comes: the child has the parent's handlers and its wake-up pipe for a moment."""

    def body() -> tuple[list[int], set[int]]:
        def wait() -> None:
            signal.alarm(2)  # so that a signal that went astray shows
            signal.pause()

        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGTERM, lambda *_: None)
        fork, ends = os.fork, []

        def forked_and_told() -> int:
            pid = fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGTERM)  # the earliest moment there is
            return pid

        os.fork = forked_and_told
        for _ in range(5):
            ends.append(outcome(process.start("name", wait)))
        try:
            return ends, set(wake.recv(100))
        except BlockingIOError:
            return ends, set()

    ends, seen = world.call(body)
    assert set(ends) == {-signal.SIGTERM}
    assert seen == set()


def test_the_parents_mask_is_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process.kill(process.start("name", signal.pause))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
