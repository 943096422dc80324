"""OpenSSH's client as a passenger of our master."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pqtun.shell.client.mux_messages import NO_ESCAPE, VERSION, Hello, NewSession, SessionOpened, decode, encode
from tests.net.process import wait_until
from tests.shell.client.shared import Shared
from tests.shell.client.sshd import ADDRESS, PORT, Sshd
from tests.shell.client.terminals import Terminal

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def shared(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    master = Shared(sshd, tmp_path_factory.mktemp("mux"))
    yield master
    master.process.stop()


def test_the_exit_code_is_the_commands(shared: Shared) -> None:
    for code in (0, 3, 255):
        assert shared.run("host", f"exit {code}").returncode == code
    assert shared.run("host", "kill -TERM $$").returncode == 255


def test_stdout_and_stderr_are_apart_and_clean(shared: Shared) -> None:
    blob = os.urandom(3 << 20)
    ended = shared.run("host", "tee /dev/stderr", stdin=blob)
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(blob).digest()
    assert hashlib.sha256(ended.stderr).digest() == hashlib.sha256(blob).digest()


def test_the_end_of_stdin_is_not_the_end_of_the_session(shared: Shared) -> None:
    assert shared.run("host", "cat; echo then; echo faults >&2; exit 7", stdin=b"first\n").stdout == b"first\nthen\n"
    assert shared.run("-n", "host", "cat; echo no input").stdout == b"no input\n"


def test_files_may_be_stdin_and_stdout(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(blob := os.urandom(300_000))
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        assert subprocess.run(shared.argv("host", "cat"), stdin=source, stdout=sink, timeout=20).returncode == 0
    assert (tmp_path / "out").read_bytes() == blob


def test_the_environment_and_subsystems_are_passed(shared: Shared) -> None:
    os.environ["SHARED_WORD"] = "über"
    try:
        ended = shared.run("-o", "SendEnv=SHARED_WORD", "host", "printf %s $SHARED_WORD")
    finally:
        del os.environ["SHARED_WORD"]
    assert ended.stdout.decode() == "über"
    process = shared.popen("-s", "host", "sftp")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\0\0\0\5\1\0\0\0\3")  # SSH_FXP_INIT of version 3, answered by SSH_FXP_VERSION
    process.stdin.flush()
    assert process.stdout.read(5)[4:] == b"\2"
    process.communicate(timeout=20)


def test_output_that_nobody_reads_ends_the_command(shared: Shared) -> None:
    process = shared.popen("host", "yes")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(20) != 0
    process.communicate()


def test_a_terminal_has_its_size_and_modes_and_follows_them(shared: Shared) -> None:
    until = 'until [ "$(stty size)" = "40 120" ]; do :; done'
    command = f"stty size; stty -a | grep -o -- '-\\?ixon'; {until}; echo resized; read x; exit 5"
    with Terminal(shared.argv("-tt", "host", command), rows=31, columns=97, ixon=False) as terminal:
        terminal.wait_for("31 97")
        terminal.wait_for("-ixon")
        terminal.resize(40, 120)
        terminal.wait_for("resized")
        terminal.type("\r")
        assert terminal.wait() == 5
        assert not terminal.raw


def test_sessions_at_once(shared: Shared) -> None:
    processes = [shared.popen("host", f"read word; echo $word {n}; exit {n}") for n in range(30)]
    for n, process in enumerate(processes):
        output, _ = process.communicate(b"word\n", timeout=30)
        assert (output, process.returncode) == (f"word {n}\n".encode(), n)


def test_stdio_forward(shared: Shared) -> None:
    process = shared.popen("-W", f"{ADDRESS}:{PORT}", "host")
    assert process.stdout is not None
    assert process.stdout.read(8) == b"SSH-2.0-"
    process.communicate()
    refused = shared.run("-W", f"{ADDRESS}:1", "host")
    assert b"tdio forwarding request failed" in refused.stderr
    assert refused.returncode == 255


def _reaches_sshd(shared: Shared, port: int) -> bool:
    script = f"exec 3<>/dev/tcp/{ADDRESS}/{port} && head -c 4 <&3"
    return shared.sshd.lab.run(shared.sshd.ns, "bash", "-c", script, check=False).stdout == "SSH-"


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_forwards_are_added_and_removed(shared: Shared, flag: str) -> None:
    forward = f"2201:{ADDRESS}:{PORT}"
    for _ in range(2):  # the second time it is there already
        assert shared.run("-O", "forward", flag, forward, "host").returncode == 0
        assert _reaches_sshd(shared, 2201)
    assert shared.run("-O", "cancel", flag, forward, "host").returncode == 0
    wait_until(lambda: not shared.sshd.lab.listening(shared.sshd.ns, 2201), 10, "the listener to be gone")
    assert b"port not forwarded" in shared.run("-O", "cancel", flag, forward, "host").stderr


def test_a_remote_port_of_the_servers_choice(shared: Shared) -> None:
    forward = f"0:{ADDRESS}:{PORT}"
    ended = shared.run("-O", "forward", "-R", forward, "host")
    assert _reaches_sshd(shared, int(ended.stdout))
    assert shared.run("-O", "cancel", "-R", forward, "host").returncode == 0


def test_sockets_of_the_file_system(shared: Shared, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert shared.run("-O", "forward", "-L", f"{path}:{ADDRESS}:{PORT}", "host").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(10)
        probe.connect(str(path))
        assert probe.recv(4) == b"SSH-"
    assert shared.run("-O", "cancel", "-L", f"{path}:{ADDRESS}:{PORT}", "host").returncode == 0
    assert not path.exists()


def test_dynamic(shared: Shared) -> None:
    assert shared.run("-O", "forward", "-D", "2203", "host").returncode == 0
    proxy = r"printf '\x04\x01\x00\x16\x7f\x00\x00\x01\x00' >&3"  # SOCKS4: connect to 127.0.0.1:22
    script = f"exec 3<>/dev/tcp/{ADDRESS}/2203; {proxy}; head -c 12 <&3 | tail -c 4"
    assert shared.sshd.lab.run(shared.sshd.ns, "bash", "-c", script).stdout == "SSH-"
    assert shared.run("-O", "cancel", "-D", "2203", "host").returncode == 0


def test_a_forward_that_cannot_be_is_said_to(shared: Shared) -> None:
    assert b"orwarding failed" in shared.run("-O", "forward", "-L", f"{PORT}:x:1", "host").stderr
    assert b"orwarding failed" in shared.run("-O", "forward", "-R", f"{PORT}:x:1", "host").stderr


def test_check_and_proxy(shared: Shared) -> None:
    assert f"pid={shared.process.pid}" in shared.run("-O", "check", "host").stderr.decode()
    assert b"unsupported request" in shared.run("-O", "proxy", "host").stderr


def test_a_killed_client_takes_its_session_along(shared: Shared, tmp_path: Path) -> None:
    process = shared.popen("host", f"echo $$ > {tmp_path}/pid; echo up; exec cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    pid = int((tmp_path / "pid").read_text())
    process.kill()
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the command to be gone")
    assert shared.run("host", "echo others go on").stdout == b"others go on\n"


def test_other_users_are_refused(shared: Shared) -> None:
    shared.path.parent.chmod(0o755)
    for parent in list(shared.path.parents)[1:3]:
        parent.chmod(0o755)
    os.chmod(shared.path, 0o666)  # as if the mode did not keep them out
    try:
        script = (
            "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
            "s.settimeout(10); s.connect(sys.argv[1]); print(len(s.recv(100)))"
        )
        argv = [sys.executable, "-c", script, str(shared.path)]
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    finally:
        os.chmod(shared.path, 0o600)
    assert ended.stdout == "0\n", ended.stderr
    assert shared.run("host", "echo ours").stdout == b"ours\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        b"\0\0\0\0",
        bytes.fromhex("0000000c 00000001 00000003 00000000"),  # another version
        bytes.fromhex("00000008 10000004 00000001"),  # no hello
        bytes.fromhex("00000008 00000001 00000004 00000008 00000001 00000004"),  # hello twice
        bytes.fromhex("00000008 00000001 00000004 00000008 80000001 00000004"),  # what a master says
    ],
)
def test_nonsense_ends_its_client_alone(shared: Shared, garbage: bytes) -> None:
    with _connected(shared) as probe:
        probe.sendall(garbage)
        while probe.recv(1000):
            pass
    assert shared.run("host", "echo unharmed").stdout == b"unharmed\n"


def test_descriptors_of_clients_that_fail_are_closed(shared: Shared) -> None:
    hello, session = encode(Hello(VERSION)), encode(_session("true"))
    for first, count, refused in (
        (hello, 1, False),
        (hello, 3, False),
        (hello, 4, True),
        (session, 2, False),
        (session, 3, True),
        (hello + session, 2, False),
    ):
        with _connected(shared) as probe, open("/dev/null", "rb") as null:
            assert probe.recv(1000) == hello
            probe.sendall(first)
            for _ in range(count):
                socket.send_fds(probe, [b"\0"], [null.fileno()])
            if refused:
                assert probe.recv(1000) == b""
    for _ in range(3):
        with _connected(shared) as probe:
            probe.sendall(hello[:7])
    shared.wait_quiet()


def _session(command: str) -> NewSession:
    return NewSession(1, "", False, False, False, False, NO_ESCAPE, "", command)


def test_who_goes_before_the_session_is_there_leaves_nothing(shared: Shared) -> None:
    command = f"yes {100_000 + os.getpid()}"  # ends when nobody takes what it writes
    for wait in (False, True):
        with _connected(shared) as probe, open("/dev/null", "r+b") as null:
            hello = probe.recv(1000)
            probe.sendall(hello + encode(_session(f"exec {command}")))
            for _ in range(3):
                socket.send_fds(probe, [b"\0"], [null.fileno()])
            if wait:
                assert isinstance(decode(probe.recv(1000)[4:]), SessionOpened)
    shared.wait_quiet()
    wait_until(lambda: not _running(command), 10, "the commands to end")


def _running(command: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().replace(b"\0", b" ").strip() == command.encode():
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def _connected(shared: Shared) -> socket.socket:
    probe = socket.socket(socket.AF_UNIX)
    probe.settimeout(10)
    probe.connect(str(shared.path))
    return probe
