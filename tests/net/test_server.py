"""`pqtun server` against bad keys and bad datagrams, and what it tells of itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator

import pytest

from pqtun.protocol.names import parse_name
from tests.net import pqtun
from tests.net.lab import CLIENT4, CLIENT6, RESOLVER4, SERVER4, SERVER6, Lab
from tests.net.pqtun import PqtunServer
from tests.net.process import wait_until
from tests.net.stage import HOST, Stage, noise, python, refused, resident, started, status, stopped

DATAGRAMS = 10_000
SECRETS = ("mceliece_sk", "x25519_sk", "session_key")
NAMES = ("mceliece_pk", "x25519_pk", *SECRETS)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        yield Stage(lab)


@pytest.fixture
def server(stage: Stage) -> Iterator[PqtunServer]:
    started(stage.server, "-v")
    yield stage.server
    assert stopped(stage.server) == 0


@pytest.fixture
def broken(stage: Stage) -> Iterator[PqtunServer]:
    """A server that is not started, with a copy of the keys to be spoilt."""
    directory = stage.lab.directory / "broken"
    directory.mkdir()
    shutil.copytree(stage.server.keys, directory / "keys")
    yield PqtunServer(stage.lab, stage.net.server, directory)
    shutil.rmtree(directory)


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_missing_key_file(broken: PqtunServer, name: str) -> None:
    (broken.keys / name).unlink()
    said = refused(broken)
    assert f"{broken.keys / name} is missing: restore it from a backup" in said


@pytest.mark.parametrize("name", NAMES)
def test_short_key_file(broken: PqtunServer, name: str) -> None:
    path = broken.keys / name
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is too short" in refused(broken)


@pytest.mark.parametrize(("one", "other"), [("x25519_pk", "x25519_sk"), ("mceliece_pk", "mceliece_sk")])
def test_swapped_key_files(broken: PqtunServer, one: str, other: str) -> None:
    a, b = (broken.keys / one).read_bytes(), (broken.keys / other).read_bytes()
    (broken.keys / one).write_bytes(b)
    (broken.keys / other).write_bytes(a)
    said = refused(broken)
    assert "swapped" in said
    assert str(broken.keys / one) in said


@pytest.mark.parametrize("kind", ["x25519", "mceliece"])
def test_halves_of_two_keys(broken: PqtunServer, stage: Stage, kind: str) -> None:
    other = stage.lab.directory / "other-keys"
    if not other.exists():
        stage.server.command("keygen", "--keys", str(other))
    shutil.copy(other / f"{kind}_pk", broken.keys)
    said = refused(broken)
    assert f"{broken.keys / kind}_pk does not belong to {broken.keys / kind}_sk" in said


@pytest.mark.parametrize("name", SECRETS)
def test_secret_that_others_may_read(broken: PqtunServer, name: str) -> None:
    path = broken.keys / name
    path.chmod(0o640)
    assert f"{path} is a secret that others may read (mode 0640): run `chmod 600 {path}`" in refused(broken)


def test_no_key_directory(broken: PqtunServer) -> None:
    shutil.rmtree(broken.keys)
    said = refused(broken)
    assert f"there is no key directory {broken.keys}: make a key with `pqtun keygen --keys {broken.keys}`" in said


def test_keygen_does_not_replace_a_key_that_is_in_use(server: PqtunServer, stage: Stage) -> None:
    before = (server.keys / "x25519_sk").read_bytes()
    argv = pqtun.argv("keygen", "--keys", str(server.keys))
    done = stage.lab.run(server.ns, *argv, check=False, env=pqtun.environment())
    assert done.returncode == 1
    assert "holds a key already" in done.stderr
    assert (server.keys / "x25519_sk").read_bytes() == before


# -- announcement --------------------------------------------------------------------------------


def test_announcement_loads_into_a_dns_server(stage: Stage) -> None:
    """Each record of the zone text is answered as it was announced, by a server that knows nothing of pq1."""
    where = ("--address", SERVER4, SERVER6, "--keys", str(stage.server.keys), "--port", "5000", "--key-port", "5001")
    zone = stage.server.command("announce", "a.example.net", "B.Example.Net", *where)
    records = json.loads(stage.server.command("announce", "a.example.net", "b.example.net", *where, "--format", "json"))
    stage.add_records(*zone.splitlines())
    for record in records["records"]:
        dig = ("dig", "+noall", "+answer", f"@{RESOLVER4}", record["name"], record["type"])
        said = stage.lab.run(stage.net.router, *dig)
        fields = [line.split() for line in said.stdout.splitlines()]
        assert [record["name"] + ".", str(record["ttl"]), "IN", record["type"]] in [line[:4] for line in fields]
        assert record["value"] in [line[4].rstrip(".") for line in fields]
    target = next(record["value"] for record in records["records"] if record["type"] == "CNAME")
    announced = parse_name(target)
    assert announced is not None
    assert (announced.port, announced.key_port) == (5000, 5001)
    assert len(records["records"]) == 4  # two names, and one target with two addresses


# -- datagrams -----------------------------------------------------------------------------------


def counted(server: PqtunServer, *groups: str) -> int:
    """The sum of some groups of its counters."""
    document = status(server)
    return sum(sum(document[group].values()) for group in groups)


@pytest.mark.parametrize(("port", "groups"), [(42424, ("drops", "handshakes")), (42425, ("key_server",))])
def test_random_datagrams(server: PqtunServer, stage: Stage, port: int, groups: tuple[str, ...]) -> None:
    worker = status(server)["pid"]
    sizes = []
    # The first rounds fill every bounded table and the gaps that this leaves on the heap.
    for sent in range(DATAGRAMS, 6 * DATAGRAMS, DATAGRAMS):
        noise(stage.lab, stage.net.server, port, DATAGRAMS, str(sent))
        wait_until(lambda: counted(server, *groups) >= sent, 10, "all datagrams to be counted")  # noqa: B023
        assert counted(server, *groups) == sent
        sizes.append(resident(worker))
    assert sizes[4] - sizes[2] < 1 << 20
    assert status(server)["peers"] == []
    assert len(server.process.output().splitlines()) < 10  # type: ignore[union-attr]
    said = stage.lab.run(stage.net.client, *pqtun.argv("check", HOST), env=pqtun.environment(), check=False)
    assert said.returncode == 0, said.stdout


def test_requests_that_ask_for_more_than_they_bring_get_nothing(server: PqtunServer, stage: Stage) -> None:
    """No amplification: nothing shorter than its answer is answered."""
    code = """
        import socket
        from pqtun.protocol.keydatagram import ephemeral_request, static_request
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("198.51.100.20", 42425))
        sock.settimeout(5)
        for request in (ephemeral_request(), static_request((0, 0))):
            for length in range(0, len(request), 7):
                sock.send(request[:length])
            sock.send(request + b"\\0")
            sock.send(request)
            print(len(sock.recv(4096)) == len(request))
    """
    assert python(stage.lab, stage.net.client, code).split() == ["True", "True"]


# -- what it tells -------------------------------------------------------------------------------


def test_status(server: PqtunServer, stage: Stage) -> None:
    started(stage.fresh_client())
    assert stage.curl().tunnelled
    document = server.status()
    assert document == {**document, "role": "server", "interface": "pqtsrv0", "port": 42424, "key_port": 42425}
    assert f"pq1{document['keyhash']}" in stage.announced
    [peer] = document["peers"]
    assert peer["real_address"] in (CLIENT4, CLIENT6)
    assert peer["private_address"] == "10.42.0.2"
    assert peer["packets"]["received"] > 0 < peer["packets"]["sent"]
    assert peer["bytes"]["received"] > 0 < peer["bytes"]["sent"]
    assert peer["epoch"] == {"send": 0, "receive": 0}
    text = server.command("status", "server", "--run", str(server.run_directory))
    assert text.startswith("server: pqtsrv0\n  address: 10.42.0.1/16, mtu 1396\n")
    assert "listening port: 42424, key server 42425" in text
    assert f"key hash: {document['keyhash']}" in text
    assert f"\npeer: {peer['name']}\n  state: up\n  private address: 10.42.0.2\n" in text
    assert f"real address: {peer['real_address']} port 42423" in text
    assert stopped(stage.client) == 0


def test_no_secret_in_the_log_or_in_what_it_tells(server: PqtunServer, stage: Stage) -> None:
    noise(stage.lab, stage.net.server, 42424, 50, "log")
    stage.lab.run(stage.net.client, *pqtun.argv("check", HOST), env=pqtun.environment())
    stopped(server)
    assert server.process is not None
    said = server.process.output()
    started(server, "-v")
    said += json.dumps(status(server))
    for name in SECRETS:
        secret = (server.keys / name).read_bytes()[:12]
        for form in (secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1]):
            assert form not in said
    assert "Traceback" not in said


def test_control_socket_is_for_root_and_its_group_only(server: PqtunServer) -> None:
    [sock] = [entry for entry in server.run_directory.iterdir() if entry.is_socket()]
    mode = os.stat(sock)
    assert mode.st_uid == 0
    assert mode.st_mode & 0o007 == 0
    code = f"""
        import os, socket
        os.setgroups([]); os.setgid(12345); os.setuid(12345)
        try:
            socket.socket(socket.AF_UNIX).connect({str(sock)!r})
        except OSError as error:
            print(error.errno)
    """
    assert python(server.lab, server.ns, code) == "13"
