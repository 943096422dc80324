"""The SFTP server, packet by packet (draft-ietf-secsh-filexfer-02, OpenSSH's PROTOCOL): what clients seldom send."""

from __future__ import annotations

import os
import pwd
import socket
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import sftp
from pqtun.shell.sshd.program import Sftp
from pqtun.shell.sshd.sftp import Transfer

INIT, OPEN, CLOSE, READ, WRITE, REMOVE, EXTENDED = 1, 3, 4, 5, 6, 13, 200
VERSION, STATUS, HANDLE, DATA, NAME, EXTENDED_REPLY = 2, 101, 102, 103, 104, 201
OK, END, NO_SUCH_FILE, DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
FOR_READING, FOR_WRITING, CREATED, TRUNCATED, EXCLUSIVE = 1, 2, 8, 16, 32


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def packet(kind: int, *fields: bytes) -> bytes:
    return text(bytes([kind]) + b"".join(fields))


class Client:
    """One end of a session, with the server in a thread."""

    def __init__(self, how: Sftp = Sftp()) -> None:  # noqa: B008 - frozen
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(20)
        self.reports: list[Transfer] = []
        self._number = 0
        self._theirs = theirs

        def serve() -> None:
            with theirs:
                sftp.serve(theirs, how, self.reports.append, client_version="SSH-2.0-OpenSSH_9.2")

        self._server = threading.Thread(target=serve)
        self._server.start()

    def __enter__(self) -> Client:
        self.sock.sendall(packet(INIT, struct.pack(">I", 3)))
        kind, fields = self.receive()
        assert (kind, fields[:4]) == (VERSION, b"\0\0\0\3")
        self.extensions = fields[4:]
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self._server.join(20)
        assert not self._server.is_alive()

    def receive(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", self._exactly(4))
        data = self._exactly(length)
        return data[0], data[1:]

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def ask(self, kind: int, *fields: bytes) -> tuple[int, bytes]:
        self._number += 1
        number = struct.pack(">I", self._number)
        self.sock.sendall(packet(kind, number, *fields))
        kind, answer = self.receive()
        assert answer[:4] == number
        return kind, answer[4:]

    def status(self, kind: int, *fields: bytes) -> int:
        kind, answer = self.ask(kind, *fields)
        assert kind == STATUS
        return int(struct.unpack(">I", answer[:4])[0])

    def open(self, path: Path, flags: int) -> bytes:
        kind, answer = self.ask(OPEN, text(os.fsencode(path)), struct.pack(">II", flags, 0))
        assert kind == HANDLE, answer
        return answer


def test_what_it_says_it_can() -> None:
    with Client() as client:
        for name in (
            *(b"posix-rename@openssh.com", b"statvfs@openssh.com", b"fstatvfs@openssh.com", b"hardlink@openssh.com"),
            *(b"fsync@openssh.com", b"lsetstat@openssh.com", b"limits@openssh.com", b"copy-data"),
            *(b"expand-path@openssh.com", b"home-directory", b"users-groups-by-id@openssh.com"),
        ):
            assert text(name) in client.extensions, name


def named(answer: bytes) -> bytes:
    """The one name in an answer."""
    count, length = struct.unpack(">II", answer[:8])
    assert count == 1
    return answer[8 : 8 + length]


def test_names_that_the_server_makes_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with Client() as client:
        for asked, expected in (
            (b"~/a/../b", os.fsencode(tmp_path / "b")),
            (b"~", os.fsencode(tmp_path)),
            (b"~root/x", os.fsencode(Path(pwd.getpwnam("root").pw_dir, "x"))),
            (b"a", os.fsencode(tmp_path / "a")),
        ):
            kind, answer = client.ask(EXTENDED, text(b"expand-path@openssh.com"), text(asked))
            assert (kind, named(answer)) == (NAME, expected)
        assert client.status(EXTENDED, text(b"expand-path@openssh.com"), text(b"~no-such-user/x")) == NO_SUCH_FILE
        kind, answer = client.ask(EXTENDED, text(b"home-directory"), text(b"root"))
        assert named(answer) == os.fsencode(pwd.getpwnam("root").pw_dir)
        assert client.status(EXTENDED, text(b"home-directory"), text(b"no-such-user")) == NO_SUCH_FILE


def test_names_of_users_and_groups() -> None:
    with Client() as client:
        numbers = struct.pack(">II", 0, 4_000_000_000)
        kind, answer = client.ask(EXTENDED, text(b"users-groups-by-id@openssh.com"), text(numbers), text(numbers[:4]))
        assert kind == EXTENDED_REPLY
        assert answer == text(text(b"root") + text(b"")) + text(text(b"root"))
        assert (
            client.status(EXTENDED, text(b"users-groups-by-id@openssh.com"), text(numbers[:3]), text(b""))
            == BAD_MESSAGE
        )


def test_copy_data_and_parts(tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(b"0123456789")
    with Client() as client:
        source = client.open(tmp_path / "from", FOR_READING)
        target = client.open(tmp_path / "to", FOR_WRITING | CREATED)
        fields = (source, struct.pack(">QQ", 2, 5), target, struct.pack(">Q", 1))
        assert client.status(EXTENDED, text(b"copy-data"), *fields) == OK
        assert client.ask(READ, source, struct.pack(">QI", 8, 100)) == (DATA, text(b"89"))
        assert client.status(READ, source, struct.pack(">QI", 10, 100)) == END
        assert client.status(WRITE, source, struct.pack(">Q", 0), text(b"x")) == FAILURE  # opened for reading
        assert client.status(CLOSE, target) == OK
        assert client.status(CLOSE, target) != OK
    assert (tmp_path / "to").read_bytes() == b"\x0023456"
    assert [(report.path, report.written) for report in client.reports] == [
        (os.fsencode(tmp_path / "to"), 5),
        (os.fsencode(tmp_path / "from"), 0),
    ]


def test_a_file_that_is_there_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with Client() as client:
        flags = FOR_WRITING | CREATED | EXCLUSIVE
        assert client.status(OPEN, text(os.fsencode(tmp_path / "f")), struct.pack(">II", flags, 0)) != OK
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["maps", "stat", "task/../smaps"])
def test_nothing_is_told_of_the_servers_own_memory(tmp_path: Path, name: str) -> None:
    """It is a copy of root's process, whose addresses are the same."""
    (tmp_path / "link").symlink_to(f"/proc/self/{name}")
    with Client() as client:
        for path in (f"/proc/self/{name}", f"/proc/{os.getpid()}/{name}", str(tmp_path / "link")):
            assert client.status(OPEN, text(path.encode()), struct.pack(">II", FOR_READING, 0)) == DENIED
        assert client.open(Path("/proc/version"), FOR_READING)


def test_a_full_disk_is_said() -> None:
    with Client() as client:
        full = client.open(Path("/dev/full"), FOR_WRITING)
        assert client.status(WRITE, full, struct.pack(">Q", 0), text(b"x")) != OK


@pytest.mark.parametrize("flags", [FOR_WRITING, FOR_READING | TRUNCATED, FOR_READING | CREATED, EXCLUSIVE, 4])
def test_reading_only(tmp_path: Path, flags: int) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with Client(Sftp(read_only=True)) as client:
        for name in ("f", "new"):
            path = text(os.fsencode(tmp_path / name))
            assert client.status(OPEN, path, struct.pack(">II", flags, 0)) == DENIED
        assert client.status(REMOVE, text(os.fsencode(tmp_path / "f"))) == UNSUPPORTED
        assert client.open(tmp_path / "f", FOR_READING)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"x"


def test_no_first_packet_and_too_long_ones() -> None:
    for said in (b"", b"\0\0", packet(READ), struct.pack(">I", 0xFFFFFFFF), packet(INIT, b"\0")):
        client = Client()
        client.sock.sendall(said)
        client.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            client.receive()
        client.__exit__()


PACKETS = st.builds(
    lambda kind, number, fields: packet(kind, struct.pack(">I", number), *fields),
    st.sampled_from([OPEN, CLOSE, READ, WRITE, EXTENDED, 11, 12, 16, 17, 19, 7, 0, 255]),
    st.integers(0, 3),
    st.lists(st.binary(max_size=12) | st.binary(max_size=12).map(text) | st.just(text(b"\0\0\0\0")), max_size=4),
)


@given(st.lists(PACKETS | st.binary(max_size=20), max_size=6).map(b"".join))
def test_anything_said_ends_well(said: bytes) -> None:
    with Client(Sftp(read_only=True)) as client:
        client.sock.sendall(said)
        client.sock.shutdown(socket.SHUT_WR)
        try:
            while True:
                assert client.receive()[0] in (STATUS, HANDLE, DATA, NAME, EXTENDED_REPLY, 105)
        except (EOFError, ConnectionResetError):
            pass
