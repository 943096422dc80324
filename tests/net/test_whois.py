"""`pqtun ssh` finds out whether a host is at the end of a tunnel, and keeps its host key under the key hash."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pqtun.daemon import whois
from pqtun.protocol.base32 import encode
from tests.net import pqtun
from tests.net.lab import SERVER4, Lab
from tests.net.ssh import SshServer
from tests.net.stage import HOST, PLAIN, Stage, started

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab)
        started(stage.server)
        started(stage.client)
        yield stage


@pytest.fixture(scope="module")
def server(stage: Stage) -> SshServer:
    return SshServer(stage.lab, stage.net.server)


@pytest.fixture
def home(stage: Stage, tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def ssh(stage: Stage, server: SshServer, home: Path, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pqtun ssh with the server's key for users; it knows no host."""
    key = server.client_argv("x")[4]
    words = ["-F", "none", "-p", "22", "-i", key, "-o", "BatchMode=yes", *arguments, f"root@{host}"]
    argv = pqtun.argv("ssh", "--run", str(stage.client.run_directory), *words, "echo $SSH_CONNECTION; exit 3")
    return stage.lab.run(stage.net.client, *argv, check=False, env={**pqtun.environment(), "HOME": str(home)})


def test_a_known_peer_is_named_whether_or_not_its_tunnel_is_up(stage: Stage) -> None:
    address = stage.private_address()
    known = whois.ask(stage.client.run_directory, address)
    assert known.keyhash == encode(stage.keyhash)
    assert known.name.startswith("pq1")  # the name that carries the key hash
    nobody = bytes(range(32))
    stage.announce("nobody.example.net", nobody, SERVER4)
    address = stage.private_address("nobody.example.net")
    assert whois.ask(stage.client.run_directory, address).keyhash == encode(nobody)


def test_through_the_tunnel_no_question_is_asked(stage: Stage, server: SshServer, home: Path) -> None:
    done = ssh(stage, server, home, HOST, "-4")
    assert done.returncode == 3, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("10.42.")  # it came through the tunnel
    kept = (home / ".ssh/pqtun_known_hosts").read_text()
    assert kept.startswith(f"[{encode(stage.keyhash)}]:22 ssh-ed25519 ")
    assert ssh(stage, server, home, HOST, "-6").returncode == 3
    assert (home / ".ssh/pqtun_known_hosts").read_text() == kept
    assert not (home / ".ssh/known_hosts").exists()


def test_a_changed_host_key_is_refused(stage: Stage, server: SshServer, home: Path) -> None:
    assert ssh(stage, server, home, HOST).returncode == 3
    store = home / ".ssh/pqtun_known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / "other")], check=True, timeout=20)
    other = " ".join((home / "other.pub").read_text().split()[:2])
    store.write_text(f"[{encode(stage.keyhash)}]:22 {other}\n")
    done = ssh(stage, server, home, HOST)
    assert done.returncode == 255
    assert "has changed" in done.stderr
    assert f"{store}:1" in done.stderr
    assert done.stderr.splitlines()[-1] == "pqtun ssh: Host key verification failed."
    assert store.read_text().split()[1:] == other.split()


@pytest.mark.parametrize("host", [PLAIN, SERVER4])
def test_outside_tunnels_it_goes_only_if_told_to(stage: Stage, server: SshServer, home: Path, host: str) -> None:
    done = ssh(stage, server, home, host, "-4")
    assert done.returncode == 255
    assert SERVER4 in done.stderr
    assert "--direct" in done.stderr
    assert done.stderr.count("\n") == 1
    done = ssh(stage, server, home, host, "-4", "--direct", "-o", "StrictHostKeyChecking=accept-new")
    assert done.returncode == 3, done.stderr
    assert not done.stdout.startswith("10.42.")
    assert (home / ".ssh/known_hosts").read_text().startswith(f"{host} ssh-ed25519")
    assert not (home / ".ssh/pqtun_known_hosts").exists()


def test_without_a_client_it_says_so(stage: Stage, server: SshServer, home: Path, tmp_path: Path) -> None:
    done = ssh(stage, server, home, SERVER4, "--run", str(tmp_path))
    assert done.returncode == 255
    assert done.stderr.startswith("pqtun ssh: no pqtun client runs here")
    assert done.stderr.count("\n") == 1


def test_a_name_that_nobody_knows(stage: Stage, server: SshServer, home: Path) -> None:
    done = ssh(stage, server, home, "nothing.example.net")
    assert done.returncode == 255
    assert done.stderr.startswith("pqtun ssh: Could not resolve hostname nothing.example.net: ")
    assert done.stderr.count("\n") == 1
