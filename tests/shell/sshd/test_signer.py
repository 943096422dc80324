from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pqtun.protocol.errors import UserError
from pqtun.shell import ssh

ssh.prepare()

from asyncssh.public_key import decode_ssh_public_key  # noqa: E402

from pqtun.shell.sshd import confinement, hostkeys, messages, process, signer  # noqa: E402
from pqtun.shell.sshd.messages import MessageError  # noqa: E402
from pqtun.shell.sshd.signer import HASH_BYTES, Signer  # noqa: E402
from tests.net.process import wait_until  # noqa: E402

pytestmark = pytest.mark.root


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    hostkeys.prepare(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def signing(tmp_path: Path, directory: Path) -> Iterator[Signer]:
    made = Signer(directory, confinement.empty_directory(tmp_path))
    yield made
    made.close()
    process.kill(made.pid)


@pytest.mark.parametrize("length", HASH_BYTES)
def test_it_signs_hashes_with_each_key(signing: Signer, length: int) -> None:
    data = bytes(range(length))
    with signing.connect() as sock:
        for key in signing.keys:
            signature = signer.ask(sock, key.algorithm, data)
            assert decode_ssh_public_key(key.blob).verify(data, signature)


@pytest.mark.parametrize("length", [0, 1, 20, 31, 33, 64 + 1, 10_000])
def test_it_signs_nothing_else(signing: Signer, length: int) -> None:
    with signing.connect() as sock:
        with pytest.raises(MessageError):
            signer.ask(sock, "ssh-ed25519", bytes(length))
        with pytest.raises(MessageError):
            signer.ask(sock, "ssh-rsa", bytes(32))
        assert signer.ask(sock, "ssh-ed25519", bytes(32))


@pytest.mark.parametrize("data", [b"{}", b'{"algorithm":[],"data":{}}', b'{"algorithm":"ssh-ed25519","data":"="}'])
def test_malformed(signing: Signer, data: bytes) -> None:
    with signing.connect() as sock:
        sock.send(data)
        assert "error" in messages.receive(sock)[0]


@pytest.mark.parametrize("data", [b"nonsense", b"[]", b"{" * 5000, b""])
def test_what_is_no_message_ends_that_connection_only(signing: Signer, data: bytes) -> None:
    with signing.connect() as other, signing.connect() as sock:
        sock.send(data)
        with pytest.raises(EOFError):
            messages.receive(sock)
        assert signer.ask(other, "ssh-ed25519", bytes(32))


def test_descriptors_are_not_kept(signing: Signer) -> None:
    with signing.connect() as sock:
        signer.ask(sock, "ssh-ed25519", bytes(32))
        before = os.listdir(f"/proc/{signing.pid}/fd")
        with open(os.devnull) as null:
            messages.send(sock, {}, [null.fileno()] * 4)
        messages.receive(sock)
        assert os.listdir(f"/proc/{signing.pid}/fd") == before


def test_it_may_have_as_many_connections_as_the_system_lets_it(tmp_path: Path, directory: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        made = Signer(directory, confinement.empty_directory(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(made.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    made.close()
    process.kill(made.pid)


def test_without_descriptors_it_goes_on_with_the_connections_that_there_are(signing: Signer) -> None:
    with signing.connect() as first:
        resource.prlimit(signing.pid, resource.RLIMIT_NOFILE, (12, 12))
        with ExitStack() as many:
            for _ in range(20):
                last = many.enter_context(signing.connect())
            with pytest.raises((EOFError, OSError)):
                signer.ask(last, "ssh-ed25519", bytes(32))
            assert signer.ask(first, "ssh-ed25519", bytes(32))
        assert signer.ask(first, "ssh-ed25519", bytes(32))  # after it has seen the ends of the others
        with signing.connect() as another:
            assert signer.ask(another, "ssh-ed25519", bytes(32))


def test_it_has_given_up_everything(signing: Signer, tmp_path: Path) -> None:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{signing.pid}/status").read_text().splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert os.readlink(f"/proc/{signing.pid}/root") == str(tmp_path / "empty")
    descriptors = [os.readlink(path) for path in Path(f"/proc/{signing.pid}/fd").iterdir() if int(path.name) > 2]
    assert all(target.startswith(("socket:", "anon_inode:")) for target in descriptors)


def test_it_stays_for_connections_that_there_are(tmp_path: Path, directory: Path) -> None:
    made = Signer(directory, confinement.empty_directory(tmp_path))
    sock = made.connect()
    made.close()
    assert signer.ask(sock, "ssh-ed25519", bytes(32))
    sock.close()
    wait_until(lambda: process.ended(made.pid), 10, "its end")


def test_keys_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--host-keys"):
        Signer(tmp_path / "file" / "keys", confinement.empty_directory(tmp_path))
