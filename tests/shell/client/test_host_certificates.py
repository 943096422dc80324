"""`pqtun ssh --direct` to a server with a host certificate: @cert-authority of known_hosts, as ssh(1) has it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.lab import Lab
from tests.shell.client import login
from tests.shell.client.sshd import ADDRESS, PORT, Sshd

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Lab() as lab:
        directory = Path(tmp_path_factory.mktemp("certified"))
        sshd = Sshd(lab, lab.namespace("certified"), directory)
        keygen("-t", "ed25519", "-N", "", "-f", directory / "ca")
        keygen("-s", directory / "ca", "-h", "-I", "host", "-n", ADDRESS, directory / "host.pub")
        config = directory / "sshd_config"
        config.write_text(f"{config.read_text()}HostCertificate {directory}/host-cert.pub\n")
        sshd.kill()
        sshd.start()
        yield sshd


def keygen(*arguments: str | Path) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, arguments)], check=True, capture_output=True, timeout=20)


def connect(server: Sshd, known: str, host: str = ADDRESS) -> tuple[int, str]:
    path = server.directory / "known"
    path.write_text(known)
    flags = ["-F", "none", "-i", str(server.key), "-p", str(PORT), "-o", f"UserKnownHostsFile={path}"]
    flags += ["-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    argv = server.lab.argv(server.ns, *login.pqtun.argv("ssh", "--direct", *flags, f"root@{host}", "exit 3"))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, env=login.environment())
    return done.returncode, done.stderr


def test_the_authority_is_enough(server: Sshd) -> None:
    authority = (server.directory / "ca.pub").read_text()
    assert connect(server, f"@cert-authority * {authority}") == (3, "")
    assert connect(server, f"@cert-authority {ADDRESS} {authority}") == (3, "")


def test_a_certificate_for_another_name_is_not(server: Sshd) -> None:
    authority = (server.directory / "ca.pub").read_text()
    code, said = connect(server, f"@cert-authority * {authority}", "127.0.0.2")
    assert code == 255
    assert said.endswith("Host key verification failed.\n")


def test_a_revoked_authority_or_key_is_not(server: Sshd) -> None:
    authority, host = ((server.directory / name).read_text() for name in ("ca.pub", "host.pub"))
    assert connect(server, f"@cert-authority * {authority}@revoked * {authority}")[0] == 255
    assert connect(server, f"@cert-authority * {authority}@revoked * {host}")[0] == 255


def test_without_the_authority_the_key_counts(server: Sshd) -> None:
    host = (server.directory / "host.pub").read_text()
    assert connect(server, f"{ADDRESS} {host}") == (3, "")
    assert connect(server, "")[0] == 255
