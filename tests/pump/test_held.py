"""pqtun.pump.held: every bound."""

from hypothesis import given
from hypothesis import strategies as st

from pqtun.pump.held import HeldPackets
from pqtun.pump.limits import HELD_ADDRESSES, HELD_BYTES, HELD_PACKETS, HELD_PACKETS_PER_PEER, HELD_SECONDS

A, B = b"\x0a\x2b\0\2", b"\x0a\x2b\0\3"


def address(n: int) -> bytes:
    return n.to_bytes(4, "big")


def test_order_and_accounting() -> None:
    held = HeldPackets()
    assert A not in held
    assert held.take(A) == []
    assert held.hold(A, report=False)
    assert held.hold(A, report=False)
    assert A in held
    assert held.next_deadline() is None
    assert held.add(A, b"one", 1.0)
    assert held.add(A, b"three", 2.0)
    assert (held.addresses, held.packets, held.bytes) == (1, 2, 8)
    assert held.next_deadline() == 1.0 + HELD_SECONDS
    assert held.take(A) == [b"one", b"three"]
    assert (held.addresses, held.packets, held.bytes) == (0, 0, 0)


def test_bound_per_address() -> None:
    held = HeldPackets()
    held.hold(A, report=False)
    held.hold(B, report=False)
    for n in range(HELD_PACKETS_PER_PEER):
        assert held.add(A, address(n), 0.0)
    assert not held.add(A, b"more", 0.0)
    assert held.add(B, b"other", 0.0)
    assert held.take(A) == [address(n) for n in range(HELD_PACKETS_PER_PEER)]


def test_bound_of_addresses() -> None:
    held = HeldPackets()
    for n in range(HELD_ADDRESSES):
        assert held.hold(address(n), report=False)
    assert not held.hold(address(HELD_ADDRESSES), report=False)
    assert held.hold(address(0), report=False)
    held.take(address(0))
    assert held.hold(address(HELD_ADDRESSES), report=False)


def test_bound_of_packets_in_all() -> None:
    held = HeldPackets()
    accepted = 0
    for n in range(HELD_PACKETS // HELD_PACKETS_PER_PEER + 1):
        held.hold(address(n), report=False)
        accepted += sum(held.add(address(n), b"x", 0.0) for _ in range(HELD_PACKETS_PER_PEER))
    assert accepted == held.packets == HELD_PACKETS


def test_bound_of_bytes_in_all() -> None:
    held = HeldPackets()
    held.hold(A, report=False)
    big = bytes(HELD_BYTES // 2)
    assert held.add(A, big, 0.0)
    assert held.add(A, big, 0.0)
    assert not held.add(A, b"x", 0.0)
    held.clear()
    assert (held.addresses, held.packets, held.bytes) == (0, 0, 0)


def test_the_next_packet_is_reported_once_if_asked_for() -> None:
    held = HeldPackets()
    held.hold(A, report=True)
    held.hold(B, report=False)
    assert [held.report(inner) for inner in (A, A, B)] == [True, False, False]
    held.hold(A, report=True)  # again, while it is held for
    assert [held.report(inner) for inner in (A, A)] == [True, False]
    held.hold(A, report=True)
    held.hold(A, report=False)
    assert not held.report(A)
    held.hold(A, report=True)
    held.take(A)
    held.hold(A, report=False)
    assert not held.report(A)


def test_packets_expire_and_the_address_stays_held() -> None:
    held = HeldPackets()
    held.hold(A, report=False)
    held.add(A, b"old", 0.0)
    held.add(A, b"young", 5.0)
    assert held.expire(HELD_SECONDS - 0.1) == 0
    assert held.expire(HELD_SECONDS) == 1
    assert held.next_deadline() == 5.0 + HELD_SECONDS
    assert (held.packets, held.bytes) == (1, 5)
    assert held.expire(HELD_SECONDS + 5.0) == 1
    assert held.next_deadline() is None
    assert A in held
    assert held.take(A) == []


@given(st.lists(st.tuples(st.sampled_from("hate"), st.integers(0, 3), st.integers(0, 60)), max_size=200))
def test_accounting_never_drifts(steps: list[tuple[str, int, int]]) -> None:
    held, now = HeldPackets(), 0.0
    for step, n, size in steps:
        now += size / 4
        if step == "h":
            held.hold(address(n), report=False)
        elif step == "a" and address(n) in held:
            held.add(address(n), bytes(size), now)
        elif step == "t":
            held.take(address(n))
        elif step == "e":
            held.expire(now)
    left = [packet for n in range(4) for packet in held.take(address(n))]
    assert held.packets == held.bytes == held.addresses == 0
    assert all(isinstance(packet, bytes) for packet in left)
