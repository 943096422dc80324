"""Traffic of several patterns through a tunnel that does not always work, each in a thread of its own.

What a pattern finds wrong goes to its `failures`. A connection may be lost when a daemon is killed, and at no other
time; new ones must come about soon after whatever happened; what arrives must be what was sent.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.net.lab import Lab
from tests.net.process import LabError
from tests.net.ssh import EchoSession, SshServer

# Seconds without one success, besides what one takes by itself: more than the longest cut, a restart and a handshake
# take together.
LONGEST = 75.0
# TCP repeats what was lost in a cut of 15 s only as long again after it, and the next fault may be there by then.
ECHO_SECONDS = 60.0
CURL = ("curl", "-sS", "--fail", "--connect-timeout", "10", "--speed-time", "45", "--speed-limit", "1")


@dataclass
class Site:
    """The two hosts, and how often a daemon has been killed."""

    lab: Lab
    client: str
    host: str
    files: Path
    ssh: SshServer
    kills: int = 0


@dataclass
class Course:
    """What came of a pattern. Times in seconds."""

    name: str
    took: list[float] = field(default_factory=list)
    lost_to_kills: int = 0
    misses: int = 0  # attempts that failed and were repeated
    longest_gap: float = 0.0
    failures: list[str] = field(default_factory=list)


class Pattern(threading.Thread):
    """Repeats step() every `period` seconds."""

    def __init__(self, name: str, site: Site, period: float, usual: float = 0.0) -> None:
        """`usual`: seconds that a step takes when nothing is in its way."""
        super().__init__(name=name, daemon=True)
        self.course = Course(name)
        self.patience = LONGEST + usual
        self._site, self._period = site, period
        self._end = threading.Event()
        self._last = time.monotonic()

    def run(self) -> None:
        """Until end() is called."""
        try:
            while not self._end.is_set():
                begin = time.monotonic()
                kills = self._site.kills
                try:
                    self.step()
                except LabError as error:
                    self.missed(kills, str(error))
                else:
                    self._succeeded(begin)
                self._end.wait(max(0.0, begin + self._period - time.monotonic()))
        except Exception as error:  # noqa: BLE001 -- a thread that ends silently would look like success
            self.course.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self.close()

    def end(self) -> None:
        """Stop after the step under way; then join()."""
        self._end.set()

    @property
    def since_success(self) -> float:
        """Seconds."""
        return time.monotonic() - self._last

    def step(self) -> None:
        """Do it once; LabError if it fails."""
        raise NotImplementedError

    def missed(self, kills: int, why: str) -> None:
        """A step failed that began when there had been so many kills."""
        self.course.misses += 1
        if self.since_success > self.patience and not self.course.failures:
            self.course.failures.append(f"nothing for {self.since_success:.0f} s: {why[-300:]}")

    def close(self) -> None:
        """Free what is open."""

    def _succeeded(self, begin: float) -> None:
        now = time.monotonic()
        self.course.took.append(now - begin)
        self.course.longest_gap = max(self.course.longest_gap, now - self._last)
        self._last = now


class Shell(Pattern):
    """One ssh session that echoes a line a second, replaced when a kill has cost it."""

    def __init__(self, site: Site) -> None:
        super().__init__("shell", site, 1.0)
        self._session: EchoSession | None = None
        self._opened_at = 0

    def step(self) -> None:
        if self._session is None:
            self._opened_at = self._site.kills
            argv = self._site.ssh.client_argv(self._site.host, EchoSession.COMMAND)
            self._session = EchoSession(self._site.lab.argv(self._site.client, *argv))
        self._session.echo(f"line {len(self.course.took)}", ECHO_SECONDS)

    def missed(self, kills: int, why: str) -> None:
        if self._site.kills > self._opened_at:
            self.course.lost_to_kills += 1
        elif self.course.took:
            self.course.failures.append(f"a session was lost and nothing was killed: {why}")
        self.close()
        super().missed(kills, why)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class Download(Pattern):
    """A file again and again, at most `rate` bytes a second (0: any); `arguments` are curl's."""

    def __init__(self, name: str, site: Site, file: str, period: float, rate: int = 0, *arguments: str) -> None:
        content = (site.files / file).read_bytes()
        super().__init__(name, site, period, len(content) / rate if rate else 0.0)
        self._file, self._rate, self._arguments = file, rate, arguments
        self._digest = hashlib.sha256(content).digest()
        self._got = site.lab.directory / f"got-{name}"

    def step(self) -> None:
        argv = [*CURL, *self._arguments, "-o", str(self._got), "--limit-rate", str(self._rate)]
        self._site.lab.run(self._site.client, *argv, f"http://{self._site.host}/{self._file}", timeout=120)
        if hashlib.sha256(self._got.read_bytes()).digest() != self._digest:
            self.course.failures.append("a file arrived with another digest")

    def missed(self, kills: int, why: str) -> None:
        if self._site.kills > kills:
            self.course.lost_to_kills += 1
        elif self._rate and "(18)" in why:  # curl(1): a transfer that had begun was cut short
            self.course.failures.append(f"a download was cut short and nothing was killed: {why[-300:]}")
        super().missed(kills, why)


class Upload(Pattern):
    """A file sent again and again; the server answers with its digest."""

    def __init__(self, site: Site, file: str, period: float) -> None:
        super().__init__("upload", site, period)
        self._file = site.files / file
        self._digest = hashlib.sha256(self._file.read_bytes()).hexdigest()

    def step(self) -> None:
        argv = [*CURL, "-H", "Expect:", "--data-binary", f"@{self._file}", f"http://{self._site.host}/"]
        if self._site.lab.run(self._site.client, *argv, timeout=120).stdout != self._digest:
            self.course.failures.append("the server got something else")
