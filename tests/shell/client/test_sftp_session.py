"""The commands of sftp against servers with ways of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest
from asyncssh.sftp import FXP_ATTRS, FXP_HANDLE, FXP_NAME, FXP_STATUS, FXP_VERSION

from pqtun.shell.client.connections import Connections
from pqtun.shell.client.copier import CopySettings
from pqtun.shell.client.loopthread import LoopThread
from pqtun.shell.client.remotestore import RemoteStore, open_sftp
from pqtun.shell.client.report import TerminalReport
from pqtun.shell.client.sftp import Sftp, parse_command
from pqtun.shell.client.sftpline import parse
from pqtun.shell.client.sftpsession import Session
from tests.shell.client.openssh import OwnServer, scp


def run(server: OwnServer, *lines: str) -> list[bool]:
    """Whether each line succeeded."""

    async def session() -> list[bool]:
        async with await server.connect() as connection:
            store = RemoteStore(await open_sftp(connection))
            report = TerminalReport("sftp", progress=False)
            commands = Session(store, await store.home(), CopySettings(), report, quiet=True)
            done = []
            for line in lines:
                command = parse(line)
                assert command is not None
                done.append(await commands.run(command))
            return done

    return asyncio.run(asyncio.wait_for(session(), 60))


def rooted(top: Path) -> Callable[[asyncssh.SSHServerChannel], asyncssh.SFTPServer]:
    return lambda channel: asyncssh.SFTPServer(channel, chroot=str(top).encode())


@pytest.mark.parametrize(("version", "swapped"), [("AsyncSSH_2", False), ("tinyssh_20250501", True)])
def test_links_on_servers_that_take_them_the_other_way_round(tmp_path: Path, version: str, swapped: bool) -> None:
    links: list[tuple[bytes, bytes]] = []

    class Server(asyncssh.SFTPServer):
        def symlink(self, oldpath: bytes, newpath: bytes) -> None:
            links.append((oldpath, newpath))

    def factory(channel: asyncssh.SSHServerChannel) -> asyncssh.SFTPServer:
        return Server(channel, chroot=str(tmp_path).encode())

    assert run(OwnServer(sftp=factory, version=version), "ln -s target link") == [True]
    assert links == ([(b"/link", b"target")] if swapped else [(b"target", b"/link")])


def test_directories_and_names_with_patterns_in_them(tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "x*y").write_text("odd")
    (tmp_path / "a[1]" / "xzy").write_text("plain")
    lines = [
        "cd 'a[1]'",
        "rm 'x*y'",
        "ls x*",
        "cd ..",
        "cd none",
        "rm none*",
        "chmod 9 x",
        "chown root x",
        "rmdir 'a[1]'",
    ]
    server = OwnServer(sftp=rooted(tmp_path))
    assert run(server, *lines) == [True, True, True, True, False, False, False, False, False]
    assert [path.name for path in (tmp_path / "a[1]").iterdir()] == ["xzy"]


def test_copies_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "dir").mkdir()
    server = OwnServer(sftp=rooted(tmp_path))
    assert run(server, "cp file copy", "cp file dir", "cp dir other", "cp file file") == [True, True, False, False]
    assert (tmp_path / "copy").read_text() == (tmp_path / "dir" / "file").read_text() == "content"
    assert (tmp_path / "file").read_text() == "content"


def test_renaming_and_links(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    server = OwnServer(sftp=rooted(tmp_path))
    done = run(server, "rename -l one two", "rename one two", "ln two hard", "chmod -h 600 hard", "rename none x", "df")
    assert done == [False, True, True, True, False, True]
    assert (tmp_path / "two").read_text() == (tmp_path / "hard").read_text() == "1"


def test_a_directory_of_which_nothing_is_told_is_listed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Silent(asyncssh.SFTPServer):
        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            return asyncssh.SFTPAttrs(size=1)

    (tmp_path / "file").touch()
    assert run(OwnServer(sftp=lambda channel: Silent(channel, chroot=str(tmp_path).encode())), "ls") == [True]
    assert capfd.readouterr().out == "file\n"


def sftp(server: OwnServer, *arguments: str) -> int:
    """The exit code of sftp with such a command line."""
    command = parse_command(arguments)
    loop = LoopThread()
    connections = Connections(command, lambda options: server.connect())
    try:
        return Sftp(command, connections, TerminalReport("sftp", progress=False), loop).run()
    finally:
        loop.foreground(connections.close(at_once=True))
        loop.close()


def test_a_path_that_may_not_be_seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Closed(asyncssh.SFTPServer):
        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            raise asyncssh.SFTPPermissionDenied("no")

    assert sftp(OwnServer(sftp=Closed), "-q", "host:/secret/file") == 1
    assert capfd.readouterr().err == "sftp: /secret/file: Permission denied\n"


@pytest.mark.parametrize("answer", [FXP_ATTRS, FXP_HANDLE, FXP_NAME, FXP_STATUS])
def test_answers_that_are_none(tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: int) -> None:
    """A server that begins well, and cuts every other answer off."""

    async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(bytes([0, 0, 0, 5, FXP_VERSION, 0, 0, 0, 3]))
        await process.stdin.readexactly(int.from_bytes(await process.stdin.readexactly(4)))
        while size := int.from_bytes(await process.stdin.read(4)):
            number = (await process.stdin.readexactly(size))[1:5]
            process.stdout.write(bytes([0, 0, 0, 7, answer]) + number + b"\0\0")

    (tmp_path / "file").touch()
    server = OwnServer(command=command)
    assert sftp(server, "-q", "-s", "/some/sftp-server", "host") == 255
    assert scp(server.connect, "-D", "/some/sftp-server", f"{tmp_path}/file", "host:file") == 1
    assert scp(server.connect, "-rD", "/some/sftp-server", "host:*", f"{tmp_path}/file") == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 3
    assert said[0].startswith("sftp: no SFTP on this connection: ")
