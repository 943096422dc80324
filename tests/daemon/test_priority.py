import os
import resource
import threading
from collections.abc import Callable

import pytest

from pqtun.daemon.priority import NICE, allow_own_niceness, behind_packets


class NamedEngine:
    def __init__(self, name: str) -> None:
        self.name = name


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def in_child(body: Callable[[], bool]) -> bool:
    """Run it in a process of its own, which may change what cannot be changed back."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if body() else 1
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.root
@pytest.mark.parametrize(("name", "expected"), [("native", NICE), ("python", None)])
def test_only_the_thread_that_steps_back_does_and_only_meanwhile(name: str, expected: int | None) -> None:
    own, found = nice(), []

    def call() -> None:
        with behind_packets(NamedEngine(name))():  # type: ignore[arg-type]
            found.append(nice())
        found.append(nice())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [own if expected is None else expected, own]
    assert nice() == own


@pytest.mark.root
def test_without_the_way_back_it_stays_behind() -> None:
    def body() -> bool:
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        os.setresuid(65534, 65534, 65534)
        place = behind_packets(NamedEngine("native"))  # type: ignore[arg-type]
        before = nice()
        with place():
            inside = nice()
        with place():
            again = nice()
        return (before, inside, again, nice()) == (0, NICE, NICE, NICE)

    assert in_child(body)


@pytest.mark.root
def test_with_it_allowed_it_comes_forward_without_privileges() -> None:
    def may_raise_the_limit() -> bool:
        resource.setrlimit(resource.RLIMIT_NICE, (20, 20))
        return True

    allowed = in_child(may_raise_the_limit)  # not so without CAP_SYS_RESOURCE

    def body() -> bool:
        allow_own_niceness()
        os.setresuid(65534, 65534, 65534)
        with behind_packets(NamedEngine("native"))():  # type: ignore[arg-type]
            inside = nice()
        return (inside, nice()) == (NICE, 0 if allowed else NICE)

    assert in_child(body)
