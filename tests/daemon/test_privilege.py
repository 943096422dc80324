"""pqtun.daemon.privilege: limits. What the worker may not do any more is in tests/net/test_daemon.py."""

import resource

import pytest

from pqtun.daemon import privilege

WANTED = privilege.LOCKED_BYTES
INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("before", "may_raise", "after"),
    [
        ((8 << 20, 8 << 20), True, (WANTED, WANTED)),
        ((8 << 20, 8 << 20), False, (8 << 20, 8 << 20)),
        ((8 << 20, 64 << 20), False, (64 << 20, 64 << 20)),
        ((8 << 20, INFINITY), True, (WANTED, WANTED)),
        ((8 << 20, 2 * WANTED), True, (2 * WANTED, 2 * WANTED)),
        ((INFINITY, INFINITY), True, (INFINITY, INFINITY)),
        ((WANTED, INFINITY), True, (WANTED, INFINITY)),
    ],
)
def test_room_for_keys(monkeypatch, before, may_raise, after):
    limits = [before]

    def setrlimit(which, new):
        assert which == resource.RLIMIT_MEMLOCK
        if not may_raise and new[1] > limits[-1][1]:
            raise ValueError("not allowed to raise maximum limit")
        limits.append(new)

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    privilege.allow_locked_memory()
    assert limits[-1] == after
