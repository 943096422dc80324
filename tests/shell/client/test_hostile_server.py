"""What a server says cannot steer the terminal, nor look like another line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import pqtun
from tests.shell.client.login import environment
from tests.shell.client.sshd import ADDRESS, Sshd

pytestmark = pytest.mark.net

PORT = 2299


@pytest.fixture(scope="module")
def hostile(sshd: Sshd) -> Iterator[Sshd]:
    script = str(Path(__file__).with_name("hostile_server.py"))
    server = sshd.lab.spawn(sshd.ns, sys.executable, script, str(PORT), env=pqtun.environment())
    sshd.lab.wait_listening(server, sshd.ns, PORT)
    yield sshd
    server.kill()


def said(hostile: Sshd, user: str, *arguments: str) -> str:
    config = hostile.directory / "hostile_config"
    config.write_text(f"Port {PORT}\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
    words = pqtun.argv("ssh", "--direct", "-F", str(config), *arguments, f"{user}@{ADDRESS}", "true")
    argv = hostile.lab.argv(hostile.ns, *words)
    done = subprocess.run(argv, capture_output=True, timeout=30, env=environment(), text=True)
    assert done.returncode == 255
    return "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("Warning: "))


@pytest.mark.parametrize(
    ("user", "arguments"), [("disconnect", []), ("forward", ["-W", "a:1"]), ("jump", ["-J", f"jump@{ADDRESS}:{PORT}"])]
)
def test_reasons(hostile: Sshd, user: str, arguments: list[str]) -> None:
    text = said(hostile, user, *arguments)
    assert text.startswith("pqtun ssh: ")
    assert text.count("\n") == 1
    assert "owned" in text
    assert text[:-1].isprintable()


@pytest.mark.parametrize("user", ["disconnect", "signal"])
def test_details(hostile: Sshd, user: str) -> None:
    lines = said(hostile, user, "-vvv").splitlines()
    assert any("owned" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("pqtun ssh: all is well")]
