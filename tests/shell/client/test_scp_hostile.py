"""Servers that want to write elsewhere than they were let, or never end."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncssh
import pytest

from pqtun.shell.client import copier, remotestore
from tests.shell.client.openssh import OwnServer, scp

EVIL = [b"../evil", b"..", b"a/b", b"/tmp/evil", b"", b"evil\0x", b"sub/../../evil"]
CONTENT = b"evil"


def sftp_with(names: list[bytes]) -> Callable[[asyncssh.SSHServerChannel], asyncssh.SFTPServer]:
    """A server whose every directory has these names, which are all files; its paths end in dir or in others."""

    class Server(asyncssh.SFTPServer):
        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            kind = stat.S_IFDIR | 0o755 if path.endswith((b"dir", b"again")) else stat.S_IFREG | 0o644
            return asyncssh.SFTPAttrs(size=len(CONTENT), permissions=kind, atime=0, mtime=0, uid=0, gid=0)

        lstat = stat

        async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            for name in names:
                yield asyncssh.SFTPName(name, attrs=self.stat(name))

        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
            return path

        def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
            return self.stat(b"file")

        def read(self, file_obj: object, offset: int, size: int) -> bytes:
            return CONTENT[offset : offset + size]

        def close(self, file_obj: object) -> None:
            pass

    return Server


def everything(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def test_names_in_directories_cannot_leave_the_target(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server = OwnServer(sftp=sftp_with([*EVIL, b"good"]))
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    assert scp(server.connect, "-r", "host:dir", target) == len(EVIL) - 1  # .. is passed over, as all servers list it
    assert everything(tmp_path) == ["deep", "deep/target", "deep/target/dir", "deep/target/dir/good"]
    assert (target / "dir" / "good").read_bytes() == CONTENT
    assert "is not taken" in capfd.readouterr().err


def test_patterns_take_no_other_names(tmp_path: Path) -> None:
    server = OwnServer(sftp=sftp_with([*EVIL, b".bashrc", b"other", b"good", b"goodness"]))
    target = tmp_path / "target"
    target.mkdir()
    assert scp(server.connect, "host:dir/g*", target) == 0
    assert everything(tmp_path) == ["target", "target/good", "target/goodness"]


def test_dots_as_a_source_stay_in_the_target(tmp_path: Path) -> None:
    server = OwnServer(sftp=sftp_with([b"good"]))
    target = tmp_path / "target"
    target.mkdir()
    assert scp(server.connect, "-r", "host:somedir/..", target) == 1
    assert everything(tmp_path) == ["target"]


def test_directories_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = OwnServer(sftp=sftp_with([b"again"]))
    monkeypatch.setattr(copier, "MAX_DEPTH", 5)
    assert scp(server.connect, "-r", "host:dir", tmp_path / "target") == 1
    assert len(everything(tmp_path)) == 5


def test_names_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = OwnServer(sftp=sftp_with([b"%d" % number for number in range(1000)]))
    monkeypatch.setattr(remotestore, "MAX_ENTRIES", 500)
    assert scp(server.connect, "-r", "host:dir", tmp_path / "target") == 1
    assert everything(tmp_path) == []


def test_a_file_that_ends_too_early_is_no_whole_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    factory = sftp_with([])

    class Short(factory):  # type: ignore[misc, valid-type]
        def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
            return asyncssh.SFTPAttrs(size=1000, permissions=stat.S_IFREG | 0o644)

    assert scp(OwnServer(sftp=Short).connect, "host:file", tmp_path) == 1
    assert "ended after 4 of 1000 bytes" in capfd.readouterr().err


def test_more_than_was_asked_for_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    factory = sftp_with([])

    class Long(factory):  # type: ignore[misc, valid-type]
        def read(self, file_obj: object, offset: int, size: int) -> bytes:
            return bytes(size + 1)

    assert scp(OwnServer(sftp=Long).connect, "host:file", tmp_path / "file") == 1
    assert "more than it was asked for" in capfd.readouterr().err
    assert (tmp_path / "file").read_bytes() == b""


def test_what_a_server_forbids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    factory = sftp_with([])

    class Forbids(factory):  # type: ignore[misc, valid-type]
        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
            raise PermissionError(13, "no")

    (tmp_path / "file").write_text("x")
    assert scp(OwnServer(sftp=Forbids).connect, "host:file", tmp_path / "copy") == 1
    assert scp(OwnServer(sftp=Forbids).connect, tmp_path / "file", "host:file") == 1
    assert capfd.readouterr().err.count("Permission denied") == 2
    assert everything(tmp_path) == ["file"]


def test_no_sftp_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert scp(OwnServer().connect, "host:file", tmp_path) == 1
    assert "no SFTP" in capfd.readouterr().err


def old_source(sends: bytes) -> OwnServer:
    """A server whose scp sends these bytes whatever it is told."""

    async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(sends)
        process.stdout.write_eof()
        await process.stdin.read()
        process.exit(0)

    return OwnServer(command=command)


def file_line(name: bytes, *, kind: bytes = b"C0644") -> bytes:
    return kind + b" 4 " + name + b"\n" + (CONTENT + b"\0" if kind.startswith(b"C") else b"")


@pytest.mark.parametrize("name", [b"../evil", b"..", b".", b"a/b", b"/tmp/evil", b"", b"evil\0", b"other"])
@pytest.mark.parametrize("kind", [b"C0644", b"D0755"])
def test_old_protocol_takes_no_other_names(tmp_path: Path, name: bytes, kind: bytes) -> None:
    target = tmp_path / "target"
    target.mkdir()
    server = old_source(file_line(name, kind=kind) + file_line(b"asked"))
    assert scp(server.connect, "-O", "-r", "host:as*", target) == 1
    assert everything(tmp_path) == ["target"]


def test_old_protocol_checks_names_in_directories(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    server = old_source(file_line(b"asked", kind=b"D0755") + file_line(b"../../evil"))
    assert scp(server.connect, "-O", "-r", "host:asked", target) == 1
    assert everything(tmp_path) == ["target", "target/asked"]


def test_old_protocol_takes_every_name_if_told_so(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    assert scp(old_source(file_line(b"other")).connect, "-O", "-T", "host:asked", target) == 0
    assert (target / "other").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "sends",
    [
        b"",
        b"C0644",
        b"C0644 4 asked\nev",
        b"C0644 4 asked\n" + CONTENT,
        b"C0644 -1 asked\n",
        b"C0644 99999999999999999999 asked\n",
        b"C0644 9223372036854775808 asked\n",
        b"hello\n",
        b"E\n",
        b"D0755 0 asked\n",
        b"T0 0 0\n",
        b"T9223372036854775807 0 0 0\n" + file_line(b"asked"),
        b"\2scp: over\n",
        b"C" * 20000,
    ],
)
def test_old_protocol_broken(tmp_path: Path, sends: bytes) -> None:
    assert scp(old_source(sends).connect, "-Op", "host:asked", tmp_path / "copy") == 1


def test_no_set_user_id_bits_come_with_files(tmp_path: Path) -> None:
    assert scp(old_source(file_line(b"asked", kind=b"C6755")).connect, "-O", "-p", "host:asked", tmp_path) == 0
    assert (tmp_path / "asked").stat().st_mode & 0o7777 == 0o755


def test_permissions_that_are_not_told_are_those_of_new_files(tmp_path: Path) -> None:
    class Silent(sftp_with([])):  # type: ignore[misc]
        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            return asyncssh.SFTPAttrs(size=len(CONTENT), atime=7, mtime=7)

        lstat = stat

        def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
            return self.stat(b"")

    assert scp(OwnServer(sftp=Silent).connect, "-p", "host:file", tmp_path / "copy") == 0
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o666 & ~0o022
    assert (tmp_path / "copy").stat().st_mtime == 7


def test_control_characters_of_servers_are_not_obeyed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert scp(old_source(b"\1scp: \x1b[2Jbad\r\n").connect, "-O", "host:asked", tmp_path) == 1
    said = capfd.readouterr().err
    assert "\x1b" not in said
    assert "\\033[2Jbad" in said


def test_between_hosts_names_are_checked_too(tmp_path: Path) -> None:
    written: list[bytes] = []

    async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        if b" -t " in os.fsencode(process.command or ""):
            process.stdout.write(b"\0")
            written.append(await process.stdin.read())
        else:
            process.stdout.write(file_line(b"../evil"))
            await process.stdin.read()
        process.exit(0)

    assert scp(OwnServer(command=command).connect, "-O", "host:asked", "other:there") == 1
    assert written in ([], [b""])
