"""Programs started by a test: their output, their end, and waiting for what they bring about."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class LabError(Exception):
    """A command failed, or an awaited condition did not come about in time."""


def wait_until(condition: Callable[[], T], timeout: float, what: str, *, interval: float = 0.02) -> T:
    """Poll `condition` every `interval` seconds until it is true and return its value.

    Raises LabError naming `what` when `timeout` seconds have passed; an exception from `condition` is passed on.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise LabError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


class Process:
    """A program in a process group of its own, its stdout and stderr together in the file `log`."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None):
        self.argv = list(argv)
        self.log = log
        with log.open("ab") as sink:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._group_ended = False

    @property
    def running(self) -> bool:
        """Whether the program itself (not its children) still runs."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code as subprocess gives it (negative for a signal), None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit code; LabError after `timeout` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.argv} still runs after {timeout:g} s\n{self.output()}") from None

    def wait_output(self, text: str, timeout: float) -> None:
        """Wait until `text` appears in the output; LabError with the output if it ends or time passes."""

        def appeared() -> bool:
            ended = not self.running
            if text in self.output():
                return True
            if ended:
                raise LabError(f"{self.argv} ended with {self.returncode}\n{self.output()}")
            return False

        try:
            wait_until(appeared, timeout, f"{text!r} from {self.argv}")
        except LabError as error:
            raise LabError(f"{error}\n{self.output()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone, as a person's kill would."""
        self._popen.send_signal(number)

    def stop(self, grace: float = 5.0) -> int:
        """SIGTERM, at most `grace` seconds of time to end, then SIGKILL to its whole process group; the exit code."""
        if self.running:
            self._popen.terminate()
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to the whole process group; the exit code."""
        if not self._group_ended:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            # Once the leader is reaped and its group is empty, the number may be given to others.
            self._group_ended = True
        return self._popen.wait(10)
