"""Our client as a passenger of OpenSSH's master and of our own."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.process import wait_until
from tests.shell.client.mux_rider import NO_MASTER
from tests.shell.client.shared import Shared
from tests.shell.client.sshd import ADDRESS, PORT, Sshd
from tests.shell.client.terminals import Terminal

pytestmark = pytest.mark.net

RIDER = Path(__file__).with_name("mux_rider.py")
ROOT = Path(__file__).parents[3]


class Master:
    """A master and our client's way to it."""

    def __init__(self, sshd: Sshd, path: Path, pid: int) -> None:
        self.sshd, self.path, self.pid = sshd, path, pid
        self.env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, str(RIDER), "-F", "none", "-S", str(self.path), *arguments]

    def run(self, *arguments: str, stdin: bytes = b"", timeout: float = 20) -> subprocess.CompletedProcess[bytes]:
        argv = self.argv(*arguments)
        return subprocess.run(argv, input=stdin, capture_output=True, timeout=timeout, env=self.env)

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv(*arguments), stdin=pipe, stdout=pipe, stderr=pipe, env=self.env)


@pytest.fixture(scope="module", params=["openssh", "pqtun"])
def master(request: pytest.FixtureRequest, sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    directory = tmp_path_factory.mktemp("mux")
    if request.param == "pqtun":
        shared = Shared(sshd, directory)
        yield Master(sshd, shared.path, shared.process.pid)
        shared.process.stop()
        return
    path = directory / "control"
    argv = ["ssh", *sshd.options(), "-o", "SendEnv=SHARED_*", "-M", "-N", "-S", str(path), f"root@{ADDRESS}"]
    process = sshd.lab.spawn(sshd.ns, *argv)
    wait_until(path.exists, 20, "OpenSSH's control socket")
    yield Master(sshd, path, process.pid)
    process.stop()


def test_the_exit_code_is_the_commands(master: Master) -> None:
    for code in (0, 3, 255):
        assert master.run("host", f"exit {code}").returncode == code
    assert master.run("host", "kill -TERM $$").returncode == 255


def test_data_is_clean_and_faults_are_apart(master: Master) -> None:
    blob = os.urandom(1 << 20)
    ended = master.run("host", "tee /dev/stderr; exit 4", stdin=blob)
    assert ended.returncode == 4
    assert hashlib.sha256(ended.stdout).digest() == hashlib.sha256(blob).digest()
    assert hashlib.sha256(ended.stderr).digest() == hashlib.sha256(blob).digest()
    assert master.run("-n", "host", "cat; echo no input").stdout == b"no input\n"


def test_variables(master: Master) -> None:
    ended = master.run("-o", "SetEnv=SHARED_ONE=1", "-o", "SendEnv=SHARED_T*", "host", "echo $SHARED_ONE$SHARED_TWO")
    assert ended.stdout == b"1\n"
    master.env["SHARED_TWO"] = "zwei"
    ended = master.run("-o", "SetEnv=SHARED_ONE=1", "-o", "SendEnv=SHARED_T*", "host", "echo $SHARED_ONE$SHARED_TWO")
    assert ended.stdout == b"1zwei\n"


def test_a_terminal_is_raw_meanwhile_and_follows_its_window(master: Master) -> None:
    until = 'until [ "$(stty size)" = "40 120" ]; do :; done'
    command = f"stty size; {until}; echo resized; read x; echo got $x; exit 5"
    with Terminal(master.argv("-t", "host", command), rows=31, columns=97, env=master.env) as terminal:
        terminal.wait_for("31 97")
        wait_until(lambda: terminal.raw, 10, "raw mode, which may come after the first output")
        terminal.resize(40, 120)
        terminal.wait_for("resized")
        terminal.type("word\r")
        terminal.wait_for("got word")
        terminal.wait_for("Shared connection to host closed.")
        assert terminal.wait() == 5
        assert not terminal.raw
        assert terminal.blocking


def test_escapes(master: Master) -> None:
    with Terminal(master.argv("-t", "host", "echo up; cat"), env=master.env) as terminal:
        terminal.wait_for("up")
        terminal.type("\r~?")
        terminal.wait_for("Supported escape sequences")
        terminal.type("\r~.")
        assert terminal.wait() == 255
        assert not terminal.raw


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_the_session_and_put_the_terminal_right(master: Master, number: signal.Signals) -> None:
    with Terminal(master.argv("-t", "host", "echo up; cat"), env=master.env) as terminal:
        terminal.wait_for("up")
        os.kill(terminal.process.pid, number)
        assert terminal.wait() == 255
        assert not terminal.raw


def _reaches_sshd(master: Master, port: int) -> bool:
    script = f"exec 3<>/dev/tcp/{ADDRESS}/{port} && head -c 4 <&3"
    return master.sshd.lab.run(master.sshd.ns, "bash", "-c", script, check=False).stdout == "SSH-"


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_forwards(master: Master, flag: str) -> None:
    forward = f"2301:{ADDRESS}:{PORT}"
    assert master.run("-O", "forward", flag, forward, "host").returncode == 0
    assert _reaches_sshd(master, 2301)
    assert master.run("-O", "cancel", flag, forward, "host").returncode == 0
    wait_until(lambda: not master.sshd.lab.listening(master.sshd.ns, 2301), 10, "the listener to be gone")
    refused = master.run("-O", "cancel", flag, forward, "host")
    assert refused.returncode == 255
    assert b"port not forwarded" in refused.stderr


def test_a_remote_port_of_the_servers_choice_is_printed(master: Master) -> None:
    forward = f"0:{ADDRESS}:{PORT}"
    assert _reaches_sshd(master, int(master.run("-O", "forward", "-R", forward, "host").stdout))
    assert master.run("-O", "cancel", "-R", forward, "host").returncode == 0


def test_a_session_brings_its_forwards(master: Master) -> None:
    process = master.popen("-L", f"2302:{ADDRESS}:{PORT}", "host", "echo up; cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert _reaches_sshd(master, 2302)
    process.communicate()
    busy = master.run("-o", "ExitOnForwardFailure=yes", "-L", f"{PORT}:x:1", "host", "echo not run")
    assert (busy.returncode, busy.stdout) == (255, b"")
    assert master.run("-L", f"{PORT}:x:1", "host", "echo run").stdout == b"run\n"


def test_forwards_without_a_session_go_with_their_program(master: Master) -> None:
    process = master.popen("-N", "-L", f"2303:{ADDRESS}:{PORT}", "host")
    wait_until(lambda: master.sshd.lab.listening(master.sshd.ns, 2303), 10, "the listener")
    process.terminate()
    process.communicate(timeout=20)
    wait_until(lambda: not master.sshd.lab.listening(master.sshd.ns, 2303), 10, "the listener to be gone")


def test_stdio_forward(master: Master) -> None:
    process = master.popen("-W", f"{ADDRESS}:{PORT}", "host")
    assert process.stdout is not None
    assert process.stdout.read(8) == b"SSH-2.0-"
    process.communicate(timeout=20)
    refused = master.run("-W", f"{ADDRESS}:1", "host")
    assert refused.returncode == 255
    assert b"Stdio forwarding request failed" in refused.stderr


def test_the_background(master: Master, tmp_path: Path) -> None:
    argv = master.argv("-f", "host", f"echo $$ > {tmp_path}/pid; cat; exec sleep 1000")
    # The command keeps stdout and stderr, as with ssh.
    assert subprocess.run(argv, env=master.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def started() -> str:
        try:
            return (tmp_path / "pid").read_text().strip()
        except FileNotFoundError:
            return ""

    pid = int(wait_until(started, 10, "the command"))
    os.kill(pid, signal.SIGKILL)


def test_check_and_what_is_not_offered(master: Master) -> None:
    assert f"pid={master.pid}" in master.run("-O", "check", "host").stderr.decode()
    assert b"-O proxy is not supported" in master.run("-O", "proxy", "host").stderr


def test_without_a_master(tmp_path: Path) -> None:
    nobody = Master(None, tmp_path / "none", 0)  # type: ignore[arg-type]
    assert nobody.run("host", "true").returncode == NO_MASTER
    assert b"no master listens there" in nobody.run("-O", "check", "host").stderr
    assert b"No ControlPath" in nobody.run("-S", "none", "-O", "check", "host").stderr
    assert b"ControlPath too long" in nobody.run("-S", f"/{'x' * 108}", "host").stderr
    (tmp_path / "none").write_text("no socket")
    assert nobody.run("host", "true").returncode == NO_MASTER


def test_the_master_of_another_user_gets_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:2]:
        parent.chmod(0o755)
    script = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        "s.bind(sys.argv[1]); s.listen(); os.chmod(sys.argv[1], 0o666); print('up', flush=True); "
        "c, _ = s.accept(); print(len(c.recv(100)), flush=True)"
    )
    path = tmp_path / "theirs"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as thief:
        try:
            assert thief.stdout is not None
            assert thief.stdout.readline() == b"up\n"
            # As a user, since root is who would be deceived last: it may be served by whom it likes.
            ended = Master(None, path, 0).run("host", "true")  # type: ignore[arg-type]
            assert b"another user" in ended.stderr
            assert thief.stdout.readline() == b"0\n"
        finally:
            thief.kill()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", b"closed the connection"),
        (bytes.fromhex("00000008 00000001 00000005"), b"not understood (version)"),
        (bytes.fromhex("00000008 00000001 00000004 00000004 ffffffff"), b"not understood (truncated)"),
        (bytes.fromhex("00000008 00000001 00000004 0000000c 80000005 00000009 00000001"), b"unexpected_answer"),
        (b"\xff" * 8, b"not understood (too_long)"),
    ],
)
def test_masters_that_speak_nonsense(tmp_path: Path, answer: bytes, text: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "m"))
        listener.listen()
        listener.settimeout(20)
        process = Master(None, tmp_path / "m", 0).popen("host", "true")  # type: ignore[arg-type]
        connection, _ = listener.accept()
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        _, faults = process.communicate(timeout=20)
        connection.close()
    assert text in faults, faults
    assert process.returncode not in (0, NO_MASTER)


def test_a_master_that_ends_meanwhile(sshd: Sshd, tmp_path: Path) -> None:
    shared = Shared(sshd, tmp_path)
    master = Master(sshd, shared.path, shared.process.pid)
    with Terminal(master.argv("-t", "host", "echo up; cat"), env=master.env) as terminal:
        terminal.wait_for("up")
        shared.process.kill()
        assert terminal.wait() == 255
        assert not terminal.raw
