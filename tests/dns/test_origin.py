from __future__ import annotations

import errno
import socket
from collections import deque

import pytest

from pqtun.dns.origin import MAX_FLOWS, OriginalDestinations
from tests.dns.test_conntrack import EVENT4, EVENT6

ASKER4, ASKER6 = ("192.0.2.1", 0x96A1), ("2001:db8::1", 0x8BDB, 0, 0)


class Events:
    """A netlink socket with events in its queue."""

    def __init__(self, *events: bytes | OSError) -> None:
        self.queue: deque[bytes | OSError] = deque(events)
        self.sender = 0

    def recvfrom_into(self, buffer: bytearray) -> tuple[int, tuple[int, int]]:
        if not self.queue:
            raise BlockingIOError
        event = self.queue.popleft()
        if isinstance(event, OSError):
            raise event
        buffer[: len(event)] = event
        return len(event), (self.sender, 0)


def flow(asker_port: int, resolver: bytes = bytes((9, 9, 9, 9))) -> bytes:
    port = asker_port.to_bytes(2, "big")
    return EVENT4.replace(b"\x96\xa1", port).replace(bytes((9, 9, 9, 9)), resolver)


def origins(events: Events, limit: int = 100) -> OriginalDestinations:
    return OriginalDestinations(events, limit)  # type: ignore[arg-type]


def test_origins_of_both_families() -> None:
    known = origins(Events(EVENT4, EVENT6))
    assert known.of_datagram(socket.AF_INET, ASKER4) == ("9.9.9.9", 53)
    assert known.of_datagram(socket.AF_INET6, ASKER6) == ("2001:db8::53", 53)


def test_unknown_origins() -> None:
    known = origins(Events(EVENT4))
    assert known.of_datagram(socket.AF_INET, ("192.0.2.1", 1)) is None
    assert known.of_datagram(socket.AF_INET, ("192.0.2.2", 0x96A1)) is None
    assert known.of_datagram(socket.AF_INET6, ("::ffff:192.0.2.1", 0x96A1, 0, 0)) is None


def test_the_latest_event_of_a_source_counts() -> None:
    events = Events(flow(1000), flow(1000, bytes((8, 8, 8, 8))))
    known = origins(events)
    assert known.of_datagram(socket.AF_INET, ("192.0.2.1", 1000)) == ("8.8.8.8", 53)
    events.queue.append(flow(1000))
    assert known.of_datagram(socket.AF_INET, ("192.0.2.1", 1000)) == ("9.9.9.9", 53)


def test_only_lookups_have_an_origin() -> None:
    known = origins(Events(EVENT4.replace(b"\x06\x00\x03\x00\x00\x35", b"\x06\x00\x03\x00\x00\x36", 1)))
    assert known.of_datagram(socket.AF_INET, ASKER4) is None


def test_the_flow_used_last_is_kept_longest() -> None:
    events = Events(flow(1), flow(2))
    known = origins(events, limit=2)
    assert known.of_datagram(socket.AF_INET, ("192.0.2.1", 1)) is not None
    events.queue.append(flow(3))
    assert [known.of_datagram(socket.AF_INET, ("192.0.2.1", port)) is not None for port in (1, 2, 3)] == [
        True,
        False,
        True,
    ]


def test_programs_that_use_every_local_port_are_all_known() -> None:
    # A port that is used again while conntrack remembers its flow makes no event.
    ports = range(32768, 61000)  # ip_local_port_range as it is by default
    known = origins(Events(*(flow(port) for port in ports)), limit=MAX_FLOWS)
    assert all(known.of_datagram(socket.AF_INET, ("192.0.2.1", port)) for port in ports)


def test_lost_events_clear_what_is_known() -> None:
    events = Events(flow(1), OSError(errno.ENOBUFS, "lost"), flow(2))
    known = origins(events)
    assert known.of_datagram(socket.AF_INET, ("192.0.2.1", 1)) is None
    assert known.of_datagram(socket.AF_INET, ("192.0.2.1", 2)) is not None
    assert known.counters == {"events_lost": 1}


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(OSError, match="bad"):
        origins(Events(OSError(errno.EBADF, "bad"))).of_datagram(socket.AF_INET, ASKER4)


def test_odd_events_are_counted() -> None:
    events = Events(b"junk", EVENT4[:-4])
    known = origins(events)
    assert known.of_datagram(socket.AF_INET, ASKER4) is None
    assert known.counters == {"conntrack_event": 2}
    events.queue.append(EVENT4)
    events.sender = 1234  # another process, not the kernel
    assert known.of_datagram(socket.AF_INET, ASKER4) is None
    assert known.counters == {"conntrack_event": 3}


def test_a_connection_to_the_proxy_itself_has_no_origin() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert origins(Events()).of_stream(accepted) is None
