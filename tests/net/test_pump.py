"""Two Python engines in two processes, on real TUN devices in two namespaces; the keys are fixed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.net.capture import Capture
from tests.net.lab import Lab, wait_until
from tests.net.process import Process
from tests.net.pump_host import CLIENT_OWN, CLIENT_PEER, DEVICE, NOBODY, PORT, SERVER_OWN, SERVER_PEER

ROOT = Path(__file__).resolve().parents[2]
CLIENT4, SERVER4, INSIDE4, VICTIM4 = "192.0.2.10", "192.0.2.20", "198.51.100.1", "198.51.100.66"


class Net:
    """client -- server -- victim; the server would forward, if the pump let it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client, self.server, self.victim = (lab.namespace(name) for name in ("client", "server", "victim"))
        lab.link(((self.client, "eth0"), (self.server, "eth0")), ([f"{CLIENT4}/24"], [f"{SERVER4}/24"]))
        lab.link(((self.server, "eth1"), (self.victim, "eth0")), ([f"{INSIDE4}/24"], [f"{VICTIM4}/24"]))
        lab.route(self.victim, "default", INSIDE4)
        lab.forward(self.server)

    def host(self, ns: str, role: str, peer: str, mtu: int = 1396) -> Process:
        argv = (sys.executable, "-m", "tests.net.pump_host", role, peer, "--mtu", str(mtu))
        process = self.lab.spawn(ns, *argv, env={"PYTHONPATH": str(ROOT)})
        process.wait_output("ready", 20)
        return process

    def python(self, ns: str, text: str, timeout: float = 20.0) -> str:
        """Run a program in a namespace and return what it prints."""
        code = "import errno, socket, struct\n" + textwrap.dedent(text)
        return self.lab.run(
            ns, sys.executable, "-c", code, timeout=timeout, env={"PYTHONPATH": str(ROOT)}
        ).stdout.strip()


def counters(process: Process) -> Any:
    """End a host and return its counters."""
    process.stop()
    return json.loads(process.output().splitlines()[-1])


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Lab() as lab:
        yield Net(lab)


@pytest.fixture
def server(net: Net) -> Iterator[Process]:
    process = net.host(net.server, "server", CLIENT4)
    yield process
    process.stop()


@pytest.fixture
def client(net: Net, server: Process) -> Iterator[Process]:
    process = net.host(net.client, "client", SERVER4)
    yield process
    process.stop()


def test_ping_both_ways(net: Net, client: Process) -> None:
    net.lab.run(net.client, "ping", "-c3", "-i0.05", "-W5", CLIENT_PEER)
    net.lab.run(net.server, "ping", "-c3", "-i0.05", "-W5", SERVER_PEER)


def test_tcp_carries_a_file(net: Net, client: Process, server: Process, tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(body)
    tmp_path.chmod(0o755)
    web = net.lab.web_server(net.server, tmp_path)
    try:
        net.lab.run(net.client, "curl", "-sSf", "-o", str(tmp_path / "got"), f"http://{CLIENT_PEER}/file")
    finally:
        web.kill()
    assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(body).digest()
    assert SERVER_PEER in web.output()  # the server sees the address that stands for the client
    at_client, at_server = counters(client), counters(server)
    (tunnel,) = at_client["tunnels"]
    assert tunnel["bytes_received"] > len(body)
    assert tunnel["drops"] == at_server["tunnels"][0]["drops"] == {}


def test_udp_in_inner_fragments(net: Net, client: Process) -> None:
    echo = net.lab.spawn(
        net.server,
        sys.executable,
        "-c",
        "import socket; s = socket.socket(2, 2); s.bind(('', 7)); print('up', flush=True)\n"
        "while True: s.sendto(*s.recvfrom(65535))",
    )
    try:
        echo.wait_output("up", 10)
        sizes = "(0, 1, 1368, 1369, 2000, 8001, 30000)"
        got = net.python(
            net.client,
            f"""
            s = socket.socket(2, 2); s.settimeout(10); s.connect(({CLIENT_PEER!r}, 7))
            for size in {sizes}:
                body = bytes(i * 7 & 255 for i in range(size))
                s.send(body)
                assert s.recv(65535) == body, size
            print("all")
            """,
        )
    finally:
        echo.kill()
    assert got == "all"


def test_port_unreachable_reaches_the_program(net: Net, client: Process) -> None:
    got = net.python(
        net.client,
        f"""
        s = socket.socket(2, 2); s.settimeout(10); s.connect(({CLIENT_PEER!r}, 9)); s.send(b"x")
        try: s.recv(1)
        except OSError as e: print(errno.errorcode[e.errno])
        t = socket.socket(); t.settimeout(10)
        print(errno.errorcode[t.connect_ex(({CLIENT_PEER!r}, 9))])
        """,
    )
    assert got.split() == ["ECONNREFUSED", "ECONNREFUSED"]


def test_path_mtu_reaches_the_program(net: Net, client: Process) -> None:
    # An ICMP "fragmentation needed" from behind the server's end must set the client's path MTU to its peer.
    program = net.lab.spawn(
        net.server,
        sys.executable,
        "-c",
        textwrap.dedent(
            f"""
            import socket, struct
            from tests.pump import packets as p
            u = socket.socket(2, 2); u.bind(("", 77)); u.settimeout(15); print("bound", flush=True)
            body, (host, port) = u.recvfrom(2000)
            quote = p.ip(host, {SERVER_OWN!r}, p.UDP, p.udp(host, {SERVER_OWN!r}, body, sport=port, dport=77))
            raw = socket.socket(2, 3, 1)
            raw.sendto(p.icmp(3, 4, struct.pack("!HH", 0, 900) + quote[:200]), (host, 0))
            """
        ),
        env={"PYTHONPATH": str(ROOT)},
    )
    program.wait_output("bound", 10)
    got = net.python(
        net.client,
        f"""
        import time
        s = socket.socket(2, 2); s.connect(({CLIENT_PEER!r}, 77))
        s.setsockopt(0, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        s.send(b"x" * 1000)
        end = time.monotonic() + 10
        while s.getsockopt(0, 14) != 900 and time.monotonic() < end: time.sleep(0.01)
        print(s.getsockopt(0, 14))  # IP_MTU
        """,
    )
    assert got == "900"


def test_no_tunnel_means_host_unreachable_at_once(net: Net, client: Process) -> None:
    # Without the ICMP message, connect would try for two minutes; the program here gets 10 seconds.
    got = net.python(
        net.client,
        f"""
        s = socket.socket()
        try: s.connect(({NOBODY!r}, 80))
        except OSError as e: print(errno.errorcode[e.errno])
        """,
        timeout=10.0,
    )
    assert got == "EHOSTUNREACH"
    assert f"Wanted {NOBODY}" in client.output()


def test_an_attacker_reaches_this_hosts_own_addresses_only(net: Net, server: Process) -> None:
    capture = Capture(net.lab, net.victim, "eth0", "ip")
    got = net.python(
        net.client,
        f"""
        import time
        from pqtun.protocol.tunnel import Tunnel
        from tests.pump import packets as p
        from tests.pump.rig import session
        mine = session(1)[0]
        tunnel = Tunnel(mine.tid, mine.send_root, mine.recv_root, 0.0)
        s = socket.socket(2, 2); s.settimeout(10); s.bind(("", {PORT}))
        def send(packet): s.sendto(tunnel.seal(packet, 0.0), ({SERVER4!r}, {PORT}))
        for target in ({VICTIM4!r}, "198.51.100.255", {INSIDE4!r}, "255.255.255.255", "10.42.0.77"):
            for source in ({CLIENT_OWN!r}, {VICTIM4!r}, {SERVER_OWN!r}, "127.0.0.1"):
                send(p.udp_packet(source, target, b"attack"))
                send(p.ip(source, target, p.UDP, p.udp(source, target, b"attack"),
                          options=bytes([131, 7, 4, *map(int, {VICTIM4!r}.split(".")), 0])))
                for part in p.fragments(p.udp_packet(source, target, b"attack" * 20), 32): send(part)
        # An echo asked of the victim is answered by the server itself, all before it having been handled.
        send(p.ip({CLIENT_OWN!r}, {VICTIM4!r}, p.ICMP, p.icmp(8, 0, b"\\0\\1\\0\\1last")))
        while True:
            packet = tunnel.open(s.recv(65535), 0.0)
            if packet[-4:] == b"last": break
        print(packet[20], socket.inet_ntoa(packet[12:16]))
        """,
    )
    assert got == f"0 {SERVER_OWN}"
    net.lab.run(net.server, "ping", "-c1", "-W5", VICTIM4)  # what the wire to the victim shows when it is used
    wait_until(lambda: any(x.protocol == 1 for x in capture.packets()), 10, "the ping in the capture")
    capture.stop()
    assert {x.protocol for x in capture.packets()} == {1}
    assert all(b"attack" not in x.frame for x in capture.packets())
    (tunnel,) = counters(server)["tunnels"]
    assert tunnel["drops"] == {"inner_source_route": 20}


def test_a_device_that_is_down_or_gone(net: Net, client: Process, server: Process) -> None:
    net.lab.run(net.client, "ip", "link", "set", DEVICE, "down")
    net.lab.run(net.server, "ping", "-c1", "-W1", SERVER_PEER, check=False)
    net.lab.run(net.client, "ip", "link", "set", DEVICE, "up")
    net.lab.run(net.client, "ping", "-c1", "-W5", CLIENT_PEER)
    net.lab.run(net.client, "ip", "link", "delete", DEVICE)
    client.wait_output("Failed", 10)
    ended = counters(client)
    assert client.output().count("Failed") == 1
    assert ended["tunnels"][0]["drops"] == {"tun_write_eio": 1}


def test_open_tun(net: Net) -> None:
    got = net.python(
        net.victim,
        """
        import os, subprocess
        from pqtun.protocol.errors import UserError
        from pqtun.pump.tun import open_tun
        def attempt(name):
            try: (fd,) = open_tun(name)
            except UserError as e: return str(e)
            os.close(fd)
            return "made"
        (first,) = open_tun("pq0")
        assert not os.get_inheritable(first) and not os.get_blocking(first)
        print(attempt("pq0"))
        print(attempt("lo"))
        os.close(first)
        names = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
        print("pq0" in names, attempt("pq0"))
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        print(attempt("pq0"))
        """,
    ).splitlines()
    assert "the interface pq0 exists already" in got[0]
    assert "the interface lo exists already" in got[1]
    assert got[2] == "False made"
    assert "run as root" in got[3]
