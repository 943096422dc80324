import os
import stat
import subprocess
from pathlib import Path

import pytest

from pqtun.protocol.errors import UserError
from pqtun.shell import ssh

ssh.prepare()

from pqtun.shell.sshd import hostkeys  # noqa: E402
from pqtun.shell.sshd.hostkeys import FILES  # noqa: E402

pytestmark = pytest.mark.root


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "etc" / "ssh"
    first = hostkeys.prepare(directory)
    assert [key.get_algorithm() for key in first] == ["ssh-mldsa44-ed25519", "ssh-ed25519"]
    expected = dict.fromkeys(FILES.values(), 0o600) | {f"{name}.pub": 0o644 for name in FILES.values()}
    assert modes(directory) == expected
    assert [hostkeys.public(key) for key in hostkeys.prepare(directory)] == [hostkeys.public(key) for key in first]
    assert directory.stat().st_mode & 0o777 == 0o755


def test_openssh_reads_them(tmp_path: Path) -> None:
    _, key = hostkeys.prepare(tmp_path / "ssh")
    path = tmp_path / "ssh" / FILES["ssh-ed25519"]
    argv = ["ssh-keygen", "-y", "-f", str(path)]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
    assert printed.split()[:2] == key.export_public_key().decode().split()[:2]


def test_a_missing_one_is_made_again(tmp_path: Path) -> None:
    first = hostkeys.prepare(tmp_path / "ssh")
    (tmp_path / "ssh" / FILES["ssh-ed25519"]).unlink()
    again = hostkeys.prepare(tmp_path / "ssh")
    assert again[0].public_data == first[0].public_data
    assert again[1].public_data != first[1].public_data
    public = (tmp_path / "ssh" / f"{FILES['ssh-ed25519']}.pub").read_text()
    assert public.split()[:2] == again[1].export_public_key().decode().split()[:2]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_others_must_not_read_them(tmp_path: Path, mode: int) -> None:
    hostkeys.prepare(tmp_path / "ssh")
    (tmp_path / "ssh" / FILES["ssh-ed25519"]).chmod(mode)
    with pytest.raises(UserError, match="chmod 600"):
        hostkeys.prepare(tmp_path / "ssh")


def test_they_must_be_roots(tmp_path: Path) -> None:
    hostkeys.prepare(tmp_path / "ssh")
    os.chown(tmp_path / "ssh" / FILES["ssh-ed25519"], 65534, 65534)
    with pytest.raises(UserError, match="root's own"):
        hostkeys.prepare(tmp_path / "ssh")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_others_must_not_swap_them(tmp_path: Path, mode: int) -> None:
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh").chmod(mode)
    with pytest.raises(UserError, match="others may write"):
        hostkeys.prepare(tmp_path / "ssh")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_one_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    hostkeys.prepare(tmp_path / "ssh")
    path = tmp_path / "ssh" / FILES["ssh-mldsa44-ed25519"]
    path.write_bytes(content)
    with pytest.raises(UserError):
        hostkeys.prepare(tmp_path / "ssh")
    assert path.read_bytes() == content


def test_one_of_another_type(tmp_path: Path) -> None:
    hostkeys.prepare(tmp_path / "ssh")
    names = [tmp_path / "ssh" / name for name in FILES.values()]
    names[0].write_bytes(names[1].read_bytes())
    with pytest.raises(UserError, match="of type ssh-ed25519"):
        hostkeys.prepare(tmp_path / "ssh")


def test_one_with_a_passphrase(tmp_path: Path) -> None:
    hostkeys.prepare(tmp_path / "ssh")
    path = tmp_path / "ssh" / FILES["ssh-ed25519"]
    argv = ["ssh-keygen", "-q", "-p", "-f", str(path), "-N", "secret", "-a", "1"]
    subprocess.run(argv, check=True, capture_output=True, timeout=20)
    with pytest.raises(UserError, match="encrypted"):
        hostkeys.prepare(tmp_path / "ssh")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--host-keys"):
        hostkeys.prepare(tmp_path / "file" / "ssh")
