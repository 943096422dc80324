"""`pqtun sshd` as a service, without a tunnel: a device with the addresses of one is enough for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pqtun.protocol.private6 import address6, prefix
from pqtun.shell import ssh

ssh.prepare()

import asyncssh  # noqa: E402

from tests.net.enclosure import Enclosure  # noqa: E402
from tests.net.lab import Lab  # noqa: E402
from tests.net.process import LabError, Process, wait_until  # noqa: E402
from tests.net.ssh import EchoSession  # noqa: E402
from tests.net.users import Users  # noqa: E402

DEVICE, PORT = "inner0", 42422
OWN, CLIENT = "10.42.0.1", "10.42.0.7"
NETWORK6 = prefix(IPv4Network("10.42.0.0/16"))
OWN6, CLIENT6 = (str(address6(NETWORK6, IPv4Address(address))) for address in (OWN, CLIENT))
STRANGER = "192.0.2.7"  # an address of the client's that is not in the network


class Host:
    """The server with its users, and a client beside it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server, self.client = lab.namespace("server"), lab.namespace("client")
        self.users = Users(lab, self.server)
        self.alice, self.bob = self.users.add("alice", groups=("project",)), self.users.add("bob")
        self.enclosure = Enclosure(lab, self.server, self.users)
        self.join()
        self.key = lab.directory / "key"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)]
        subprocess.run(argv, check=True, capture_output=True, timeout=20)
        for user in (self.alice, self.bob):
            self.users.authorize(user, (lab.directory / "key.pub").read_text())
        self.directory = lab.directory / "sshd"
        self.directory.mkdir()
        self.service = self.start()

    def join(self) -> None:
        """Make the devices of both, as the tunnel's service makes its own."""
        ends = ((self.server, DEVICE), (self.client, "tun0"))
        self.lab.link(ends, ((f"{OWN}/16", f"{OWN6}/64"), (f"{CLIENT}/16", f"{CLIENT6}/64", f"{STRANGER}/24")))

    def start(self, *arguments: str) -> Process:
        places = [f"--{name}={self.directory / name}" for name in ("run", "audit", "host-keys")]
        argv = [sys.executable, "-m", "pqtun", "sshd", "--interface", DEVICE, "--pam=none", *places, *arguments]
        process = self.lab.spawn(self.server, *self.enclosure.argv(*argv))
        process.wait_output("sshd is ready", 20)
        return process

    def restart(self, *arguments: str) -> None:
        """As systemd does with KillMode=process: only the first process is told."""
        self.service.signal(signal.SIGTERM)
        assert self.service.wait(10) == 0
        self.service = self.start(*arguments)

    def argv(self, *command: str, user: str = "alice", host: str = OWN, options: tuple[str, ...] = ()) -> list[str]:
        known = {"UserKnownHostsFile": self.lab.directory / "known", "StrictHostKeyChecking": "accept-new"}
        known |= {"BatchMode": "yes", "IdentitiesOnly": "yes", "ConnectTimeout": "10", "LogLevel": "ERROR"}
        words = [
            "ip",
            "netns",
            "exec",
            self.client,
            "ssh",
            "-F",
            "none",
            "-i",
            str(self.key),
            "-p",
            str(PORT),
            *options,
        ]
        for name, value in known.items():
            words += ["-o", f"{name}={value}"]
        return [*words, f"{user}@{host}", *command]

    def ssh(self, *words: str, timeout: float = 20, **where: str) -> subprocess.CompletedProcess[str]:
        argv = self.argv(*words, **where)  # type: ignore[arg-type]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    def says(self, *words: str, **where: str) -> str:
        result = self.ssh(*words, **where)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def audit(self) -> list[dict[str, object]]:
        lines = (self.directory / "audit").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line).get("event"))]

    def processes(self, name: str) -> list[int]:
        """Those of the service that ps(1) shows by this name."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "comm").read_text() == f"{name}\n" and str(self.directory) in (path / "cmdline").read_text():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def one(self, name: str, of: str = "") -> int:
        (pid,) = [pid for pid in self.processes(name) if not of or f"\nUid:\t{of}\t" in status(pid)]
        return pid


def status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield Host(lab)


@pytest.fixture
def session(host: Host) -> Iterator[EchoSession]:
    made = EchoSession(host.argv(EchoSession.COMMAND))
    made.echo("begins", 20)
    yield made
    made.close()
    wait_until(lambda: not host.processes("sshd: worker"), 20, "the end of its processes")


def test_addresses(host: Host) -> None:
    assert host.says("echo $SSH_CONNECTION").split()[::2] == [CLIENT, OWN]
    assert host.says("echo $SSH_CONNECTION", host=OWN6).split()[::2] == [CLIENT6, OWN6]


GREETED = """
import socket, sys
own, host, port = sys.argv[1:]
try:
    with socket.create_connection((host, int(port)), 2, (own, 0)) as sock:
        print(len(sock.recv(100)))
except OSError:
    print(0)
"""


@pytest.mark.parametrize("own", ["", OWN, "127.0.0.1", OWN6, "::1"])
def test_the_host_itself_is_no_client(host: Host, own: str) -> None:
    """The kernel takes what a host sends to its own address as come by that address's device."""
    to = OWN6 if ":" in own else OWN
    assert host.lab.run(host.server, sys.executable, "-c", GREETED, own, to, str(PORT)).stdout == "0\n"


def test_nor_is_somebody_with_another_address(host: Host) -> None:
    for own, greeted in ((STRANGER, False), (CLIENT, True)):
        said = host.lab.run(host.client, sys.executable, "-c", GREETED, own, OWN, str(PORT)).stdout
        assert (said != "0\n") is greeted


def test_check_says_where(host: Host) -> None:
    argv = [sys.executable, "-m", "pqtun", "sshd", "--check", "--interface"]
    there = host.lab.run(host.server, *argv, DEVICE).stdout
    assert f"{OWN}, {OWN6} ({DEVICE}) port {PORT}" in there
    assert "would wait" in host.lab.run(host.server, *argv, "other0").stdout


def test_status(host: Host, session: EchoSession) -> None:
    asked = [sys.executable, "-m", "pqtun", "status", "--run", str(host.directory / "run")]
    text = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    assert f"listening: {OWN}, {OWN6} port {PORT}" in text
    assert "connections: alice 1" in text
    said = subprocess.run([*asked, "sshd", "--json"], capture_output=True, text=True, check=True, timeout=20).stdout
    status = json.loads(said)
    assert (status["users"], status["starting"]) == ({"alice": 1}, 0)
    assert status["counters"]["connections"] >= status["counters"]["logins"] >= 1


def test_a_second_one_is_refused(host: Host) -> None:
    with pytest.raises(LabError, match="runs already"):
        host.start()


def test_what_processes_may(host: Host, session: EchoSession) -> None:
    pqtun = str(host.users["pqtun"].uid)
    worker, users = host.one("sshd: worker"), host.one("sshd: alice", str(host.alice.uid))
    monitor = host.one("sshd: alice", "0")
    lines = dict(line.split(":\t", 1) for line in status(worker).splitlines())
    assert set(lines["Uid"].split()) == set(lines["Gid"].split()) == {pqtun}
    assert lines["Groups"].strip() == ""
    assert lines["NoNewPrivs"] == "1"
    assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert os.listdir(f"/proc/{worker}/root") == []
    limits = Path(f"/proc/{worker}/limits").read_text()
    assert "Max processes             0 " in limits
    assert "Max core file size        0 " in limits
    for space in ("net", "pid"):  # it sees no network and no process but its own
        spaces = [os.readlink(f"/proc/{pid}/ns/{space}") for pid in (worker, monitor, users, host.service.pid)]
        assert spaces[0] not in spaces[1:]
        assert len(set(spaces[1:])) == 1
    for pid in (worker, users):
        kinds = {os.readlink(path).split("[")[0] for path in Path(f"/proc/{pid}/fd").iterdir() if int(path.name) > 2}
        assert kinds <= {"socket:", "pipe:", "anon_inode:"}
    lines = dict(line.split(":\t", 1) for line in status(users).splitlines())
    assert {int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert set(map(int, lines["Groups"].split())) == host.users.gids(host.alice)
    # Only the worker has the connection.
    sockets = Path(f"/proc/{host.service.pid}/net/tcp").read_text()
    inodes = {f"socket:[{line.split()[9]}]" for line in sockets.splitlines()[1:]}
    for pid, has in ((worker, True), (monitor, False), (users, False), (host.service.pid, False)):
        connected = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()} & inodes
        assert bool(connected - _listening(sockets)) is has


def _listening(sockets: str) -> set[str]:
    rows = [line.split() for line in sockets.splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}


def test_only_the_signer_has_the_host_keys(host: Host, session: EchoSession) -> None:
    secrets = []
    for name in ("ssh_host_ed25519_key", "ssh_host_mldsa44_ed25519_key"):
        key = asyncssh.read_private_key(host.directory / "host-keys" / name)
        secrets.append(key.encode_ssh_private()[-32:] if "mldsa" in name else _seed(key))
    everybody = host.processes("sshd: alice") + host.processes("sshd: worker") + [host.service.pid]
    assert len(everybody) == 4
    assert all(_finds(host.one("pqtun-signer"), secret) for secret in secrets)
    for pid in everybody:
        assert not any(_finds(pid, secret) for secret in secrets)


def _seed(key: asyncssh.SSHKey) -> bytes:
    raw: bytes = key.pyca_key.private_bytes_raw()  # type: ignore[union-attr]
    return raw


def _finds(pid: int, secret: bytes) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            begin, end = (int(word, 16) for word in place.split("-"))
            memory.seek(begin)
            try:
                if secret in memory.read(end - begin):
                    return True
            except OSError:
                continue  # nothing is mapped there in fact
    return False


@pytest.mark.parametrize("name", ["sshd: worker", "sshd: alice"])
def test_none_stays_alone(host: Host, name: str) -> None:
    session = EchoSession(host.argv(EchoSession.COMMAND))
    try:
        session.echo("begins", 20)
        mine = host.processes("sshd: worker") + host.processes("sshd: alice")
        os.kill(host.processes(name)[0], signal.SIGKILL)
        wait_until(lambda: not any(Path(f"/proc/{pid}/mem").exists() for pid in mine), 20, "the end of all of them")
        with pytest.raises(LabError):
            session.echo("after")
    finally:
        session.close()
    assert host.says("echo on") == "on\n"


def test_a_restart_leaves_logins_alone(host: Host, session: EchoSession) -> None:
    host.restart("--max-connections-user", "1")
    session.echo("the old one")
    # It is counted, and what it does is written down, once its monitor has found the new listener.
    wait_until(lambda: host.ssh("true").returncode == 255, 20, "it to be counted")
    assert host.says("id -un", user="bob") == "bob\n"
    session.close()
    wait_until(lambda: host.ssh("true").returncode == 0, 20, "room for another")
    users = [event.get("user") for event in host.audit() if event["event"] == "logout"]
    assert users.count("alice") >= 1
    verify = [sys.executable, "-m", "pqtun", "audit", "verify", str(host.directory / "audit")]
    assert subprocess.run(verify, capture_output=True, timeout=30, check=False).returncode == 0
    host.restart()


def test_a_device_that_is_made_anew(host: Host, session: EchoSession) -> None:
    subprocess.run(["ip", "-n", host.server, "link", "del", DEVICE], check=True, timeout=20)
    host.service.wait_output("which is gone", 20)
    assert host.ssh("true").returncode == 255
    host.join()
    wait_until(lambda: host.ssh("true").returncode == 0, 20, "a login")
    session.echo("still there", 30)


def test_a_device_that_comes_later(host: Host) -> None:
    subprocess.run(["ip", "-n", host.server, "link", "del", DEVICE], check=True, timeout=20)
    host.restart()
    assert "not there yet" in host.service.output()
    host.join()
    wait_until(lambda: host.ssh("true").returncode == 0, 20, "a login")


def test_a_port_that_somebody_took_meanwhile(host: Host) -> None:
    """A device that returns to a port that is taken does not end the service: it is tried again and again."""
    subprocess.run(["ip", "-n", host.server, "link", "del", DEVICE], check=True, timeout=20)
    host.service.wait_output("which is gone", 20)
    taken = f"import socket; s = socket.create_server(('', {PORT})); print('taken', flush=True); s.accept()"
    other = host.lab.spawn(host.server, sys.executable, "-c", taken)
    other.wait_output("taken", 20)
    host.join()
    host.service.wait_output("already in use", 20)
    other.stop()
    wait_until(lambda: host.ssh("true").returncode == 0, 20, "a login")


def test_files_that_the_settings_name_are_looked_at(host: Host) -> None:
    host.restart("--revoked-keys", "/no/such/file")
    assert "revoked_keys: /no/such/file: no such file; nobody can log in" in host.service.output()
    assert host.ssh("true").returncode == 255
    host.restart()


def test_others_may_be_served_after_failures(host: Host) -> None:
    """An address that fails again and again has to wait; another one notices nothing."""
    for _ in range(8):
        assert host.ssh("true", user="nobody-of-that-name").returncode == 255
    assert host.ssh("true").returncode == 255
    assert host.service.output().count("\n") <= 10
    wait_until(lambda: host.ssh("true").returncode == 0, 60, "its pause to end")
