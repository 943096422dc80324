"""SFTP, and scp's old protocol where the host has no scp: OpenSSH's programs against the servers built in."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.net.process import wait_until
from tests.shell.sshd.driver import HOST, OPTIONS, Server, asyncssh, connected, permission, processes, run
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root

HOME = Path("/home/alice")


def without_scp() -> None:
    """Hide the server's scp; the client is called by another path."""
    Path("/run/scp").write_bytes(Path("/usr/bin/scp").read_bytes())
    Path("/run/scp").chmod(0o755)
    subprocess.run(["mount", "--bind", "/dev/null", "/usr/bin/scp"], check=True)


def sftp(server: Server, *commands: str) -> subprocess.CompletedProcess[bytes]:
    batch = "".join(f"{command}\n" for command in commands).encode()
    return server.copy("sftp", "-b", "/dev/stdin", HOST, stdin=batch)


def owned(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    os.chown(path, 4001, 4001)
    return path


def test_files_there_and_back(world: World) -> None:
    def body() -> None:
        data = os.urandom(3_000_001)
        Path("/run/file").write_bytes(data)
        Path("/run/file").chmod(0o750)
        with Server() as server:
            result = sftp(
                server,
                *("put /run/file there", "put -p /run/file kept", "mkdir some", "rename there some/thing"),
                *("get some/thing /run/back", "ln -s thing some/link", "ln some/thing some/hard", "ls -l some"),
                *("chmod 600 some/hard", "rm some/link", "pwd", "df", "cd /", "ls home"),
            )
            assert result.returncode == 0, result.stderr
            assert Path("/run/back").read_bytes() == data
            assert (HOME / "some" / "hard").stat().st_nlink == 2
            assert (HOME / "some" / "thing").stat().st_mode & 0o7777 == 0o600
            assert (HOME / "kept").stat().st_mode & 0o7777 == 0o750
            assert (HOME / "kept").stat().st_uid == 4001
            assert b"Remote working directory: /home/alice" in result.stdout
            assert b"alice" in result.stdout
            wait_until(lambda: server.audit()[-1].get("state") == "end", 10, "the last line")
            transfers = [line for line in server.audit() if line["event"] == "transfer"]
            assert [(line["path"], line["read"], line["written"]) for line in transfers] == [
                ("/home/alice/there", 0, len(data)),
                ("/home/alice/kept", 0, len(data)),
                ("/home/alice/some/thing", len(data), 0),
            ]

    run(world, body)


def test_what_goes_wrong_is_said(world: World) -> None:
    def body() -> None:
        owned(HOME / "a", b"a")
        owned(HOME / "b", b"b")
        Path("/home/alice/roots").mkdir(mode=0o700)
        with Server() as server:
            for command, reason in (
                ("get missing", b"not found"),
                ("ls roots", b"Permission denied"),
                ("put /etc/hostname /etc/x", b"Permission denied"),
                ("rmdir .ssh", b"No such file"),
                ("cd a", b"not a directory"),
                ("rm /etc/passwd", b"Permission denied"),
            ):
                result = sftp(server, command)
                assert result.returncode != 0, command
                assert reason in result.stderr, (command, result.stderr)

            async def rename(connection: asyncssh.SSHClientConnection) -> None:
                async with connection.start_sftp_client() as client:
                    with pytest.raises(asyncssh.SFTPFailure, match="exists"):
                        await client.rename("a", "b")
                    with pytest.raises(asyncssh.SFTPError):
                        await client.listdir("missing")
                    await client.posix_rename("a", "b")
                    assert await client.listdir(".") != []
                    assert await client.realpath("./x/../b") == "/home/alice/b"
                    await client.symlink("/target/that/is/not", "dangling")
                    assert await client.readlink("dangling") == "/target/that/is/not"

            connected(server, rename)

    run(world, body)


def test_resume_and_append(world: World) -> None:
    def body() -> None:
        data = os.urandom(2_000_000)
        Path("/run/file").write_bytes(data)
        owned(HOME / "file", data[:700_000])
        Path("/run/half").write_bytes(data[:1_000_000])
        with Server() as server:
            assert sftp(server, "reput /run/file file", "reget file /run/half").returncode == 0
            assert (HOME / "file").read_bytes() == data
            assert Path("/run/half").read_bytes() == data

    run(world, body)


def test_a_big_directory(world: World) -> None:
    def body() -> None:
        directory = HOME / "many"
        directory.mkdir()
        for number in range(3000):
            (directory / f"file-{number}").touch()
        os.chown(directory, 4001, 4001)
        with Server() as server:
            result = sftp(server, "ls -l many")
            assert len([line for line in result.stdout.splitlines() if b"file-" in line]) == 3000

    run(world, body)


def test_new_scp(world: World) -> None:
    """It speaks SFTP, and has the server expand ~."""

    def body() -> None:
        tree = Path("/run/tree")
        (tree / "below").mkdir(parents=True)
        (tree / "below" / "file").write_bytes(b"content")
        with Server() as server:
            assert server.copy("scp", "-r", "/run/tree", f"{HOST}:copy").returncode == 0
            assert (HOME / "copy" / "below" / "file").read_bytes() == b"content"
            result = server.copy("scp", "-p", f"{HOST}:~/copy/below/*", "/run/back")
            assert result.returncode == 0, result.stderr
            assert Path("/run/back").read_bytes() == b"content"
            assert server.copy("scp", f"{HOST}:missing", "/run/x").returncode == 1

    run(world, body)


def test_old_scp_without_a_program_scp(world: World) -> None:
    def body() -> None:
        without_scp()
        tree = Path("/run/tree")
        (tree / "below" / "deeper").mkdir(parents=True)
        data = os.urandom(1_000_001)
        (tree / "program").write_bytes(data)
        (tree / "program").chmod(0o755)
        (tree / "below" / "empty").touch()
        (tree / "below" / "deeper" / "a file").write_bytes(b"x")
        os.utime(tree / "below" / "empty", (1_000_000_000, 1_100_000_000))
        with Server() as server:

            def scp(*arguments: str) -> subprocess.CompletedProcess[bytes]:
                return server.copy("/run/scp", "-O", *arguments)

            result = scp("-r", "-p", "/run/tree", f"{HOST}:copy")
            assert result.returncode == 0, result.stderr
            copy = HOME / "copy"
            assert (copy / "program").read_bytes() == data
            assert (copy / "program").stat().st_mode & 0o7777 == 0o755
            assert (copy / "below" / "empty").stat().st_mtime == 1_100_000_000
            assert (copy / "below" / "deeper" / "a file").read_bytes() == b"x"
            result = scp("-r", f"{HOST}:~/copy", "/run/back")
            assert result.returncode == 0, result.stderr
            assert Path("/run/back/program").read_bytes() == data
            assert Path("/run/back/below/deeper/a file").read_bytes() == b"x"
            (HOME / "copy" / "program").chmod(0o4777)
            assert scp(f"{HOST}:copy/p*", "/run/one").returncode == 0
            assert Path("/run/one").read_bytes() == data
            assert scp(f"{HOST}:missing", "/run/x").returncode == 1
            assert scp("/run/one", f"{HOST}:/etc/x").returncode == 1
            assert scp("/run/one", "/run/back/program", f"{HOST}:copy/program").returncode == 1  # no directory
            paths = [line["path"] for line in server.audit() if line["event"] == "transfer"]
            assert "/home/alice/copy/below/deeper/a file" in paths  # the first of many connections had it

    run(world, body)


def test_old_scp_with_the_hosts_own(world: World) -> None:
    def body() -> None:
        Path("/run/file").write_bytes(b"x")
        with Server() as server:
            assert server.copy("scp", "-O", "/run/file", f"{HOST}:file").returncode == 0
            assert (HOME / "file").read_bytes() == b"x"
            assert [line["event"] for line in server.audit()][:1] == ["command"]

    run(world, body)


def test_a_key_that_may_only_read(world: World) -> None:
    def body() -> None:
        owned(HOME / "file", b"content")
        with Server(permission=permission(command="internal-sftp -R")) as server:
            assert sftp(server, "get file /run/file").returncode == 0
            assert Path("/run/file").read_bytes() == b"content"
            changes = ("put /run/file new", "put /run/file file", "rm file", "mkdir new", "chmod 612 file")
            changes += ("rename file new", "ln file new", "ln -s file new")
            result = sftp(server, *(f"-{change}" for change in changes))
            complaints = [
                line for line in result.stderr.splitlines() if b"ermission denied" in line or b"upported" in line
            ]
            assert len(complaints) == len(changes), result.stderr
            assert (HOME / "file").read_bytes() == b"content"
            assert (HOME / "file").stat().st_mode & 0o777 != 0o612
            assert [path.name for path in HOME.iterdir()] == ["file"]

    run(world, body)


def test_a_login_shell_that_is_none_forbids_copying(world: World) -> None:
    world.user("carol", 4005, shell="/usr/sbin/nologin")

    def body() -> None:
        with Server(user="carol") as server:
            assert sftp(server, "pwd").returncode != 0
        with Server(user="carol", permission=permission(command="internal-sftp")) as server:
            assert sftp(server, "pwd").returncode == 0  # which somebody has allowed explicitly

    run(world, body)


def test_a_client_killed_in_mid_transfer(world: World) -> None:
    def body() -> None:
        os.truncate(owned(HOME / "big"), 1 << 30)
        with Server() as server:
            before = set(processes(""))
            argv = ["sftp", *OPTIONS, "-P", str(server.port), "-o", "User=alice", f"{HOST}:big", "/run/big"]
            client = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL)
            wait_until(lambda: Path("/run/big").exists() and Path("/run/big").stat().st_size > 1 << 20, 20, "data")
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
            wait_until(lambda: not (set(processes("")) - before), 10, "the end of all processes")
            wait_until(lambda: any(line["event"] == "transfer" for line in server.audit()), 10, "a line for it")

    run(world, body)


def test_rsync(world: World) -> None:
    if subprocess.run(["which", "rsync"], capture_output=True).returncode != 0:
        pytest.skip("needs rsync")

    def body() -> None:
        data = os.urandom(500_000)
        Path("/run/tree/below").mkdir(parents=True)
        Path("/run/tree/below/file").write_bytes(data)
        with Server() as server:
            shell = " ".join(server.command()[:-2])
            for source, target in (("/run/tree/", f"alice@{HOST}:copy"), (f"alice@{HOST}:copy/", "/run/back")):
                result = subprocess.run(["rsync", "-a", "-e", shell, source, target], capture_output=True, timeout=30)
                assert result.returncode == 0, result.stderr
            digest = hashlib.sha256(Path("/run/back/below/file").read_bytes()).digest()
            assert digest == hashlib.sha256(data).digest()

    run(world, body)
