"""`pqtun ssh` in a terminal: size, escapes, and the terminal as it was whatever happens."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.net.process import wait_until
from tests.shell.client import login
from tests.shell.client.login import HOST
from tests.shell.client.sshd import ADDRESS, PORT, Sshd
from tests.shell.client.terminals import Terminal

pytestmark = pytest.mark.net


@contextmanager
def session(sshd: Sshd, *words: str, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    with Terminal(login.argv(sshd, *words), env=login.environment({"PS1": "$ ", **(env or {})})) as terminal:
        yield terminal


@contextmanager
def shell(sshd: Sshd, *flags: str) -> Iterator[Terminal]:
    """A shell at the other end that is ready, without echo: what comes is what it prints."""
    with session(sshd, "-tt", *flags, HOST, "stty -echo; echo ready; exec sh") as terminal:
        terminal.wait_for("ready")
        wait_until(lambda: terminal.raw, 10, "a raw terminal")
        yield terminal


def test_a_login_shell_and_its_end(sshd: Sshd) -> None:
    with session(sshd, HOST) as terminal:
        terminal.type("echo $((6*7)); tty; exit 5\r")
        terminal.wait_for("42\r\n")
        terminal.wait_for("/dev/pts/")
        terminal.wait_for(f"Connection to {ADDRESS} closed.")
        assert terminal.wait() == 5
        assert not terminal.raw
        assert terminal.blocking


def test_size_and_type(sshd: Sshd) -> None:
    with shell(sshd) as terminal:
        terminal.type("stty size; echo $TERM\r")
        terminal.wait_for("24 80\r\nxterm")
        terminal.resize(40, 133)

        def changed() -> bool:
            terminal.type("stty size; echo asked\r")
            return "40 133" in terminal.wait_for("asked")

        wait_until(changed, 10, "the new size")


def test_keys_that_would_steer_a_terminal_go_through(sshd: Sshd) -> None:
    with shell(sshd) as terminal:
        terminal.type("trap 'echo interrupted' INT; echo set\r")
        terminal.wait_for("set")
        terminal.type("\x03\r")
        terminal.wait_for("interrupted")
        terminal.type("exit 3\r")
        assert terminal.wait() == 3


def test_terminate(sshd: Sshd) -> None:
    with shell(sshd) as terminal:
        terminal.type("\r~.")
        terminal.wait_for("~.")
        terminal.wait_for(f"Connection to {ADDRESS} closed.")
        assert terminal.wait() == 255
        assert not terminal.raw


def test_help_list_and_verbosity(sshd: Sshd) -> None:
    with shell(sshd, "-L", "7101:127.0.0.1:1") as terminal:
        terminal.type("\r~?")
        terminal.wait_for("Supported escape sequences:")
        terminal.wait_for("only recognized immediately after newline.)\r\n")
        terminal.type("\r~#")
        terminal.wait_for("local 7101 -> 127.0.0.1:1")
        terminal.type("\r~v")
        terminal.wait_for("[LogLevel VERBOSE]")
        terminal.type("\r~V")
        terminal.wait_for("[LogLevel INFO]")
        terminal.type("\rx=1; echo a~b~.c\r")
        terminal.wait_for("a~b~.c")
        terminal.type("~~x\r")
        terminal.wait_for("~x: not found")


@pytest.mark.parametrize(("flag", "character"), [("^B", "\x02"), ("!", "!")])
def test_other_characters(sshd: Sshd, flag: str, character: str) -> None:
    with shell(sshd, "-e", flag) as terminal:
        terminal.type("\r~.\recho still here\r")
        terminal.wait_for("still here")
        terminal.type(f"\r{character}.")
        assert terminal.wait() == 255


def test_no_character(sshd: Sshd) -> None:
    with shell(sshd, "-e", "none") as terminal:
        terminal.type("\r~.\recho still here; exit 4\r")
        terminal.wait_for("still here")
        assert terminal.wait() == 4


def test_command_line(sshd: Sshd) -> None:
    with shell(sshd) as terminal:
        terminal.type("\r~C")
        terminal.wait_for("ssh> ")
        assert not terminal.raw
        terminal.type("-L 7102:127.0.0.1:22\r")
        terminal.wait_for("Forwarding port.")
        assert terminal.raw
        wait_until(lambda: sshd.lab.listening(sshd.ns, 7102), 10, "the forward")
        terminal.type("\r~C")
        terminal.wait_for("ssh> ")
        terminal.type("-KL 7102\r")
        terminal.wait_for("Canceled forwarding.")
        wait_until(lambda: not sshd.lab.listening(sshd.ns, 7102), 10, "its end")
        terminal.type("\r~C")
        terminal.wait_for("ssh> ")
        terminal.type("nonsense\r")
        terminal.wait_for("-KD[bind_address:]port")
        terminal.type("\r~C")
        terminal.wait_for("ssh> ")
        terminal.type("\x03")
        wait_until(lambda: terminal.raw, 10, "a raw terminal")
        terminal.type("echo still here; exit 6\r")
        terminal.wait_for("still here")
        assert terminal.wait() == 6


def test_new_keys_on_demand(sshd: Sshd) -> None:
    before = sshd.process.output().count("set_newkeys")
    with shell(sshd, "-vv") as terminal:
        terminal.type("\r~R")
        terminal.wait_for("Beginning key exchange")
        terminal.wait_for("Completed key exchange")
        terminal.type("echo still here; exit\r")
        terminal.wait_for("still here")
        assert terminal.wait() == 0
    assert sshd.process.output().count("set_newkeys") >= before


def test_suspend(sshd: Sshd, tmp_path: Path) -> None:
    """Under a shell with job control, as it would be."""
    script = tmp_path / "go"
    script.write_text("exec " + shlex.join(login.argv(sshd, "-tt", HOST, "stty -echo; echo ready; exec sh")))
    env = login.environment({"PS1": "local$ "})
    with Terminal(["bash", "--norc", "--noprofile", "-i"], env=env) as terminal:
        terminal.wait_for("local$ ")
        terminal.type(f"sh {script}\r")
        terminal.wait_for("ready\r\n")
        wait_until(lambda: terminal.signals_off, 10, "a raw terminal")
        terminal.type("\r~\x1a")
        terminal.wait_for("[suspend ssh]")
        terminal.wait_for("local$ ")
        terminal.type("echo here; stty size\r")
        terminal.wait_for("here\r\n24 80")
        terminal.resize(50, 100)
        terminal.type("fg\r")
        wait_until(lambda: terminal.signals_off, 10, "a raw terminal again")  # bash's own has signals
        terminal.type("stty size\r")
        terminal.wait_for("50 100")
        terminal.type("exit 9\r")
        terminal.wait_for("closed.")
        terminal.type("echo code $?\r")
        terminal.wait_for("code 9\r\n")


def test_a_question_stays_unseen_when_it_was_suspended(tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(
        "from pqtun.shell.client.ui import UserInterface\n"
        "print('answered', len(UserInterface().ask('Secret: ', echo=False) or ''))\n"
    )
    with Terminal(["bash", "--norc", "--noprofile", "-i"], env=login.environment({"PS1": "local$ "})) as terminal:
        terminal.wait_for("local$ ")
        terminal.type(f"{shlex.join([sys.executable, str(script)])}; echo code $?\r")
        terminal.wait_for("Secret: ")
        for _ in range(2):
            terminal.type("\x1a")
            terminal.wait_for("local$ ")
            terminal.type("fg\r")
            terminal.wait_for("Secret: ")
        terminal.type("hunter2\r")
        terminal.wait_for("answered 7\r\n")
        assert "hunter2" not in terminal.seen


def test_in_the_background(sshd: Sshd) -> None:
    """~& leaves: what runs goes on, without the terminal."""
    words = shlex.join(login.argv(sshd, "-tt", HOST, "echo ready; cat >/dev/null; echo gone"))
    with Terminal(["sh", "-c", f"{words}; echo code $?; read end"], env=login.environment()) as terminal:
        terminal.wait_for("ready")
        terminal.type("\r~&")
        terminal.wait_for("[backgrounded]")
        terminal.wait_for("code 0")
        assert not terminal.raw
        if "gone" not in terminal.seen:
            terminal.wait_for("gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_restored_after_a_signal(sshd: Sshd, number: signal.Signals) -> None:
    with shell(sshd) as terminal:
        os.kill(terminal.process.pid, number)  # ip netns exec became it
        assert terminal.wait() == 255
        assert not terminal.raw


def test_the_terminal_is_restored_after_the_connection_is_lost(sshd: Sshd) -> None:
    with shell(sshd) as terminal:
        terminal.type("kill -9 $PPID\r")
        terminal.wait_for("closed by remote host")
        assert terminal.wait() == 255
        assert not terminal.raw


def test_a_refused_terminal_is_lived_without(sshd: Sshd) -> None:
    config = sshd.directory / "sshd_config"
    text = config.read_text()
    config.write_text(text + "PermitTTY no\n")
    try:
        sshd.process.signal(signal.SIGHUP)
        wait_until(lambda: sshd.lab.listening(sshd.ns, PORT), 10, "sshd")

        def without() -> bool:
            with session(sshd, "-tt", HOST, "tty; exit 2") as terminal:
                terminal.wait()
                return "not a tty" in terminal.seen

        wait_until(without, 20, "sshd's new configuration")
    finally:
        config.write_text(text)
        sshd.process.signal(signal.SIGHUP)


def test_the_passphrase_is_asked_for_unseen(sshd: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", str(key)], check=True, timeout=20)
    authorized = Path(f"{sshd.key}.pub")
    before = authorized.read_text()
    authorized.write_text(before + (tmp_path / "key.pub").read_text())
    flags = [word for word in sshd.options() if word not in ("BatchMode=yes",)]
    flags = ["-F", "none", "-o", f"UserKnownHostsFile={sshd.known_hosts}", "-p", str(PORT), "-i", str(key)]
    argv = sshd.lab.argv(sshd.ns, *login.pqtun.argv("ssh", "--direct", *flags, HOST, "echo in; exit 8"))
    try:
        with Terminal(argv, env=login.environment()) as terminal:
            terminal.wait_for(f"Enter passphrase for key '{key}': ")
            terminal.type("wrong\r")
            terminal.wait_for("Enter passphrase for key")
            terminal.type("secret words\r")
            assert "secret" not in terminal.wait_for("in\r\n")
            assert terminal.wait() == 8
        with Terminal(argv, env=login.environment()) as terminal:
            terminal.wait_for("Enter passphrase for key")
            terminal.type("\x03")
            assert terminal.wait() == -signal.SIGINT
            assert not terminal.raw
        with Terminal(argv, env=login.environment()) as terminal:
            for _ in range(3):
                terminal.wait_for("Enter passphrase for key")
                terminal.type("wrong\r")
            terminal.wait_for("Permission denied (publickey).")
            assert terminal.wait() == 255
    finally:
        authorized.write_text(before)


def test_an_unknown_host_is_asked_about(sshd: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    flags = ["-F", "none", "-i", str(sshd.key), "-o", f"UserKnownHostsFile={known}", "-p", str(PORT)]
    argv = sshd.lab.argv(sshd.ns, *login.pqtun.argv("ssh", "--direct", *flags, HOST, "echo in"))
    for answer, code in (("no", 255), ("yes", 0), (None, 0)):
        with Terminal(argv, env=login.environment()) as terminal:
            if answer is not None:
                terminal.wait_for("(yes/no/[fingerprint])? ")
                terminal.type(f"{answer}\r")
            terminal.wait_for("in\r\n" if code == 0 else "Host key verification failed.")
            assert terminal.wait() == code
    assert len(known.read_text().splitlines()) == 1
