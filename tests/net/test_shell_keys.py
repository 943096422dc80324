"""Keys and certificates go both ways between pqtun ssh-keygen and OpenSSH 10.6, and TinySSH's tools."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pqtun.shell import ssh
from tests.interop.debian import TINYSSH, Unavailable
from tests.net.enclosure import Enclosure
from tests.net.lab import Lab
from tests.net.process import wait_until
from tests.net.ssh_keys import openssh_root
from tests.net.users import Users

ssh.prepare()
import asyncssh  # noqa: E402  # after it knows every algorithm

KINDS = ("mldsa44-ed25519", "ed25519")


class Tools:
    """Programs that make and read keys, all in the same directory."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._ns = lab, lab.namespace("keys")
        self._enclosure = Enclosure(lab, self._ns, Users(lab, self._ns))
        self._openssh = openssh_root(lab, self._ns, self._enclosure)
        self._tinyssh = TINYSSH.root()
        self.directory = lab.directory / "made"
        self.directory.mkdir()

    def openssh(self, *argv: str | Path, check: bool = True) -> str:
        """What a program of OpenSSH 10.6 prints."""
        return self._chroot(self._openssh, *argv, check=check)

    def tinyssh(self, *argv: str | Path) -> str:
        return self._chroot(self._tinyssh, *argv)

    def pqtun(self, *arguments: str | Path) -> str:
        words = [sys.executable, "-m", "pqtun", *map(str, arguments)]
        return self._lab.run(self._ns, *words, timeout=60).stdout

    def agent(self) -> Path:
        """The socket of an ssh-agent of 10.6's."""
        socket = self.directory / "agent"
        argv = self._enclosure.chroot(self._openssh, "ssh-agent", "-D", "-a", str(socket))
        self._lab.spawn(self._ns, *argv)
        wait_until(socket.exists, 20, "ssh-agent listens")
        return socket

    def _chroot(self, root: Path, *argv: str | Path, check: bool = True) -> str:
        words = self._enclosure.chroot(root, *map(str, argv))
        done = self._lab.run(self._ns, *words, timeout=60, check=check)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    with Lab() as lab:
        try:
            yield Tools(lab)
        except Unavailable as reason:
            pytest.skip(str(reason))


@pytest.fixture
def directory(tools: Tools, request: pytest.FixtureRequest) -> Path:
    made = tools.directory / "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    made.mkdir()
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", ["pqtun", "openssh"])
def test_key_files(tools: Tools, directory: Path, kind: str, maker: str) -> None:
    """Made by the one, read and encrypted by the other, read again by the first."""
    make, other = (tools.pqtun, tools.openssh) if maker == "pqtun" else (tools.openssh, tools.pqtun)
    path, few = directory / "key", ("-a", "1")
    make("ssh-keygen", "-q", "-t", kind, "-f", path, "-N", "", "-C", "a comment")
    public = path.with_suffix(".pub").read_text()
    assert other("ssh-keygen", "-y", "-f", path) == public
    other("ssh-keygen", "-p", "-P", "", "-N", "a pass phrase", "-f", path, *few)
    assert make("ssh-keygen", "-y", "-P", "a pass phrase", "-f", path) == public
    make("ssh-keygen", "-p", "-P", "a pass phrase", "-N", "another", "-f", path, *few)
    assert other("ssh-keygen", "-y", "-P", "another", "-f", path) == public
    shown = {keygen("ssh-keygen", "-l", "-f", path.with_suffix(".pub")) for keygen in (make, other)}
    assert len(shown) == 1


@pytest.mark.parametrize("authority", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_certificates(tools: Tools, directory: Path, kind: str, authority: str) -> None:
    tools.pqtun("ssh-keygen", "-q", "-t", authority, "-f", directory / "ca", "-N", "")
    shown = {}
    for name, keygen in (("ours", tools.pqtun), ("theirs", tools.openssh)):
        key = directory / name
        keygen("ssh-keygen", "-q", "-t", kind, "-f", key, "-N", "", "-C", name)
        options = ("-O", "clear", "-O", "permit-pty", "-O", "force-command=ls -l", "-O", "source-address=10.43.0.0/16")
        what = ("-I", "the id", "-n", "alice,bob", "-V", "20260101Z:20360101Z", "-z", "7", *options)
        keygen("ssh-keygen", "-q", "-s", directory / "ca", *what, f"{key}.pub")
        certificate = directory / f"{name}-cert.pub"
        seen = [maker("ssh-keygen", "-L", "-f", certificate).split() for maker in (tools.openssh, tools.pqtun)]
        assert seen[0] == seen[1]
        shown[name] = [word for word in seen[0] if not word.startswith(("SHA256:", "/"))]
        assert asyncssh.read_certificate(certificate).principals == ["alice", "bob"]
    assert shown["ours"] == shown["theirs"]


def test_signatures(tools: Tools, directory: Path) -> None:
    key, message = directory / "key", directory / "message"
    tools.pqtun("ssh-keygen", "-q", "-f", key, "-N", "")
    message.write_bytes(b"what is signed")
    (directory / "signers").write_text(f"me {(directory / 'key.pub').read_text()}")
    tools.openssh("ssh-keygen", "-Y", "sign", "-f", key, "-n", "test", message)
    signature = (directory / "message.sig").read_bytes()
    signers = asyncssh.read_allowed_signers(str(directory / "signers"))
    assert asyncssh.validate_sshsig(message, signature, "me", signers)
    (directory / "message.sig").unlink()
    made = directory / "ours.sig"
    made.write_bytes(asyncssh.create_sshsig(str(key), message, namespace="test"))
    verify = "ssh-keygen -Y verify -f signers -I me -n test -s ours.sig < message"
    said = tools.openssh("sh", "-c", f"cd {directory}; {verify}")
    assert said.startswith('Good "test" signature for me with MLDSA44-ED25519 key')


def test_agent(tools: Tools, directory: Path) -> None:
    """Keys and certificates that asyncssh puts into OpenSSH's agent, and uses there."""
    for name in ("ca", "key"):
        tools.pqtun("ssh-keygen", "-q", "-f", directory / name, "-N", "", "-C", name)
    tools.pqtun("ssh-keygen", "-q", "-s", directory / "ca", "-I", "id", "-n", "alice", directory / "key.pub")
    socket = tools.agent()

    async def use() -> None:
        agent = await asyncssh.connect_agent(str(socket))
        await agent.add_keys([str(directory / "key")])  # with the certificate beside it
        pairs = await agent.get_keys()
        assert {pair.algorithm for pair in pairs} == {b"ssh-mldsa44-ed25519", b"ssh-mldsa44-ed25519-cert"}
        key = asyncssh.read_public_key(str(directory / "key.pub"))
        for pair in pairs:
            assert pair.sig_algorithms == (b"ssh-mldsa44-ed25519",)
            assert key.verify(b"data", await pair.sign_async(b"data"))
        agent.close()
        await agent.wait_closed()

    asyncio.run(use())
    listed = tools.openssh("env", f"SSH_AUTH_SOCK={socket}", "ssh-add", "-l").splitlines()
    fingerprint = tools.pqtun("ssh-keygen", "-l", "-f", directory / "key").split()[1]
    assert sorted(line.rsplit(" ", 1)[1] for line in listed) == ["(MLDSA44-ED25519)", "(MLDSA44-ED25519-CERT)"]
    assert {line.split()[1] for line in listed} == {fingerprint}


def test_tinyssh(tools: Tools, directory: Path) -> None:
    theirs, ours = directory / "theirs", directory / "ours"
    tools.tinyssh("tinysshd-makekey", theirs)
    tools.pqtun("ssh-keyconvert", "from-tinyssh", theirs, directory / "key", "-C", "c")
    printed = tools.tinyssh("tinysshd-printkey", theirs).split()
    assert (directory / "key.pub").read_text().split() == [*printed[:2], "c"]
    tools.pqtun("ssh-keyconvert", "to-tinyssh", directory / "key", ours)
    assert tools.tinyssh("tinysshd-printkey", ours).split() == printed
    for name in ("ed25519.pk", ".ed25519.sk"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
        assert (ours / name).stat().st_mode == (theirs / name).stat().st_mode
    assert ours.stat().st_mode == theirs.stat().st_mode
