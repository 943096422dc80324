"""`make demo` without its `make setup`: it holds, it says so, and it leaves nothing behind, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.process import Process, wait_until

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180  # what it may take at most


class Demo:
    """The demonstration in a process of its own."""

    def __init__(self, log: Path, path: Path | None = None) -> None:
        before = f"{path}:" if path else ""
        env = {"PYTHONPATH": str(ROOT), "PATH": before + os.environ["PATH"]}
        self.process = Process([sys.executable, "-u", str(ROOT / "scripts" / "demo.py")], log, env)

    def left(self) -> list[str]:
        """What there still is of it."""
        mine = f"pqt-{self.process.pid}-"
        namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
        files = [str(path) for at in ("/tmp", "/etc/netns") for path in Path(at).glob(f"{mine}*")]
        return [name for name in namespaces if name.startswith(mine)] + files


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "demo.log"
    print((tmp_path / "demo.log").read_text())


def test_every_step_holds(log: Path) -> None:
    demo = Demo(log)
    assert demo.process.wait(SECONDS) == 0
    said = log.read_text()
    assert "FAILED" not in said
    assert said.count("\nok (") == said.count("\n== ") == 15
    assert "all 15 steps held" in said
    assert demo.left() == []


def test_a_step_that_does_not_hold_is_named(log: Path, tmp_path: Path) -> None:
    """No curl: its steps fail, the others still show what they have to show."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "curl").write_text("#!/bin/sh\necho no curl today >&2\nexit 7\n")
    (bin / "curl").chmod(0o755)
    demo = Demo(log, bin)
    assert demo.process.wait(SECONDS) == 1
    said = log.read_text()
    assert said.count("\nFAILED: ") == 3
    assert "no curl today" in said
    assert said.count("\nok (") == 12
    assert said.splitlines()[-1].startswith("FAILED after ")
    assert "curl: the page comes through the tunnel" in said.splitlines()[-1]
    assert demo.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(log: Path, number: signal.Signals) -> None:
    """While both daemons run."""
    demo = Demo(log)
    demo.process.wait_output("== 8. ", 60)
    os.killpg(demo.process.pid, number)
    code = demo.process.wait(15)
    assert code == (130 if number == signal.SIGINT else -signal.SIGTERM)
    wait_until(lambda: not demo.left(), 5, "the end of all that it made")
