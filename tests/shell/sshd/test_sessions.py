"""Sessions as users have them: OpenSSH's client and asyncssh's, against the user's process and the channels."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from pqtun.daemon.settings import SshdSettings
from tests.net.process import wait_until
from tests.shell.sshd.driver import HOST, Server, asyncssh, connected, permission, processes, run
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root


def test_exit_codes_and_signals(world: World) -> None:
    def body() -> None:
        with Server() as server:
            for command, code in (("true", 0), ("exit 3", 3), ("exit 255", 255), ("kill -KILL $$", 255)):
                assert server.ssh(HOST, command).returncode == code, command

            async def ends(connection: asyncssh.SSHClientConnection) -> None:
                for name in ("KILL", "TERM", "HUP", "USR1"):
                    result = await connection.run(f"kill -{name} $$")
                    assert result.exit_signal is not None
                    assert result.exit_signal[0] == name
                result = await connection.run("kill -BUS $$")
                assert result.exit_signal is not None
                assert result.exit_signal[0] == "SIG@openssh.com"  # RFC 4254 has no name for it

            connected(server, ends)

    run(world, body)


def test_output_and_errors_are_apart_and_end_apart(world: World) -> None:
    def body() -> None:
        with Server() as server:
            result = server.ssh(
                HOST, "echo out; echo err >&2; echo /dev/stdout >/dev/stdout; cat /dev/stdin", stdin=b"in"
            )
            assert (result.stdout, result.stderr) == (b"out\n/dev/stdout\nin", b"err\n")
            result = server.ssh(HOST, "exec 1>&-; echo still >&2; exit 7")
            assert (result.stdout, result.stderr, result.returncode) == (b"", b"still\n", 7)

    run(world, body)


def test_each_half_closes_by_itself(world: World) -> None:
    def body() -> None:
        with Server() as server:
            assert server.ssh(HOST, "cat; echo after the end", stdin=b"x\n").stdout == b"x\nafter the end\n"
            assert server.ssh(HOST, "sort -r", stdin=b"a\nc\nb\n").stdout == b"c\nb\na\n"
            # What does not read its input must not keep the client from ending.
            assert server.ssh(HOST, "exec 0<&-; echo none", stdin=bytes(3_000_000)).stdout == b"none\n"

    run(world, body)


def test_twenty_megabytes_each_way(world: World) -> None:
    def body() -> None:
        data = os.urandom(1 << 20) * 20 + b"\r\n\0\xff~."
        digest = hashlib.sha256(data).hexdigest().encode()
        with Server() as server:
            assert server.ssh(HOST, "sha256sum", stdin=data).stdout.split()[0] == digest
            assert hashlib.sha256(server.ssh(HOST, "cat", stdin=data).stdout).hexdigest().encode() == digest

    run(world, body)


def test_a_login_shell(world: World) -> None:
    def body() -> None:
        Path("/home/bob/.profile").write_text("echo profile was read\n")
        with Server(user="bob") as server:
            result = server.ssh(HOST, stdin=b'echo "$0 $PWD $TERM"\nexit 9\n')
            assert result.stdout == b"profile was read\n-bash /home/bob dumb\n"
            assert result.returncode == 9

    run(world, body)


def test_what_the_programs_process_is_like(world: World) -> None:
    """Nothing of root's, of the server's or of other users is within reach."""
    questions = (
        "id -un; id -Gn; umask; pwd; grep -h ^Cap...: /proc/self/status; ls /proc/self/fd | tr '\\n' ' '; echo;"
        "ps -o ppid= -p $$ | xargs -I{} ls /proc/{}/fd 2>&1 | tail -1; ps -o pid=,sid=,tty= -p $$"
    )

    def body() -> None:
        with Server() as server:
            result = server.ssh(HOST, questions, env={"LANG": "C.UTF-8"})
            lines = result.stdout.decode().splitlines()
            assert lines[:4] == ["alice", "alice staff audio", "0022", "/home/alice"]
            assert [line.split()[1] for line in lines[4:7]] == ["0" * 16] * 3  # inheritable, permitted, effective
            assert lines[9] == "0 1 2 3 "  # the last is ls' own
            assert "Permission denied" in lines[10]  # the server's process is not the user's to look into
            pid, session, tty = lines[11].split()
            assert (pid, tty) == (session, "?")

    run(world, body)


def test_environment_of_the_client(world: World) -> None:
    def body() -> None:
        with Server() as server:
            result = server.ssh(
                *("-o", "SetEnv=LC_PQTUN=yes LD_PRELOAD=/x PATH=/nowhere PQTUN=no LC_TIME=C"),
                *(HOST, 'echo "$LC_PQTUN|$LC_TIME|$LD_PRELOAD|$PQTUN|$PATH"'),
            )
            assert result.stdout.startswith(b"yes|C|||/usr/local/bin:")

    run(world, body)


class Terminal:
    """OpenSSH's client in a pseudo-terminal of the test's."""

    def __init__(self, argv: list[str], columns: int, rows: int) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            subprocess.run(["stty", "cols", str(columns), "rows", str(rows)], check=True)
            os.execvp(argv[0], argv)
        self.text = b""

    def wait_for(self, text: bytes) -> None:
        while text not in self.text:
            assert select.select([self.fd], [], [], 15)[0], self.text
            self.text += os.read(self.fd, 4096)  # EIO where it ends before
        self.text = self.text.split(text, 1)[1]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self) -> int:
        try:
            while True:
                assert select.select([self.fd], [], [], 15)[0], self.text
                self.text += os.read(self.fd, 4096)
        except OSError:
            pass  # EIO: it has ended
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal(world: World) -> None:
    """Size, resize, job control's signals, modes, TERM, the name in SSH_TTY, and the exit code."""

    def body() -> None:
        with Server(user="bob") as server:
            os.environ["TERM"] = "xterm-256color"
            terminal = Terminal(server.command("-tt", HOST), 100, 30)
            terminal.type(b"PS1='READY'; stty size; echo $TERM $SSH_TTY $(tty)\n")
            terminal.wait_for(b"30 100\r\n")
            terminal.wait_for(b"xterm-256color /dev/pts/")
            terminal.resize(132, 50)
            terminal.type(b"until [ \"$(stty size)\" = '50 132' ]; do :; done; echo size is new | rev\n")
            terminal.wait_for(b"wen si ezis")
            terminal.type(b"sh -c 'echo begun | rev; exec cat'\n")
            terminal.wait_for(b"nugeb")
            terminal.type(b"\x03")
            terminal.wait_for(b"READY")  # what is typed before is flushed by the interrupt
            terminal.type(b"echo $? | tr 0-9 a-j\n")
            terminal.wait_for(b"bda")  # 130
            terminal.type(b"exit 5\n")
            assert terminal.end() == 5
            wait_until(
                lambda: any(line.get("end") and line["op"] == "record" for line in server.audit()), 10, "the record"
            )

    run(world, body)


def test_a_terminal_hangs_up(world: World) -> None:
    """A client that dies takes what runs in the terminal with it, but not what nohup started."""

    def body() -> None:
        with Server(user="bob") as server:
            terminal = Terminal(server.command("-tt", HOST), 80, 24)
            terminal.type(b"nohup sleep 987654 >/dev/null 2>&1 &\n")
            terminal.type(b"sleep 987653; echo\n")
            wait_until(lambda: processes("987653") and processes("987654"), 10, "both programs")
            os.kill(terminal.pid, signal.SIGKILL)
            wait_until(lambda: not processes("sleep\x00987653"), 10, "the end of the terminal's program")
            (survivor,) = processes("sleep\x00987654")
            os.kill(survivor, signal.SIGKILL)
            terminal.end()

    run(world, body)


def test_the_shell_ends_although_something_in_the_background_holds_the_terminal(
    world: World,
) -> None:
    def body() -> None:
        with Server(user="bob") as server:
            terminal = Terminal(server.command("-tt", HOST), 80, 24)
            terminal.type(b"(trap '' HUP; exec sleep 987652) & exit 6\n")
            assert terminal.end() == 6
            for pid in processes("sleep\x00987652"):
                os.kill(pid, signal.SIGKILL)

    run(world, body)


def test_signals_of_the_client(world: World) -> None:
    def body() -> None:
        with Server() as server:

            async def send(connection: asyncssh.SSHClientConnection) -> None:
                traps = "trap 'echo got USR1; exit 4' USR1; trap 'echo got ALRM; exit 5' ALRM"
                script = f"{traps}; echo ready; while :; do sleep 0.05; done"
                process = await connection.create_process(script)
                assert await process.stdout.readline() == "ready\n"
                process.send_signal("ALRM")  # none that clients may send
                process.send_signal("USR1")
                result = await process.wait()
                assert (result.stdout, result.exit_status) == ("got USR1\n", 4)

            connected(server, send)

    run(world, body)


def test_no_signals_for_a_forced_command(world: World) -> None:
    def body() -> None:
        with Server(permission=permission(command='echo "forced: $SSH_ORIGINAL_COMMAND"; cat')) as server:

            async def send(connection: asyncssh.SSHClientConnection) -> None:
                process = await connection.create_process("echo mine")
                assert await process.stdout.readline() == "forced: echo mine\n"
                process.send_signal("TERM")
                process.stdin.write("on\n")
                assert await process.stdout.readline() == "on\n"
                process.stdin.write_eof()
                assert (await process.wait()).exit_status == 0

            connected(server, send)
            assert server.ssh(HOST, stdin=b"").stdout == b"forced: \n"

    run(world, body)


def test_what_a_key_forbids(world: World) -> None:
    def body() -> None:
        with Server(permission=permission(pty=False, command="internal-sftp")) as server:
            result = server.ssh(HOST, "id")
            assert result.returncode == 1
            assert b"sftp only" in result.stderr
            result = server.ssh("-tt", HOST, stdin=b"")
            assert b"PTY allocation request failed" in result.stderr

    run(world, body)


def test_fifty_channels_at_once(world: World) -> None:
    def body() -> None:
        with Server() as server:

            async def many(connection: asyncssh.SSHClientConnection) -> None:
                async def one(number: int) -> None:
                    data = os.urandom(1) * 100_000
                    result = await connection.run(f"cat; exit {number}", input=data, encoding=None)
                    assert result.stdout == data
                    assert result.exit_status == number

                await asyncio.gather(*(one(number) for number in range(50)))

            connected(server, many)

    run(world, body)


def test_too_many_sessions(world: World) -> None:
    def body() -> None:
        with Server(settings=SshdSettings(max_channels=3)) as server:

            async def many(connection: asyncssh.SSHClientConnection) -> None:
                running = [await connection.create_process("cat") for _ in range(3)]
                refused = await connection.run("echo", input="")
                assert "too many sessions" in str(refused.stderr)
                for process in running:
                    process.stdin.write_eof()
                    await process.wait()
                assert (await connection.run("echo again")).stdout == "again\n"

            connected(server, many)

    run(world, body)


def test_a_client_that_dies_in_mid_transfer_leaves_nothing(world: World) -> None:
    def body() -> None:
        with Server() as server:
            before = set(processes(""))
            client = subprocess.Popen(
                ["sh", "-c", 'cat /dev/zero | "$@"', "sh", *server.command(HOST, "cat | tail -c +987651 | cat")],
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            assert client.stdout is not None
            client.stdout.read(20_000_000)
            os.killpg(client.pid, signal.SIGKILL)
            client.communicate()
            wait_until(lambda: not (set(processes("")) - before), 10, "the end of all that was started")

    run(world, body)


def test_the_audit_has_each_session(world: World) -> None:
    def body() -> None:
        with Server() as server:
            server.ssh(HOST, "echo hello; exit 3", stdin=b"secret content")
            server.ssh(HOST, "x" * 3000)
            lines = wait_until(lambda: len(server.audit()) == 4 and server.audit(), 10, "the last line")
            assert [line["state"] for line in lines] == ["start", "end", "start", "end"]
            assert lines[0]["event"] == "command"
            assert lines[0]["text"] == "echo hello; exit 3"
            assert (lines[1]["status"], lines[1]["bytes_out"]) == (3, 6)
            assert len(lines[2]["text"]) == 1024
            assert "secret" not in str(lines)

    run(world, body)
