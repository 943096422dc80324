"""A program in a pseudo-terminal of its own, as a person's terminal would run it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

from tests.net.process import LabError


class Terminal:
    """A pseudo-terminal with a program whose controlling terminal it is."""

    def __init__(
        self, argv: Sequence[str], *, rows: int = 24, columns: int = 80, env: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = os.openpty()
        self.resize(rows, columns)
        # setsid(1) makes stdin the controlling terminal.
        argv = ["setsid", "--ctty", "--wait", *argv]
        self._program = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env)
        self._slave = slave
        self._read = b""

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size; the program in the foreground gets SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def wait(self, text: str, timeout: float = 15.0) -> str:
        """Read until `text` appears; what came up to its end. LabError with what came if it does not."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0]:
                raise LabError(f"waited {timeout:g} s in vain for {text!r}; there was {self._read!r}")
            self._read += os.read(self._master, 65_536)
        before, found, self._read = self._read.partition(text.encode())
        return (before + found).decode(errors="replace")

    @property
    def modes(self) -> list[int]:
        """Its settings: input, output, control and local flags (termios(3))."""
        return termios.tcgetattr(self._slave)[:4]

    def end(self, timeout: float = 15.0) -> int:
        """Wait for the end of the program, whatever it prints; its exit code."""
        deadline = time.monotonic() + timeout
        while self._program.poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"{self._program.args!r} still runs; there was {self._read!r}")
            if select.select([self._master], [], [], 0.02)[0]:
                self._read += os.read(self._master, 65_536)
        return self._program.returncode

    def close(self) -> None:
        """End the program (SIGHUP comes with the end of its terminal, SIGKILL to make sure)."""
        os.close(self._slave)
        os.close(self._master)
        try:
            self._program.wait(2)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
