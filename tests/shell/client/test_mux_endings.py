"""How a master of ours and its passengers end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.shell.client.shared import Shared
from tests.shell.client.sshd import Sshd

pytestmark = pytest.mark.net


def test_a_killed_server_ends_all(sshd: Sshd, tmp_path: Path) -> None:
    shared = Shared(sshd, tmp_path)
    process = shared.popen("host", "echo up; exec cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    sshd.kill()
    try:
        assert process.wait(20) == 255
        assert shared.process.wait(20) == 0
        assert not shared.path.exists()
    finally:
        process.communicate()
        sshd.start()


def test_exit_ends_the_master(sshd: Sshd, tmp_path: Path) -> None:
    shared = Shared(sshd, tmp_path)
    assert shared.run("-O", "exit", "host").returncode == 0
    assert shared.process.wait(20) == 0
    assert list(tmp_path.iterdir()) == []


def test_stop_lets_sessions_finish(sshd: Sshd, tmp_path: Path) -> None:
    shared = Shared(sshd, tmp_path)
    process = shared.popen("host", "echo up; cat")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert shared.run("-O", "stop", "host").returncode == 0
    assert not shared.path.exists()
    output, _ = process.communicate(b"still", timeout=20)
    assert output == b"still"
    assert shared.process.wait(20) == 0


def test_it_ends_when_unused(sshd: Sshd, tmp_path: Path) -> None:
    shared = Shared(sshd, tmp_path, persist=0.3)
    assert shared.run("host", "sleep 0.6; echo used").stdout == b"used\n"
    assert shared.process.wait(20) == 0
    assert not shared.path.exists()


def test_a_master_that_was_killed_is_replaced_and_a_living_one_is_not(sshd: Sshd, tmp_path: Path) -> None:
    shared = Shared(sshd, tmp_path)
    os.kill(shared.process.pid, signal.SIGKILL)
    shared.process.wait(10)
    assert shared.path.exists()
    second = shared.start()
    second.wait_output("ready", 20)
    assert shared.run("host", "echo again").stdout == b"again\n"
    third = shared.start()
    assert third.wait(20) == 1
    assert "already exists" in third.output()
    assert shared.run("host", "echo still").stdout == b"still\n"
    second.stop()
