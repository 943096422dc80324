"""The lab itself: what the tests of the tunnel lean on."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.capture import Capture
from tests.net.lab import (
    CLIENT4,
    RESOLVER4,
    RESOLVER6,
    SERVER4,
    SERVER6,
    Lab,
    LabError,
    Topology,
    standard_topology,
    wait_until,
)
from tests.net.ssh import SshServer

ROOT = Path(__file__).resolve().parents[2]
ZONE = f"""
$TTL 60
example.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60
www.example.net. IN CNAME web.example.net.
web.example.net. IN A {SERVER4}
web.example.net. IN AAAA {SERVER6}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def net(lab: Lab) -> Topology:
    return standard_topology(lab)


def names() -> str:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return listed.stdout


def test_packets_cross_the_router(lab: Lab, net: Topology) -> None:
    for address in (SERVER4, SERVER6, RESOLVER4, RESOLVER6):
        lab.run(net.client, "ping", "-c1", "-W5", address)


def test_dns_server(lab: Lab, net: Topology) -> None:
    server = lab.dns_server(net.resolver, ZONE)
    dig = ["dig", "+short", "+tries=1"]
    for how in ([], ["+tcp"], [f"@{RESOLVER6}"], [f"@{RESOLVER6}", "+tcp"]):
        said = lab.run(net.client, *dig, *how, "www.Example.net", "A").stdout.split()
        assert said == ["web.example.net.", SERVER4]
    assert [(q[1], q[2]) for q in server.queries()] == [("A", "udp"), ("A", "tcp")] * 2
    assert {q[0] for q in server.queries()} == {"www.example.net"}
    assert server.queries()[0][3] == CLIENT4
    status = lab.run(net.client, "dig", "nothing.example.net").stdout
    assert "status: NXDOMAIN" in status
    status = lab.run(net.client, "dig", "web.example.net", "TXT").stdout
    assert "status: NOERROR" in status
    assert "ANSWER: 0" in status
    server.set_zone(ZONE.replace(SERVER4, CLIENT4))
    assert lab.run(net.client, *dig, "web.example.net").stdout.split() == [CLIENT4]
    server.set_zone(ZONE)


def test_web_server_and_private_resolver(lab: Lab, net: Topology) -> None:
    dns = lab.dns_server(net.server, ZONE)
    lab.set_nameservers(net.client, SERVER4)
    files = lab.directory / "files"
    files.mkdir()
    content = os.urandom(3_000_000)
    (files / "blob").write_bytes(content)
    web = lab.web_server(net.server, files)
    got = lab.directory / "got"
    for family in ("-4", "-6"):
        lab.run(net.client, "curl", "-sf", family, "-o", str(got), "http://www.example.net/blob")
        assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert f"{CLIENT4} /blob" in web.output()
    up = ["--data-binary", f"@{got}", "http://www.example.net/"]
    assert lab.run(net.client, "curl", "-sf", *up).stdout == hashlib.sha256(content).hexdigest()
    assert dns.queries()
    lab.set_nameservers(net.client, RESOLVER4)


def test_ssh(lab: Lab, net: Topology) -> None:
    server = SshServer(lab, net.server)
    said = lab.run(net.client, *server.client_argv(SERVER4, "echo $SSH_CONNECTION")).stdout
    assert said.split()[0] == CLIENT4


def test_iperf3_and_rate(lab: Lab, net: Topology) -> None:
    assert lab.iperf3(net.client, net.server, SERVER4, seconds=1) > 10e6
    lab.rate(net.router, "client0", "2mbit")
    try:
        slow = lab.iperf3(net.client, net.server, SERVER4, seconds=2, reverse=True)
    finally:
        lab.run(net.router, "tc", "qdisc", "del", "dev", "client0", "root")
    assert 0.5e6 < slow < 3e6


def test_loss(lab: Lab, net: Topology) -> None:
    lab.lose(net.router, 100, match="icmp type echo-request")
    try:
        with pytest.raises(LabError, match="100% packet loss"):
            lab.run(net.client, "ping", "-c1", "-W1", SERVER4)
    finally:
        lab.stop_losing(net.router)
    lab.run(net.client, "ping", "-c1", "-W5", SERVER4)


def test_capture(lab: Lab, net: Topology) -> None:
    capture = Capture(lab, net.router, "server0", "icmp")
    lab.run(net.client, "ping", "-c2", "-i", "0.1", "-p", "feedbead", SERVER4)
    wait_until(lambda: len(capture.packets()) == 4, 5, "four packets")
    capture.stop()
    packets = capture.packets()
    assert [(p.source, p.destination) for p in packets[:2]] == [
        (CLIENT4, SERVER4),
        (SERVER4, CLIENT4),
    ]
    assert all(bytes.fromhex("feedbeadfeedbead") in p.payload for p in packets)


def test_failure_says_what_and_why(lab: Lab, net: Topology) -> None:
    with pytest.raises(LabError, match=r"(?s)ended with 3.*reason"):
        lab.run(net.client, "sh", "-c", "echo reason >&2; exit 3")
    with pytest.raises(LabError, match=r"(?s)more than 0\.2 s.*begun"):
        lab.run(net.client, "sh", "-c", "echo begun; sleep 60", timeout=0.2)
    process = lab.spawn(net.client, "sh", "-c", "echo broken; exit 4")
    with pytest.raises(LabError, match=r"(?s)ended: 4.*broken"):
        lab.wait_listening(process, net.client, 9, timeout=10)


CHILD = """
    import os, signal, sys
    from tests.net.lab import Lab
    lab = Lab()
    ns = lab.namespace("x")
    lab.spawn(ns, "sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000")
    print(ns, lab.directory, flush=True)
    {end}
"""


@pytest.mark.parametrize(
    "end",
    ["sys.exit(0)", "raise ValueError", "raise KeyboardInterrupt", "signal.pause()"],
    ids=["exit", "exception", "interrupt", "SIGTERM"],
)
def test_nothing_left_on_any_way_out(end: str) -> None:
    ns, directory = _child(end, signal.SIGTERM if "pause" in end else None)
    assert ns not in names()
    assert not directory.exists()
    assert not (Path("/etc/netns") / ns).exists()


def test_stale_namespaces_are_removed() -> None:
    ns, directory = _child("signal.pause()", signal.SIGKILL)
    assert ns in names()
    with Lab():
        assert ns not in names()
    assert not directory.exists()
    assert not (Path("/etc/netns") / ns).exists()


def _child(end: str, number: signal.Signals | None) -> tuple[str, Path]:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD).format(end=end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as child:
        assert child.stdout is not None
        ns, directory = child.stdout.readline().split()
        if number is not None:
            child.send_signal(number)
        child.wait(20)
    return ns, Path(directory)
