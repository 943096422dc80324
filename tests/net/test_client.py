"""`pqtun client` with a real server: what programs on its host see."""

from __future__ import annotations

import ipaddress
import re
import textwrap
from collections.abc import Iterator

import pytest

from pqtun.protocol.base32 import encode
from pqtun.protocol.private6 import prefix
from tests.net.bad_key_server import PORT as BAD_PORT
from tests.net.capture import Capture
from tests.net.lab import CLIENT4, RESOLVER4, RESOLVER6, SERVER4, SERVER6, Lab
from tests.net.pqtun import CLOCK_SCALE, PqtunClient, PqtunServer, scaled
from tests.net.process import LabError, wait_until
from tests.net.ssh import SshServer
from tests.net.stage import (
    CLIENT_SUBNET,
    HOST,
    PAGE,
    PLAIN,
    SERVER_SUBNET,
    SOA,
    Stage,
    noise,
    python,
    resident,
    start_python,
    started,
    status,
    stopped,
)

PRIVATE6 = prefix(CLIENT_SUBNET)
DATAGRAMS = 10_000
NODES = 937 + 1  # static requests that a whole key takes, the root included
TTL = 5


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        made = Stage(lab)
        started(made.server)
        yield made


@pytest.fixture
def client(stage: Stage) -> Iterator[PqtunClient]:
    """The client, with the state that earlier tests left, so that the key is there already."""
    client = stage.client
    started(client)
    yield client
    assert client.process is not None
    assert client.process.running, client.process.output()
    assert stopped(client) == 0
    assert "Traceback" not in client.process.output()


@pytest.fixture
def fresh(stage: Stage) -> Iterator[PqtunClient]:
    """A client that remembers nothing, for the test to start."""
    client = stage.fresh_client()
    yield client
    assert client.process is not None
    if client.process.running:
        assert stopped(client) == 0
    assert "Traceback" not in client.process.output()


# -- lookups -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("how", [(), ("+tcp",), (f"@{RESOLVER6}",), (f"@{RESOLVER6}", "+tcp")])
def test_lookup_of_an_announced_name(stage: Stage, how: tuple[str, ...]) -> None:
    said = stage.lab.run(stage.net.client, "dig", "+noall", "+answer", *how, HOST).stdout
    alias, address = (line.split() for line in said.splitlines())
    assert (alias[0], alias[3], alias[4]) == (f"{HOST}.", "CNAME", f"{stage.label}.")
    assert (address[0], address[3]) == (f"{stage.label}.", "A")
    assert ipaddress.ip_address(address[4]) in CLIENT_SUBNET
    assert int(address[1]) <= TTL
    # The pq1 name itself, asked for directly, is the same peer.
    assert stage.dig(*how, stage.label) == [address[4]]


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("kind", ["AAAA", "HTTPS"])
def test_no_other_addresses_of_an_announced_name(stage: Stage, kind: str) -> None:
    there = stage.lab.run(stage.net.router, "dig", "+short", f"@{RESOLVER4}", HOST, kind).stdout
    assert SERVER6 in there
    said = stage.lab.run(stage.net.client, "dig", HOST, kind).stdout
    assert "status: NOERROR" in said
    first, *private = stage.dig(HOST, kind)
    assert first == f"{stage.label}."
    assert all(ipaddress.ip_address(address) in PRIVATE6 for address in private)
    assert len(private) <= (kind == "AAAA")  # once the server is known to take IPv6 inside
    assert SERVER6 not in said
    assert SERVER4 not in said
    assert stage.dig(stage.label, kind) == private


_ASK = f"""
    import socket, sys
    from dnslib import DNSRecord
    for kind in ("A", "AAAA", "HTTPS", "MX", "ANY"):
        for name in ("{PLAIN}", "nothing.example.net", "example.net"):
            question = DNSRecord.question(name, kind)
            question.header.id = 4711
            query = question.pack()
            for family, to in ((socket.AF_INET, "{RESOLVER4}"), (socket.AF_INET6, "{RESOLVER6}")):
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    sock.connect((to, 53))
                    sock.send(query)
                    print(name, kind, to, "udp", sock.recv(65535).hex())
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.settimeout(5)
                    sock.connect((to, 53))
                    sock.send(len(query).to_bytes(2, "big") + query)
                    stream = sock.makefile("rb")
                    print(name, kind, to, "tcp", stream.read(int.from_bytes(stream.read(2), "big")).hex())
"""


def test_answers_of_others_are_passed_byte_for_byte(stage: Stage, client: PqtunClient) -> None:
    direct = python(stage.lab, stage.net.router, _ASK)
    passed = python(stage.lab, stage.net.client, _ASK)
    assert len(direct.splitlines()) == 60
    assert passed == direct
    counters = status(client)["dns"]
    assert counters["answers_passed"] >= 60
    assert counters.get("answers_rewritten", 0) == 0


@pytest.mark.usefixtures("client")
def test_name_without_announcement_is_reached_directly(stage: Stage) -> None:
    for family, address, seen in (("A", SERVER4, CLIENT4), ("AAAA", SERVER6, "2001:db8:1::10")):
        assert stage.dig(PLAIN, family) == [address]
        argv = ["curl", "-sS", "--fail", "-6" if family == "AAAA" else "-4", f"http://{PLAIN}/page"]
        assert stage.lab.run(stage.net.client, *argv).stdout == PAGE
        assert stage.web.output().split()[-2] == seen


@pytest.mark.usefixtures("client")
def test_the_resolver_that_was_asked_answers(stage: Stage) -> None:
    """Another resolver, with other contents, and no resolver at all."""
    other = f"{SOA}plain.example.net. 60 IN A 203.0.113.99\nother.example.net. 60 IN CNAME {stage.label}.\n"
    dns = stage.lab.dns_server(stage.net.server, f"{other}{stage.label}. 60 IN A {SERVER4}\n")
    try:
        for address in (SERVER4, SERVER6):
            assert stage.dig(f"@{address}", PLAIN) == ["203.0.113.99"]
            said = stage.lab.run(stage.net.client, "dig", f"@{address}", "other.example.net").stdout
            assert f"SERVER: {address}#53" in said
            assert stage.private_address() in said
        assert stage.dig(PLAIN) == [SERVER4]
        asked = {(name, kind) for name, kind, _, client in dns.queries() if client == CLIENT4}
        assert asked == {(PLAIN, "A"), ("other.example.net", "A")}
    finally:
        dns.stop()
    assert "status: SERVFAIL" in stage.lab.run(stage.net.client, "dig", "+tries=1", f"@{SERVER4}", PLAIN).stdout
    with pytest.raises(LabError, match=r"end of file|refused|no servers could be reached"):
        stage.lab.run(stage.net.client, "dig", "+tcp", "+tries=1", f"@{SERVER4}", PLAIN)


# -- programs ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("client")
def test_programs_go_through_the_tunnel(stage: Stage) -> None:
    """curl, ssh and ping: nothing but UDP on the wire, and nothing of it readable."""
    secret = "what only both ends may know"
    (stage.files / "secret").write_text(secret)
    sshd = SshServer(stage.lab, stage.net.server)
    wire = Capture(stage.lab, stage.net.router, "server0", f"host {CLIENT4} or host 2001:db8:1::10")
    assert stage.curl().tunnelled
    assert stage.curl(path="/secret").text == secret
    argv = sshd.client_argv(HOST, f"echo '{secret}'; echo $SSH_CONNECTION")
    said, connection = stage.lab.run(stage.net.client, *argv).stdout.splitlines()
    assert said == secret
    address = ipaddress.ip_address(connection.split()[0])
    assert address in SERVER_SUBNET or address in prefix(SERVER_SUBNET)
    stage.lab.run(stage.net.client, "ping", "-c2", "-i0.1", "-W5", HOST)
    wire.stop()
    packets = wire.packets()
    assert wire.missed == 0
    assert len(packets) > 20
    assert {packet.protocol for packet in packets} == {17}
    assert all({42424, 42425} & {packet.source_port, packet.destination_port} for packet in packets)
    assert not any(secret.encode() in packet.frame for packet in packets)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_iperf3(stage: Stage, reverse: bool) -> None:
    assert stage.lab.iperf3(stage.net.client, stage.net.server, HOST, seconds=1, reverse=reverse) > 10e6


_CONNECT = """
    import errno, socket, sys, time
    kind = socket.SOCK_DGRAM if sys.argv[3] == "udp" else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(25)
    began = time.monotonic()
    try:
        sock.connect((sys.argv[1], int(sys.argv[2])))
        if sys.argv[3] == "udp":
            sock.send(b"anybody there?")
            sock.recv(100)
        end = sock.getpeername()[0]
    except TimeoutError:
        end = "timeout"
    except OSError as error:
        end = errno.errorcode[error.errno]
    print(end, time.monotonic() - began)
"""


def connect(stage: Stage, host: str, port: int, protocol: str) -> tuple[str, float]:
    """The address that a program has reached (and heard, for "udp"), else its fault; after how many seconds."""
    said = python(stage.lab, stage.net.client, _CONNECT, host, str(port), protocol, timeout=40)
    end, seconds = said.split()
    return end, float(seconds)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_closed_port_is_refused_through_the_tunnel(stage: Stage, protocol: str) -> None:
    stage.curl()
    fault, _ = connect(stage, HOST, 9, protocol)
    assert fault == "ECONNREFUSED"


@pytest.mark.usefixtures("client")
def test_address_that_nobody_was_given(stage: Stage) -> None:
    fault, _ = connect(stage, "10.43.200.200", 80, "tcp")
    assert fault == "EHOSTUNREACH"


# -- what it remembers ---------------------------------------------------------------------------


def test_private_addresses_survive_a_restart(stage: Stage, fresh: PqtunClient) -> None:
    """And the order in which names are looked up has no say in it."""
    hosts = [f"peer{number}.example.net" for number in range(5)]
    for number, host in enumerate(hosts):
        stage.announce(host, bytes([number + 1]) * 32, f"198.51.100.{number + 30}")
    started(fresh)
    before = {host: stage.private_address(host) for host in hosts}
    assert len(set(before.values())) == 5
    assert stopped(fresh) == 0
    started(fresh)
    known = {peer["private_address"] for peer in status(fresh)["peers"]}
    assert known == set(before.values())
    after = {host: stage.private_address(host) for host in reversed(hosts)}
    assert after == before
    assert stopped(fresh) == 0
    # Nor does a kill.
    started(fresh)
    assert fresh.process is not None
    fresh.process.kill()
    started(fresh)
    assert {host: stage.private_address(host) for host in reversed(hosts)} == before


def test_key_is_downloaded_once(stage: Stage, fresh: PqtunClient) -> None:
    def static() -> int:
        return int(status(stage.server)["key_server"].get("static", 0))

    before = static()
    started(fresh)
    assert stage.curl().tunnelled
    assert NODES - 1 <= static() - before <= 2 * NODES
    assert stopped(fresh) == 0
    downloaded = static()
    for _ in range(2):
        started(fresh)
        assert stage.curl().tunnelled
        assert stopped(fresh) == 0
    assert static() == downloaded


def test_damaged_key_on_disk_is_downloaded_again(stage: Stage, client: PqtunClient) -> None:
    stage.curl()
    stopped(client)
    files = [path for path in (client.directory / "state" / "server-keys").iterdir() if path.stat().st_size > 10**6]
    assert len(files) == 1
    content = bytearray(files[0].read_bytes())
    content[500_000] ^= 1
    files[0].write_bytes(content)
    before = status(stage.server)["key_server"]["static"]
    started(client)
    assert stage.curl().tunnelled
    assert status(stage.server)["key_server"]["static"] - before >= NODES - 1


# -- key servers with faults ---------------------------------------------------------------------

# What is behind the announced key port; the seconds in which programs must know. A server that is not there says so
# itself; what says nothing that makes sense is asked for ten seconds.
FAULTS = {"closed": 6, "wrong": 14, "noise": 14, "silent": 14}


def announce_faults(stage: Stage, *modes: str) -> None:
    for mode in modes:
        # Each a server of its own: the same key and address would be the same peer.
        address = f"198.51.100.{40 + [*FAULTS, 'slow'].index(mode)}"
        stage.lab.run(stage.net.server, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        if mode != "closed":
            process = start_python(stage.lab, stage.net.server, "-m", "tests.net.bad_key_server", mode, address)
            process.wait_output("ready", 10)
        stage.announce(f"{mode}.example.net", stage.keyhash, address, (42424, BAD_PORT))


def test_faulty_key_servers(stage: Stage, fresh: PqtunClient) -> None:
    """Programs get "no route to host" once it is clear that there will be no tunnel."""
    announce_faults(stage, *FAULTS)
    fresh.environment = scaled(fresh.environment)
    started(fresh)
    code = textwrap.dedent(_CONNECT)
    waiting = {
        mode: start_python(stage.lab, stage.net.client, "-c", code, f"{mode}.example.net", "80", "tcp")
        for mode in FAULTS
    }
    ends = {}
    for mode, process in waiting.items():
        assert process.wait(40) == 0, process.output()
        fault, seconds = process.output().split()
        ends[mode] = fault, float(seconds) * CLOCK_SCALE
    assert {mode: fault for mode, (fault, _) in ends.items()} == dict.fromkeys(FAULTS, "EHOSTUNREACH")
    # The program itself starts and looks up in real time.
    allowed = {mode: limit + 5 * CLOCK_SCALE for mode, limit in FAULTS.items()}
    assert {mode: seconds for mode, (_, seconds) in ends.items() if seconds > allowed[mode]} == {}
    states = {peer["name"].split(".")[1]: peer for peer in status(fresh)["peers"]}
    for mode in FAULTS:
        assert states[mode]["state"] == "failed"
        assert states[mode]["error"]


def test_a_slow_key_server_is_no_fault(stage: Stage, fresh: PqtunClient) -> None:
    announce_faults(stage, "slow")
    started(fresh)
    reached, _ = connect(stage, "slow.example.net", 80, "tcp")
    assert reached == stage.private_address("slow.example.net")
    [peer] = [peer for peer in status(fresh)["peers"] if "slow" in peer["name"]]
    assert peer["state"] == "up"


def test_name_whose_hash_does_not_fit_the_key(stage: Stage, client: PqtunClient) -> None:
    """The server runs and serves its key, but another one is announced."""
    stage.announce("unfit.example.net", bytes.fromhex("5a" * 32), SERVER4)
    for _ in range(2):
        fault, _ = connect(stage, "unfit.example.net", 80, "tcp")
        assert client.process is not None
        assert fault == "EHOSTUNREACH", f"{status(client)['peers']}\n{client.process.output()}"
    [peer] = [peer for peer in status(stage.client)["peers"] if "unfit" in peer["name"]]
    assert peer["state"] == "failed"
    assert "another key" in peer["error"]
    assert stage.curl().tunnelled


# -- datagrams, and what it tells ----------------------------------------------------------------


def test_random_datagrams(stage: Stage, client: PqtunClient) -> None:
    def counted() -> int:
        document = status(client)
        total: int = sum(document["drops"].values()) + document["events"].get("datagram", 0)
        return total

    stage.curl()
    worker = status(client)["pid"]
    sizes = []
    # The first rounds fill every bounded table and the gaps that this leaves on the heap.
    for sent in range(DATAGRAMS, 6 * DATAGRAMS, DATAGRAMS):
        noise(stage.lab, stage.net.client, 42423, DATAGRAMS, str(sent))
        wait_until(lambda: counted() >= sent, 10, "all datagrams to be counted")  # noqa: B023
        assert counted() < sent + 50  # each once, and what the server still sends into the tunnel of a client before
        sizes.append(resident(worker))
    assert sizes[4] - sizes[2] < 1 << 20
    assert client.process is not None
    assert len(client.process.output().splitlines()) < 10
    assert stage.curl().tunnelled


def test_status(stage: Stage, client: PqtunClient) -> None:
    stage.curl()
    document = client.status()
    assert document == {**document, "role": "client", "interface": "pqtcli0", "port": 42423, "address": "10.43.0.1/16"}
    [peer] = [peer for peer in document["peers"] if peer["name"] == stage.label]
    assert peer["keyhash"] == encode(stage.keyhash)
    assert peer["private_address"] == stage.private_address()
    assert peer["real_address"] in (SERVER4, SERVER6)
    assert (peer["port"], peer["state"]) == (42424, "up")
    assert peer["bytes"]["received"] > len(PAGE)
    assert peer["packets"]["sent"] > 0
    assert peer["epoch"] == {"send": 0, "receive": 0}
    text = client.command("status", "client", "--run", str(client.run_directory))
    assert text.startswith("client: pqtcli0\n  address: 10.43.0.1/16, mtu 1396\n")
    assert f"\npeer: {stage.label}\n  state: up\n  private address: {peer['private_address']}\n" in text
    assert f"real address: {peer['real_address']} port 42424" in text


def test_no_secret_in_the_log(stage: Stage, fresh: PqtunClient) -> None:
    """At the most talkative: nothing of the session that the tunnel packets' headers do not show."""
    started(fresh, "-v")
    assert stage.curl().tunnelled
    assert stopped(fresh) == 0
    assert fresh.process is not None
    said = fresh.process.output()
    assert "Traceback" not in said
    assert not re.search(r"[0-9a-f]{64}|b'", said)


# -- both on one host ----------------------------------------------------------------------------


def test_client_and_server_on_both_hosts(stage: Stage, client: PqtunClient) -> None:
    """Each host reaches the other's web server, at the same time."""
    lab, net = stage.lab, stage.net
    there = PqtunClient(lab, net.server, lab.directory / "there")
    here = PqtunServer(lab, net.client, lab.directory / "here")
    stage.add_records(*here.announce("back.example.net", address=CLIENT4).splitlines())
    web = lab.web_server(net.client, stage.files)
    started(there)
    started(here)
    try:
        assert stage.curl().tunnelled
        argv = ["curl", "-sS", "--fail", "-w", " %{remote_ip}", "http://back.example.net/page"]
        text, _, address = lab.run(net.server, *argv).stdout.rpartition(" ")
        assert text == PAGE
        assert ipaddress.ip_address(address) in CLIENT_SUBNET
        assert ipaddress.ip_address(web.output().split()[-2]) in SERVER_SUBNET
        assert stage.curl().tunnelled
        assert len(status(here)["peers"]) == 1
        assert [peer["state"] for peer in status(there)["peers"]] == ["up"]
    finally:
        web.kill()
        assert stopped(there) == 0
        assert stopped(here) == 0
    assert stage.curl().tunnelled
