"""Listening sockets: which addresses, which files, and what is removed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.endpoints import Endpoint
from pqtun.shell.sshd import listening
from pqtun.shell.sshd.allowed import Allowed
from pqtun.shell.sshd.messages import Refused
from pqtun.shell.sshd.permission import Permission


def allowed(*, permit_listen: tuple[Endpoint, ...] | None = None, settings: SshdSettings | None = None) -> Allowed:
    permission = Permission(origin="tests", key_type="ssh-ed25519", fingerprint="", permit_listen=permit_listen)
    return Allowed(permission, settings or SshdSettings())


def test_a_port_is_on_loopback_of_both_families() -> None:
    port, sockets = listening.on_port(None, 0)
    try:
        assert {sock.getsockname()[:2] for sock in sockets} == {("127.0.0.1", port), ("::1", port)}
        with pytest.raises(OSError, match="in use"):
            listening.on_port(None, port)
    finally:
        for sock in sockets:
            sock.close()


def test_a_port_of_one_address() -> None:
    port, (sock,) = listening.on_port("127.0.0.1", 0)
    assert sock.getsockname() == ("127.0.0.1", port)
    sock.close()


def test_displays_are_counted_up() -> None:
    first, sockets = listening.on_display()
    second, more = listening.on_display()
    assert 10 <= first < second
    for sock in sockets + more:
        sock.close()


@pytest.mark.parametrize("host", ["", "*", "localhost", "0.0.0.0", "192.0.2.1", "example.net"])
def test_others_reach_no_forwarded_port(host: str) -> None:
    assert allowed().address(host) is None
    assert allowed(permit_listen=(("*", 80),)).address(host) is None


def test_but_where_the_key_names_the_address() -> None:
    named = allowed(permit_listen=(("192.0.2.1", 8080), ("localhost", None), ("*", None)))
    assert named.address("192.0.2.1") == "192.0.2.1"
    assert named.address("192.0.2.2") is None
    assert named.address("localhost") is None
    named.listen("192.0.2.1", 8080)
    with pytest.raises(Refused):
        allowed(permit_listen=(("192.0.2.1", 8080),)).listen("192.0.2.1", 8081)


def test_settings_come_before_keys() -> None:
    off = allowed(
        settings=SshdSettings(
            tcp_forwarding=False, stream_local_forwarding=False, agent_forwarding=False, x11_forwarding=False
        )
    )
    for refuse in (
        lambda: off.connect("h", 1),
        lambda: off.listen("h", 1),
        off.connect_unix,
        off.listen_unix,
        off.agent,
        off.x11,
    ):
        with pytest.raises(Refused, match="settings"):
            refuse()
    off.pty()


def test_files(tmp_path: Path) -> None:
    files = listening.SocketFiles()
    path = str(tmp_path / "socket")
    mask = os.umask(0o022)
    os.umask(mask)
    sock = files.listen(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.umask(mask) == mask
    with pytest.raises(OSError, match="in use"):
        files.listen(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    sock.close()
    files.remove(path)
    assert not Path(path).exists()


def test_what_has_taken_its_place_stays(tmp_path: Path) -> None:
    files = listening.SocketFiles()
    path = tmp_path / "socket"
    files.listen(str(path)).close()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        files.remove_all()
        assert path.exists()


def test_private_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = listening.SocketFiles()
    path, sock = files.listen_privately()
    assert os.stat(os.path.dirname(path)).st_mode & 0o7777 == 0o700
    sock.close()
    files.remove_all()
    assert list(tmp_path.iterdir()) == []
