"""A program in a terminal of its own, as a person would sit before it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
import types
from collections.abc import Mapping, Sequence

from tests.net.process import LabError


class Terminal:
    """Runs `argv` with a pty as controlling terminal; what it prints is gathered by wait_for()."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        rows: int = 24,
        columns: int = 80,
        ixon: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self._set_size(rows, columns)
        if not ixon:
            modes = termios.tcgetattr(self._slave)
            modes[0] &= ~termios.IXON
            termios.tcsetattr(self._slave, termios.TCSANOW, modes)
        self._read = b""
        self.seen = ""  # all that was printed
        self.process = subprocess.Popen(
            argv,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: types.TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._master)
        os.close(self._slave)

    @property
    def raw(self) -> bool:
        """Whether it was left in raw mode."""
        return not termios.tcgetattr(self._slave)[3] & termios.ICANON

    @property
    def signals_off(self) -> bool:
        """Whether ^C is a key like others, which it is not for a shell that edits a line."""
        return not termios.tcgetattr(self._slave)[3] & termios.ISIG

    @property
    def blocking(self) -> bool:
        """Whether reads of its other users still wait."""
        return os.get_blocking(self._slave)

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Make the window another size; the kernel sends SIGWINCH to the foreground."""
        self._set_size(rows, columns)

    def wait_for(self, text: str, timeout: float = 20) -> str:
        """Wait until `text` was printed and return what came up to it; LabError with what was printed instead."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self._read:
            if not self._receive(deadline - time.monotonic()):
                raise LabError(f"no {text!r} in {self._read!r}")
        before, _, self._read = self._read.partition(text.encode())
        return before.decode(errors="replace")

    def wait(self, timeout: float = 20) -> int:
        """Wait for the end and return the exit code; LabError if it does not come."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"still running; printed {self._read!r}")
            self._receive(0.05)
        return self.process.returncode

    def _receive(self, timeout: float) -> bool:
        if not select.select([self._master], [], [], max(timeout, 0))[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: all have closed it
            return False
        self._read += data
        self.seen += data.decode(errors="replace")
        return bool(data)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
