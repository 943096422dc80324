"""The interception of lookups, with real resolvers and programs; the proxy's worker has no privileges."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.net.lab import (
    CLIENT4,
    RESOLVER4,
    RESOLVER6,
    SERVER4,
    SERVER6,
    Lab,
    Process,
    Topology,
    standard_topology,
    wait_until,
)

ROOT = Path(__file__).resolve().parents[2]
UID = "4242"
PQ1 = "pq1gr52jugjdngjhzf5fplbm33qrzrqd08dquvn36yqxd2hbdk4gs10.example.net"
REAL, REAL6 = "198.51.100.5", "2001:db8:2::5"
FAMILIES = pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6])
TRANSPORTS = pytest.mark.parametrize("transport", ["+notcp", "+tcp"])


@dataclass
class Net:
    lab: Lab
    names: Topology

    def dnsmasq(self, ns: str, *options: str) -> None:
        common = ("--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-hosts")
        process = self.lab.spawn(ns, "dnsmasq", *common, "--no-resolv", "--cache-size=0", "--local-ttl=300", *options)
        self.lab.wait_listening(process, ns, 53, "udp")
        self.lab.wait_listening(process, ns, 53)

    def host(self, *arguments: str) -> Process:
        argv = (sys.executable, "-m", "tests.net.dns_host", UID, *arguments)
        return self.lab.spawn(self.names.client, *argv, env={"PYTHONPATH": str(ROOT)})

    def dig(self, *arguments: str, prefix: tuple[str, ...] = ()) -> list[str]:
        argv = (*prefix, "dig", "+noall", "+answer", "+time=2", "+tries=1", *arguments)
        output = self.lab.run(self.names.client, *argv, check=False).stdout
        return [" ".join(line.split()) for line in output.splitlines()]

    def python(self, text: str) -> str:
        """Run a program in the client's namespace and return what it prints."""
        code = "import socket, struct\n" + textwrap.dedent(text)
        return self.lab.run(self.names.client, sys.executable, "-c", code, timeout=60).stdout.strip()

    def ruleset(self) -> str:
        return self.lab.run(self.names.client, "nft", "list", "ruleset").stdout


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with Lab() as lab:
        made = Net(lab, standard_topology(lab))
        made.dnsmasq(
            made.names.resolver,
            f"--cname=www.example.net,{PQ1}",
            f"--host-record={PQ1},{REAL},{REAL6}",
            "--address=/plain.example.net/203.0.113.9",
            *(f"--txt-record=large.example.net,{i:03}{'x' * 200}" for i in range(10)),
        )
        made.dnsmasq(made.names.server, "--address=/plain.example.net/203.0.113.77")
        for address in (RESOLVER6, SERVER6):  # for two seconds the link-local addresses of new devices do not work
            ping = ("ping", "-q", "-c1", "-W1", address)
            wait_until(lambda ping=ping: lab.run(made.names.client, *ping, check=False).returncode == 0, 10, address)
        yield made


@pytest.fixture
def host(net: Net) -> Iterator[Process]:
    process = net.host("rewrite")
    process.wait_output("redirected", 20)
    process.wait_output("ready", 20)
    yield process
    process.kill()
    wait_until(lambda: "pqtun" not in net.ruleset(), 5, "the end of the table")


def end(process: Process) -> dict[str, int]:
    """End the proxy and return its counters."""
    assert process.stop() == 0
    status = json.loads(process.output().splitlines()[-1])
    assert status["outstanding"] == [0, 0]
    return dict(status["counters"])


@FAMILIES
@TRANSPORTS
def test_a_pq1_name_gets_a_private_address(net: Net, host: Process, resolver: str, transport: str) -> None:
    chain = f"www.example.net. 300 IN CNAME {PQ1}."
    private = f"{PQ1}. 5 IN A 10.43.0.2"
    assert net.dig(f"@{resolver}", transport, "www.example.net") == [chain, private]
    assert net.dig(f"@{resolver}", transport, "www.example.net", "AAAA") == [chain]
    assert net.dig(f"@{resolver}", transport, PQ1) == [private]
    assert f"asked {PQ1} {REAL} from {resolver}" in host.output()
    assert end(host)["answers_rewritten"] == 3
    assert net.dig(f"@{resolver}", transport, PQ1) == [f"{PQ1}. 300 IN A {REAL}"]


@TRANSPORTS
def test_the_resolver_that_was_asked_answers(net: Net, host: Process, transport: str) -> None:
    for resolver, expected in (
        (RESOLVER4, "203.0.113.9"),
        (SERVER4, "203.0.113.77"),
        (RESOLVER6, "203.0.113.9"),
        (SERVER6, "203.0.113.77"),
    ):
        assert net.dig(f"@{resolver}", transport, "plain.example.net", "+short") == [expected]
    assert end(host)["answers_passed"] == 4


def test_programs_that_use_the_system_resolver(net: Net, host: Process) -> None:
    text = 'print(sorted({a[4][0] for a in socket.getaddrinfo("www.example.net", 80)}))'
    assert net.python(text) == "['10.43.0.2']"


def test_truncation_and_the_second_try_by_tcp(net: Net, host: Process) -> None:
    lines = net.dig(f"@{RESOLVER4}", "large.example.net", "TXT", "+bufsize=512", "+short")
    assert len(lines) == 10
    counters = end(host)
    assert (counters["udp_queries"], counters["tcp_connections"]) == (1, 1)


def test_the_workers_own_lookups_are_not_redirected(net: Net, host: Process) -> None:
    worker = ("setpriv", "--reuid", UID, "--regid", UID, "--clear-groups")
    for transport in ("+notcp", "+tcp"):
        assert net.dig(f"@{RESOLVER4}", transport, PQ1, prefix=worker) == [f"{PQ1}. 300 IN A {REAL}"]
    assert net.dig(f"@{RESOLVER4}", PQ1) == [f"{PQ1}. 5 IN A 10.43.0.2"]
    assert end(host) == {"udp_queries": 1, "answers_rewritten": 1}


def test_the_worker_has_no_privileges(net: Net, host: Process) -> None:
    found = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields["Uid"].split()[0] == UID:
            found.add((fields["CapEff"], fields["CapPrm"], fields["Groups"].strip()))
    assert found == {("0" * 16, "0" * 16, "")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_table_ends_with_its_owner(net: Net, host: Process, number: signal.Signals) -> None:
    assert "flags owner" in net.ruleset()
    host.signal(number)
    wait_until(lambda: not host.running, 5, "the parent's end")
    assert net.ruleset() == ""
    assert net.dig(f"@{RESOLVER4}", PQ1) == [f"{PQ1}. 300 IN A {REAL}"]


def test_a_second_client_says_that_one_runs(net: Net, host: Process) -> None:
    second = net.host()
    assert second.wait(20) == 1
    message = second.output().splitlines()[-1]
    assert message.startswith("error: the nftables table 'inet pqtun_client' exists: another pqtun client runs here")
    assert net.dig(f"@{RESOLVER4}", PQ1) == [f"{PQ1}. 5 IN A 10.43.0.2"]


def test_without_root_the_error_says_so(net: Net) -> None:
    argv = ("setpriv", "--reuid", UID, "--clear-groups", sys.executable, "-c")
    for call, error in (
        ("open_sockets()", "watching for DNS lookups needs root (CAP_NET_ADMIN): start the client as root"),
        ("Redirect(1, 1)", "redirecting DNS lookups needs root (CAP_NET_ADMIN): start the client as root"),
    ):
        code = f"from pqtun.dns.redirect import *\ntry: {call}\nexcept UserError as error: print(error)"
        done = net.lab.run(net.names.client, *argv, code, env={"PYTHONPATH": str(ROOT)})
        assert done.stdout.strip() == error


def test_no_source_port_goes_around_the_proxy(net: Net, host: Process) -> None:
    # All of the worker's lookups and all of the programs' have to share 200 ports.
    net.lab.run(net.names.client, "sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40199")
    try:
        answers = net.python(
            f"""
            question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0)
            question += b"".join(bytes((len(l),)) + l.encode() for l in "{PQ1}".split(".")) + b"\\0\\0\\1\\0\\1"
            found = {{}}
            for _ in range(1000):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    sock.sendto(question, ("{RESOLVER4}", 53))
                    address = socket.inet_ntoa(sock.recv(4096)[-4:])
                    found[address] = found.get(address, 0) + 1
            print(found)
            """
        )
    finally:
        net.lab.run(net.names.client, "sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999")
    assert answers == "{'10.43.0.2': 1000}"
    assert end(host) == {"udp_queries": 1000, "answers_rewritten": 1000}


def test_another_programs_nat_does_not_lead_around_the_proxy(net: Net, host: Process) -> None:
    # As container software does for a DNS server in a container; its table is there later than ours.
    table = (
        "table ip lab_nat {\nchain output {\ntype nat hook output priority -100\n"
        f"ip daddr {CLIENT4} udp dport 53 dnat to {RESOLVER4}\n}}\n}}\n"
    )
    net.lab.run(net.names.client, "nft", "-f", "-", stdin=table.encode())
    try:
        assert net.dig(f"@{CLIENT4}", PQ1) == [f"{PQ1}. 5 IN A 10.43.0.2"]
    finally:
        net.lab.run(net.names.client, "nft", "delete table ip lab_nat")
    assert end(host)["answers_rewritten"] == 1


def test_without_conntrack_events_the_error_says_so(net: Net) -> None:
    net.lab.run(net.names.client, "sysctl", "-qw", "net.netfilter.nf_conntrack_events=0")
    try:
        host = net.host()
        assert host.wait(20) == 1
    finally:
        net.lab.run(net.names.client, "sysctl", "-qw", "net.netfilter.nf_conntrack_events=2")
    assert "run `sysctl net.netfilter.nf_conntrack_events=2`" in host.output()
    assert net.ruleset() == ""


def test_a_socket_that_is_kept_follows_start_and_stop(net: Net) -> None:
    program = net.lab.spawn(
        net.names.client,
        sys.executable,
        "-uc",
        textwrap.dedent(
            f"""
            import signal, socket, struct
            question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0)
            question += b"".join(bytes((len(l),)) + l.encode() for l in "{PQ1}".split(".")) + b"\\0\\0\\1\\0\\1"
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(("{RESOLVER4}", 53))
                while True:
                    sock.send(question)
                    print("got", socket.inet_ntoa(sock.recv(4096)[-4:]))
                    signal.sigwait([signal.SIGUSR1])
            """
        ),
    )
    program.wait_output(f"got {REAL}\n", 10)
    for _ in range(2):
        host = net.host("rewrite")
        host.wait_output("redirected", 20)
        program.signal(signal.SIGUSR1)
        wait_until(lambda: program.output().endswith("got 10.43.0.2\n"), 10, "a private address")
        end(host)
        program.signal(signal.SIGUSR1)
        wait_until(lambda: program.output().endswith(f"got {REAL}\n"), 10, "the real address")
    program.kill()


def test_link_local_resolvers_are_asked_directly(net: Net, host: Process) -> None:
    address = "fe80::53"
    net.lab.run(net.names.router, "ip", "addr", "add", f"{address}/64", "dev", "client0", "nodad")
    show = ("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link", "-tentative")
    wait_until(lambda: net.lab.run(net.names.client, *show).stdout, 10, "a link-local address")
    resolver = net.lab.spawn(
        net.names.router,
        sys.executable,
        "-uc",
        textwrap.dedent(
            f"""
            import socket
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            sock.bind(("{address}", 53, 0, socket.if_nametoindex("client0")))
            while True:
                query, source = sock.recvfrom(4096)
                question = query[12 : query.index(0, 12) + 5]
                head = query[:2] + bytes.fromhex("818000010001") + bytes(4)
                sock.sendto(head + question + bytes.fromhex("c00c000100010000012c0004c6336405"), source)
            """
        ),
    )
    net.lab.wait_listening(resolver, net.names.router, 53, "udp")
    assert net.dig(f"@{address}%eth0", PQ1) == [f"{PQ1}. 300 IN A {REAL}"]
    assert end(host) == {}


def test_absent_resolvers_are_reported_at_once(net: Net, host: Process) -> None:
    lines = net.dig(f"@{CLIENT4}", PQ1, "+comments", "+time=30")
    assert "status: SERVFAIL" in lines[1]
    assert end(host)["udp_unreachable"] == 1


def test_queries_to_the_proxy_itself_are_dropped(net: Net, host: Process) -> None:
    port = next(line.split()[1] for line in host.output().splitlines() if line.startswith("ready"))
    argv = ("@127.0.0.1", "-p", port, PQ1)
    assert all(not line.startswith(PQ1) for line in net.dig(*argv, "+time=1"))
    assert all(not line.startswith(PQ1) for line in net.dig(*argv, "+time=1", "+tcp"))
    counters = end(host)
    assert counters["udp_unknown_origin"] == 1
    assert counters["tcp_unknown_origin"] >= 1
    assert "answers_passed" not in counters


def test_datagrams_to_the_proxys_port_from_outside_make_no_events(net: Net, host: Process) -> None:
    port = next(line.split()[1] for line in host.output().splitlines() if line.startswith("ready"))
    code = f"""
        import socket
        for number in range(5000):  # each a flow of its own; some 3,000 events fit in the worker's queue
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("", 20000 + number))
                sock.sendto(b"x", ("{CLIENT4}", {port}))
        """
    net.lab.run(net.names.router, sys.executable, "-c", textwrap.dedent(code))
    assert net.dig(f"@{RESOLVER4}", PQ1) == [f"{PQ1}. 5 IN A 10.43.0.2"]
    assert end(host) == {"udp_queries": 1, "answers_rewritten": 1}


def test_random_datagrams_break_nothing(net: Net, host: Process) -> None:
    net.python(
        f"""
        import random
        chance = random.Random(7)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for number in range(10_000):
            sock.sendto(chance.randbytes(chance.randrange(200)), ("{RESOLVER4}", 53))
        """
    )
    assert net.dig(f"@{RESOLVER4}", PQ1, "+tries=3") == [f"{PQ1}. 5 IN A 10.43.0.2"]
    counters = end(host)
    assert counters["udp_bad_query"] > 1000
