"""A monitor's connection to the listener, which counts connections and owns the audit file.

A login outlives the listener that it came by: when the service is restarted, its monitor joins the next one.
"""

import socket
import time
from collections import deque
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from pqtun.shell.sshd import messages
from pqtun.shell.sshd.messages import MessageError

ANSWER_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 2.0
MAX_KEPT: Final = 1000  # events while there is no listener; the oldest go first


def socket_path(run: Path) -> Path:
    """Where the listener takes monitors of logins that are older than itself."""
    return run / "sshd-monitors.sock"


class Link:
    """Used by the monitor."""

    def __init__(self, sock: socket.socket, run: Path) -> None:
        self._sock: socket.socket | None = sock
        sock.settimeout(ANSWER_SECONDS)
        self._run = run
        self._kept: deque[Mapping[str, object]] = deque()
        self._lost = 0
        self._next_try = 0.0

    @property
    def connected(self) -> bool:
        """Whether there is a listener."""
        return self._sock is not None

    def fileno(self) -> int:
        """For select(2); readable when the listener has ended."""
        return -1 if self._sock is None else self._sock.fileno()

    def authenticated(self, user: str) -> bool:
        """Tell that a user is about to be logged in. Whether there may be one more connection of him."""
        if self._sock is None:
            return False
        try:
            messages.send(self._sock, {"op": "authenticated", "user": user})
            answer, fds = messages.receive(self._sock)
        except (OSError, EOFError, MessageError):
            return False
        messages.close_all(fds)
        return answer.get("allowed") is True

    def audit(self, event: Mapping[str, object]) -> None:
        """Have an event written down, later if there is no listener at the moment."""
        if self._sock is not None:
            try:
                messages.send(self._sock, {"op": "audit", "event": event})
            except (OSError, MessageError):
                pass  # kept
            else:
                return
        self._kept.append({**event, "at": round(time.time(), 3)})
        while len(self._kept) > MAX_KEPT:
            self._kept.popleft()
            self._lost += 1

    def lost(self) -> None:
        """The listener has ended."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def rejoin(self, client: IPv4Address, user: str) -> float | None:
        """Try to reach the next listener. Returns how many seconds to wait for the next try; None if it was reached."""
        now = time.monotonic()
        if now < self._next_try:
            return self._next_try - now
        self._next_try = now + RETRY_SECONDS
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(ANSWER_SECONDS)
        try:
            sock.connect(str(socket_path(self._run)))
            messages.send(sock, {"op": "rejoin", "client": str(client), "user": user})
        except OSError:
            sock.close()
            return RETRY_SECONDS
        self._sock = sock
        kept, self._kept = list(self._kept), deque()
        if self._lost:
            kept.insert(0, {"event": "lost", "count": self._lost})
            self._lost = 0
        for event in kept:
            self.audit(event)
        return None
