import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.admission import Admission
from pqtun.keyserver.limits import PREFIX_BURST
from pqtun.keyserver.server import KeyServer, KeyServerSocket
from pqtun.protocol.keydatagram import ephemeral_request, parse_response, static_request
from pqtun.protocol.keytree import NODES
from tests.keyserver.servers import a_server, the_tree
from tests.protocol.vectors import load

KNOWN = load("keyserver.json")
ROOT = Path(__file__).parent.parent.parent
KINDS = [static_request(node) for node in [(0, 0), (1, 0), (2, 25), (3, 0), (3, 909)]] + [ephemeral_request()]


@pytest.mark.parametrize("known", KNOWN["static"])
def test_static_known_answers(server, known):
    assert server.answer(bytes.fromhex(known["request"])).hex() == known["response"]
    assert server.counters == {"static": 1}


def test_ephemeral_known_answer(tree):
    known = KNOWN["ephemeral"]
    public = bytes.fromhex(known["sntrup761_pk"]), bytes.fromhex(known["x25519_pk"])
    ring = EphemeralRing(lambda: 1.8e9, lambda: 0.0, lambda: (public[0], bytes(1763), public[1], bytes(32)))
    server = KeyServer(tree, ring)
    assert server.answer(bytes.fromhex(known["request"])).hex() == known["response"]
    assert server.counters == {"ephemeral": 1}


def test_every_node_is_served_at_the_length_of_the_request(server, tree):
    for node in NODES:
        request = static_request(node)
        response = server.answer(request)
        assert len(response) == len(request)
        assert parse_response(response).node == node
        assert parse_response(response).data == tree.node(node)


def test_the_ephemeral_answer_follows_the_ring(tree):
    wall = [1_800_000_000.0]
    ring = EphemeralRing(lambda: wall[0], lambda: wall[0] - 1.7e9)
    server = KeyServer(tree, ring)
    first = server.answer(ephemeral_request())
    assert len(first) == len(ephemeral_request())
    assert server.answer(ephemeral_request()) is first
    wall[0] += 30
    second = server.answer(ephemeral_request())
    assert second != first
    assert parse_response(second).x25519_pk == ring.current().x25519_pk


@pytest.mark.parametrize("request_", KINDS)
def test_no_other_size_is_answered(server, request_):
    for size in range(len(request_)):
        assert server.answer(request_[:size]) is None
    for extra in range(1, 900):
        assert server.answer(request_ + bytes(extra)) is None
    assert server.answer(request_) is not None
    assert sum(server.counters.values()) == len(request_) + 899 + 1
    assert sum(value for name, value in server.counters.items() if name.startswith("dropped_")) == len(request_) + 899


@pytest.mark.parametrize("request_", KINDS)
def test_each_changed_byte_makes_another_request_or_none(server, request_):
    """A bit of the node's number leads to another node, of the same length; any other bit to no answer."""
    for place in range(len(request_)):
        changed = request_[:place] + bytes([request_[place] ^ 1]) + request_[place + 1 :]
        response = server.answer(changed)
        if response is not None:
            assert place in (4, 7, 8)
            assert len(response) == len(changed)
            assert response != server.answer(request_)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "type"),
        (b"\xf1\x00", "type"),
        (b"\x01\x00" + bytes(1297), "type"),
        (static_request((1, 0))[:-1] + b"\x01", "padding"),
        (static_request((1, 0))[:-1], "length"),
        (static_request((1, 0)) + b"\0", "length"),
        (static_request((1, 0))[:10], "shape"),
        (b"\xf0\x00" + bytes(1000), "shape"),
        (ephemeral_request()[:-1], "shape"),
        (b"\xf0\x00\x00\x01\x04\x00\x02\x00\x00\x00\x20" + bytes(32), "node"),
        (b"\xf0\x00\x00\x01\x03\x00\x02\x8e\x03\x04\x80" + bytes(1152), "node"),
        (b"\xf0\x00\x00\x01\x03\x00\x02\x00\x00\x00\x20" + bytes(32), "length"),
    ],
)
def test_drops_are_counted_by_reason(server, datagram, reason):
    assert server.answer(datagram) is None
    assert server.counters == {f"dropped_{reason}": 1}


ANSWERING = a_server()


@given(st.one_of(st.binary(max_size=1400), st.binary(max_size=1300).map(lambda data: b"\xf0\x00\x00\x01" + data)))
def test_random_datagrams_are_never_answered_with_more(datagram):
    response = ANSWERING.answer(datagram)
    assert response is None or len(response) == len(datagram)


@given(st.integers(0, 255), st.integers(0, 65535), st.integers(0, 1300))
def test_any_node_number_and_length(depth, position, length):
    datagram = b"\xf0\x00\x00\x01%c\x00\x02%b%b" % (depth, position.to_bytes(2, "little"), length.to_bytes(2, "big"))
    response = ANSWERING.answer(datagram + bytes(length))
    known = (depth, position) in NODES and len(the_tree().node((depth, position))) == length
    assert (response is not None) == known


def test_one_too_many_is_counted_and_not_expected(tree):
    expected = []
    ring = EphemeralRing(lambda: 1.8e9, lambda: 0.0)
    server = KeyServer(tree, ring, Admission(), expected.append)
    request = static_request((1, 0))
    for _ in range(int(PREFIX_BURST)):
        assert server.answer(request, "192.0.2.1", 1000.0) is not None
    assert server.answer(request, "192.0.2.2", 1000.0) is None
    assert server.answer(ephemeral_request(), "192.0.2.2", 1000.0) is None
    assert server.answer(b"", "192.0.2.2", 1000.0) is None
    assert server.answer(ephemeral_request(), "2001:db8::1", 1000.0) is not None
    assert expected == ["2001:db8::1"]
    assert server.counters == {"static": PREFIX_BURST, "ephemeral": 1, "dropped_prefix_limit": 2, "dropped_type": 1}


# --- over real sockets, on the loopback of a network namespace that ends with its process ---


def test_the_receive_buffer_is_left_alone(server):
    """The privileged parent makes a larger one than the worker might ask for."""

    async def run(sock):
        service = KeyServerSocket(server, [sock])
        service.start()
        size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        service.close()
        return size

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
    given = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert asyncio.run(run(sock)) == given


@pytest.fixture(scope="module")
def loopback():
    script = 'ip link set lo up && exec "$0" -m tests.keyserver.loopback'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, sys.executable],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.root
@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.2", "::1", "127.0.0.3 on a dual-stack socket", "::1 on a dual-stack socket"]
)
def test_answers_leave_from_the_address_that_was_asked(loopback, address):
    assert loopback["asked"][address] is True


@pytest.mark.root
def test_an_ipv4_source_is_named_alike_by_both_kinds_of_socket(loopback):
    assert loopback["sources"] == {"IPv4": "127.0.0.1", "IPv6": "::1", "dual": ["127.0.0.1", "::1"]}


@pytest.mark.root
def test_a_key_and_an_ephemeral_key_over_udp(loopback):
    assert loopback["key"] is True
    assert loopback["ephemeral"] is True
    assert loopback["progress"] == sorted(loopback["progress"])
    assert loopback["progress"][-1] == len(NODES)


@pytest.mark.root
def test_flood_of_random_datagrams(loopback):
    """12,000 random datagrams: none answered, each counted, memory flat, the next request answered."""
    flood = loopback["flood"]
    assert flood["answers"] == 0
    assert flood["dropped"] == 12_000
    assert flood["memory_growth"] < 100_000
    assert flood["answers_afterwards"] is True


@pytest.mark.root
def test_the_event_loop_is_not_starved(loopback):
    """While requests wait without end in the socket, another task still gets its turn."""
    assert loopback["turns_under_load"] >= 10


@pytest.mark.root
def test_refused_over_udp(loopback):
    assert loopback["refused"] == "network"
    assert loopback["refused_ephemeral"] == "network"


@pytest.mark.root
def test_nothing_is_left_after_close(loopback):
    assert loopback["closed"] is True
