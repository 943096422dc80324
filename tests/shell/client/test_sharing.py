"""`pqtun ssh` with ControlMaster, ControlPath and ControlPersist, as people use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.process import Process, wait_until
from tests.shell.client.sshd import ADDRESS, Sshd
from tests.shell.client.terminals import Terminal

pytestmark = pytest.mark.net

ROOT = Path(__file__).parents[3]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


class Client:
    """`pqtun ssh` and `ssh` in the server's namespace, with a control path."""

    def __init__(self, sshd: Sshd, path: Path) -> None:
        self.sshd, self.path = sshd, path

    def argv(self, *arguments: str, program: tuple[str, ...] = ()) -> list[str]:
        own = program or (sys.executable, "-m", "pqtun", "ssh", "--direct")
        words = [*own, *self.sshd.options(), "-o", f"ControlPath={self.path}", *arguments]
        return self.sshd.lab.argv(self.sshd.ns, *words)

    def run(self, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        argv = self.argv(*arguments)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, env=ENV)

    def spawn(self, *arguments: str) -> Process:
        return self.sshd.lab._start(self.argv(*arguments), {"PYTHONPATH": str(ROOT)})

    def master_pid(self) -> int:
        text = self.run("-O", "check", HOST).stderr
        return int(text.partition("pid=")[2].partition(")")[0] or 0)

    def logins(self) -> int:
        return self.sshd.process.output().count("Accepted publickey")


HOST = f"root@{ADDRESS}"
AUTO = ("-o", "ControlMaster=auto")
PERSIST = (*AUTO, "-o", "ControlPersist=yes")


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path) -> Iterator[Client]:
    client = Client(sshd, tmp_path / "c")
    yield client
    client.run("-O", "exit", HOST)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_first_invocation_leaves_a_master_behind_which_later_ones_use(client: Client) -> None:
    logins = client.logins()
    first = client.run(*PERSIST, HOST, "echo one; echo fault >&2; exit 3")
    assert (first.returncode, first.stdout, first.stderr) == (3, "one\n", "fault\n")
    pid = client.master_pid()
    assert not ended(pid)
    second = client.run(*PERSIST, HOST, "echo two; exit 4")
    assert (second.returncode, second.stdout) == (4, "two\n")
    assert client.master_pid() == pid
    assert client.logins() == logins + 1
    theirs = subprocess.run(
        client.argv("-o", "ControlMaster=no", HOST, "echo three", program=("ssh",)), capture_output=True, timeout=30
    )
    assert theirs.stdout == b"three\n"
    assert client.logins() == logins + 1
    # It has let go of the terminal, and of what whoever started it waits for.
    assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert os.getsid(pid) == pid
    assert client.run("-O", "exit", HOST).returncode == 0
    wait_until(lambda: ended(pid) and not client.path.exists(), 10, "the master to end")


def test_the_master_ends_when_it_was_unused_for_long_enough(client: Client) -> None:
    assert client.run(*AUTO, "-o", "ControlPersist=1", HOST, "echo one").stdout == "one\n"
    wait_until(lambda: not client.path.exists(), 20, "the master to end")


def test_without_a_session_the_master_is_left_alone_with_its_forwards(client: Client) -> None:
    """As with ssh: nobody waits, so an unused master ends; -f makes no difference."""
    for flag in ("-N", "-fN"):
        started = client.run(*PERSIST, flag, "-L", f"{client.path}.l:/nowhere", HOST)
        assert (started.returncode, started.stderr) == (0, "")
        pid = client.master_pid()
        again = client.run(*AUTO, "-o", "ExitOnForwardFailure=yes", "-L", "22:a:1", HOST, "true")
        assert again.returncode == 255
        assert "opening 22 -> a:1: Port forwarding failed: Address already in use\n" in again.stderr
        assert Path(f"{client.path}.l").is_socket()
        client.run("-O", "stop", HOST)
        wait_until(lambda pid=pid: ended(pid), 10, "the master to end")
        assert list(client.path.parent.iterdir()) == []


def test_the_master_dies_properly_of_sigterm(client: Client) -> None:
    client.run(*PERSIST, HOST, "true")
    os.kill(client.master_pid(), signal.SIGTERM)
    wait_until(lambda: not client.path.exists(), 20, "the master to end")


def test_a_login_that_fails_is_said_and_leaves_nothing(client: Client) -> None:
    refused = client.run(*PERSIST, "-l", "nobody-here", ADDRESS, "true")
    assert refused.returncode == 255
    assert refused.stderr == "pqtun ssh: nobody-here@127.0.0.1: Permission denied (publickey).\n"
    assert list(client.path.parent.iterdir()) == []


def test_a_terminal_over_a_master_in_the_background(client: Client) -> None:
    until = 'until [ "$(stty size)" = "40 120" ]; do :; done'
    argv = client.argv(*PERSIST, "-t", HOST, f"stty size; {until}; echo resized; exit 6")
    with Terminal(argv, rows=31, columns=97, env=ENV) as terminal:
        terminal.wait_for("31 97")
        terminal.resize(40, 120)
        terminal.wait_for("resized")
        assert terminal.wait() == 6
        assert not terminal.raw
        assert terminal.blocking


def test_a_master_in_the_foreground_waits_for_the_others(client: Client) -> None:
    with Terminal(client.argv("-M", HOST), rows=30, columns=90, env=ENV) as first:
        first.type("echo fi''rst\r")
        first.wait_for("first")
        wait_until(client.path.exists, 20, "the control socket")
        with Terminal(client.argv(HOST), rows=33, columns=99, env=ENV) as second:
            second.type("stty size; echo sec''ond\r")
            assert "33 99" in second.wait_for("second")
            first.type("exit 2\r")
            first.wait_for("logout")
            assert first.process.poll() is None
            second.resize(44, 111)
            second.type('until [ "$(stty size)" = "44 111" ]; do :; done; echo res""ized\r')
            second.wait_for("resized")
            second.type("exit 3\r")
            assert second.wait() == 3
        first.wait_for("closed.")
        assert first.wait() == 2
        assert not first.raw
    assert not client.path.exists()


def test_a_second_master_says_so_and_goes_its_own_way(client: Client) -> None:
    client.run(*PERSIST, HOST, "true")
    pid, logins = client.master_pid(), client.logins()
    second = client.run("-o", "ControlMaster=yes", HOST, "echo own")
    assert second.stdout == "own\n"
    assert "already exists, disabling multiplexing" in second.stderr
    assert client.logins() == logins + 1
    assert client.master_pid() == pid


def test_a_master_without_a_session(client: Client) -> None:
    started = client.run("-f", "-M", "-N", HOST)
    assert started.returncode == 0, started.stderr
    pid = client.master_pid()
    assert client.run(HOST, "echo over it").stdout == "over it\n"
    assert client.run("-O", "stop", HOST).returncode == 0
    wait_until(lambda: ended(pid), 10, "the master to end")
    assert not client.path.exists()


def test_who_comes_first_at_the_same_time_is_the_master_of_all(client: Client) -> None:
    logins = client.logins()
    processes = [
        subprocess.Popen(client.argv(*PERSIST, HOST, f"echo {n}"), stdout=subprocess.PIPE, env=ENV) for n in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"{n}\n".encode() for n in range(4)]
    assert logins < client.logins() <= logins + 4
    assert client.run(*PERSIST, HOST, "echo over it").stdout == "over it\n"


@pytest.mark.parametrize(("answer", "code"), [("exit 0", 0), ("echo yes", 0), ("exit 1", 255), ("echo no", 255)])
def test_a_master_may_ask(client: Client, tmp_path: Path, answer: str, code: int) -> None:
    program = tmp_path / "askpass"
    program.write_text(f'#!/bin/sh\necho "$SSH_ASKPASS_PROMPT: $1" >> {tmp_path}/asked\n{answer}\n')
    program.chmod(0o755)
    argv = client.argv("-o", "ControlMaster=ask", "-N", HOST)
    master = client.sshd.lab._start(argv, {"PYTHONPATH": str(ROOT), "SSH_ASKPASS": str(program)})
    wait_until(client.path.exists, 20, "the control socket")
    assert client.run(HOST, "true").returncode == code
    assert (tmp_path / "asked").read_text() == "confirm: Allow shared connection?\n"
    master.stop()


def test_the_agent_is_forwarded_if_the_master_may_and_the_passenger_wants(client: Client, tmp_path: Path) -> None:
    agent = client.sshd.lab.spawn(client.sshd.ns, "ssh-agent", "-D", "-a", str(tmp_path / "agent"))
    wait_until((tmp_path / "agent").exists, 20, "the agent's socket")
    env = {**ENV, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
    subprocess.run(["ssh-add", "-q", str(client.sshd.key)], env=env, check=True, timeout=20)

    def keys(*arguments: str, program: tuple[str, ...] = ()) -> str:
        argv = client.argv(*arguments, HOST, "ssh-add -l", program=program)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, env=env)
        return done.stdout

    assert keys(*PERSIST, "-A", "-N", "-f") == ""
    assert keys() == ""  # sshd would have it forwarded for all sessions of the connection, once one has asked
    assert "user (ED25519)" in keys("-A")
    assert "user (ED25519)" in keys("-A", "-o", "ControlMaster=no", program=("ssh",))
    client.run("-O", "exit", HOST)
    wait_until(lambda: not client.path.exists(), 20, "the master to end")
    keys(*PERSIST)
    assert keys("-A") == ""
    agent.stop()


def test_interrupted_at_the_login(client: Client) -> None:
    os.kill(client.sshd.process.pid, signal.SIGSTOP)
    try:
        with Terminal(client.argv(*PERSIST, HOST, "true"), env=ENV) as terminal:
            wait_until(lambda: _connecting(client), 20, "the connection")
            terminal.type("\x03")
            assert terminal.wait() in (-signal.SIGINT, 255)
            assert "Traceback" not in terminal.seen
    finally:
        os.kill(client.sshd.process.pid, signal.SIGCONT)


def _connecting(client: Client) -> bool:
    return bool(client.sshd.lab.run(client.sshd.ns, "ss", "-Htn", "state", "established", "dport", "=", ":22").stdout)
