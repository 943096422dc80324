"""A bad wire in a lab, and a NAT: what the tests of a tunnel's life lean on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.net.capture import Capture
from tests.net.lab import CLIENT4, CLIENT6, SERVER4, SERVER6, Conditions, Lab, LabError, Topology, standard_topology
from tests.net.nat import Nat
from tests.net.process import wait_until
from tests.net.wire import Wire


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def net(lab: Lab) -> Topology:
    return standard_topology(lab, Conditions())


@pytest.fixture
def wire(net: Topology) -> Iterator[Wire]:
    assert net.wire is not None
    yield net.wire
    net.wire.set(**vars(Conditions()))


def pings(lab: Lab, net: Topology, address: str, *arguments: str) -> tuple[int, float]:
    """How many of the pings came back, and the fastest's time in milliseconds."""
    said = lab.run(net.client, "ping", "-q", "-W1", "-i0.01", *arguments, address, check=False).stdout
    found = re.search(r" = ([\d.]+)/", said)
    return int(said.partition(" received")[0].split()[-1]), float(found[1]) if found else 0.0


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
def test_delay_and_loss(lab: Lab, net: Topology, wire: Wire, address: str) -> None:
    wire.set(delay=0.1)
    received, fastest = pings(lab, net, address, "-c3")
    assert received == 3
    assert 200 <= fastest < 300
    wire.set(delay=0.0, loss=0.3)
    received, fastest = pings(lab, net, address, "-c100")
    assert 25 <= received <= 75  # half of them: 0.7 * 0.7
    assert fastest < 100


def test_more_than_a_test_needs_passes(lab: Lab, net: Topology, wire: Wire) -> None:
    before = wire.counters("b")["delivered"]
    assert lab.iperf3(net.client, net.server, SERVER4, seconds=1) > 50e6
    assert wire.counters("b")["delivered"] > before
    wire.set(rate=2e6)
    assert 1e6 < lab.iperf3(net.client, net.server, SERVER4, seconds=2) < 2e6


def test_a_cut_and_large_packets(lab: Lab, net: Topology, wire: Wire) -> None:
    wire.set(cut=True)
    assert pings(lab, net, SERVER4, "-c3") == (0, 0.0)
    wire.set(cut=False, largest=1000)
    assert pings(lab, net, SERVER4, "-c3", "-s", str(1000 - 28))[0] == 3
    assert pings(lab, net, SERVER4, "-c3", "-s", str(1001 - 28))[0] == 0
    assert wire.counters("b")["too_large"] == 3


def test_one_direction(lab: Lab, net: Topology, wire: Wire) -> None:
    before = wire.counters("a").get("burst", 0)
    wire.lose_next(5, "a")
    assert pings(lab, net, SERVER4, "-c8")[0] == 3
    assert wire.counters("a")["burst"] == before + 5
    assert "burst" not in wire.counters("b")


def test_wrong_bits_are_seen_and_duplicates_too(lab: Lab, net: Topology, wire: Wire) -> None:
    wire.set("b", corrupt=1.0)
    assert pings(lab, net, SERVER4, "-c5")[0] == 0  # the kernel finds the checksum wrong
    wire.set("b", corrupt=0.0, duplicate=1.0)
    said = lab.run(net.client, "ping", "-q", "-W1", "-i0.01", "-c5", SERVER4).stdout
    assert "+" in said
    assert "duplicates" in said


_TALK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    out.bind(("", 5000))
    for _ in range(2):
        out.sendto(sys.argv[1].encode(), (sys.argv[2], 5001))
"""


def test_a_nat_that_forgets(lab: Lab, net: Topology) -> None:
    nat = Nat(lab, net.router, "server0")
    capture = Capture(lab, net.router, "client0", "udp port 5001")
    hidden = Capture(lab, net.server, "eth0", "udp port 5001")
    for _ in range(3):
        lab.run(net.client, "python3", "-c", _TALK, "a", SERVER4)
        nat.change_ports()
    wait_until(lambda: len(hidden.packets()) == 6, 5, "six packets")
    wait_until(lambda: len(capture.packets()) == 6, 5, "six packets")
    for each in (capture, hidden):
        each.stop()
    assert {(p.source, p.source_port) for p in capture.packets()} == {(CLIENT4, 5000)}
    seen = [(p.source, p.source_port) for p in hidden.packets()]
    assert {source for source, _ in seen} == {SERVER4.rpartition(".")[0] + ".1"}
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    lab.run(net.router, "nft", "delete table ip lab_nat")


def test_another_address(lab: Lab, net: Topology) -> None:
    for old, new, target, bits in ((CLIENT4, "192.0.2.99", SERVER4, 24), (CLIENT6, "2001:db8:1::99", SERVER6, 64)):
        lab.readdress(net.client, "eth0", f"{old}/{bits}", f"{new}/{bits}")
        assert pings(lab, net, target, "-c1")[0] == 1
        with pytest.raises(LabError):
            lab.run(net.router, "ping", "-c1", "-W1", old)
        lab.readdress(net.client, "eth0", f"{new}/{bits}", f"{old}/{bits}")
        assert pings(lab, net, target, "-c1")[0] == 1
