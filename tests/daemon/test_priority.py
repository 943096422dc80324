import os
import threading

import pytest

from pqtun.daemon.priority import NICE, behind_packets


class NamedEngine:
    def __init__(self, name):
        self.name = name


def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize(("name", "expected"), [("native", NICE), ("python", 0)])
def test_only_the_thread_that_calls_steps_back(name, expected):
    found = []
    before = nice()

    def call():
        behind_packets(NamedEngine(name))
        found.append(nice())

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert found == [expected or before]
    assert nice() == before
