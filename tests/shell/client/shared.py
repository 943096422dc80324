"""A master of a shared connection, and OpenSSH's client as its passenger."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from tests.net.process import Process, wait_until
from tests.shell.client.sshd import ADDRESS, PORT, Sshd

HOST = Path(__file__).with_name("mux_host.py")
_serial = itertools.count()


class Shared:
    """A master and the way to it."""

    def __init__(self, sshd: Sshd, directory: Path, *, persist: float = 0) -> None:
        self.sshd = sshd
        self.path = directory / f"m{next(_serial)}"
        self.process = self.start(persist)
        self.process.wait_output("ready", 20)
        self._descriptors = self._open_descriptors()

    def wait_quiet(self) -> None:
        """Wait until the master has no more descriptors than at its start."""
        wait_until(lambda: self._open_descriptors() <= self._descriptors, 20, "the master's descriptors to be closed")

    def _open_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def start(self, persist: float = 0) -> Process:
        """Start a master on the same path."""
        arguments = (ADDRESS, str(PORT), str(self.sshd.key), str(self.path), str(persist))
        env = {"PYTHONPATH": str(Path(__file__).parents[3])}
        return self.sshd.lab.spawn(self.sshd.ns, sys.executable, str(HOST), *arguments, env=env)

    def argv(self, *arguments: str) -> list[str]:
        # No key and no way to the server: whatever works, works over the master.
        return ["ssh", "-F", "none", "-o", "ControlMaster=no", "-S", str(self.path), *arguments]

    def run(self, *arguments: str, stdin: bytes = b"", timeout: float = 20) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.argv(*arguments), input=stdin, capture_output=True, timeout=timeout)

    def popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv(*arguments), stdin=pipe, stdout=pipe, stderr=pipe)
