"""A terminal emulator that can be read: tmux, with one program in its one window."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable

from tests.net.process import LabError, wait_until
from tests.net.ssh_clients import SshClient

HISTORY = 120_000  # lines
_serial = itertools.count()
_CONFIG = f"""
set -g history-limit {HISTORY}
set -g default-terminal screen-256color
set -g status off
set -g remain-on-exit on
set -s escape-time 0
"""


class Screen:
    """A tmux server of the client's user that runs one ssh; close() ends it."""

    def __init__(self, client: SshClient, *arguments: str, columns: int, rows: int) -> None:
        self._client = client
        home = client.user.directory
        (home / "tmux.conf").write_text(_CONFIG)
        # Its own: a server that is ending still has its socket for a moment.
        self._socket = f"{client.user.home}/screen{next(_serial)}.sock"
        command = shlex.join(client.words("ssh", *arguments))
        self._tmux(
            "-f", f"{client.user.home}/tmux.conf", "new-session", "-d", "-x", str(columns), "-y", str(rows), command
        )

    def keys(self, *keys: str) -> None:
        """Press keys, as send-keys names them; other words are typed."""
        self._tmux("send-keys", *keys)

    def rows(self, *, history: bool = False) -> list[str]:
        """What is to be seen, a line each row; with `history` what has left at the top comes first."""
        return self._tmux("capture-pane", "-p", *(["-S", "-"] if history else [])).split("\n")[:-1]

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size."""
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def wait(self, wanted: list[str], *, row: int = 0, timeout: float = 20.0) -> None:
        """Wait until the rows from `row` on begin with `wanted`; LabError with all rows if they do not."""
        self._until(lambda rows: _begin(rows[row:], wanted), f"{wanted} from row {row} on", timeout)

    def wait_end(self, *wanted: str, timeout: float = 20.0) -> None:
        """Wait until the last rows that are not empty are `wanted`; LabError with all rows if they are not."""
        self._until(
            lambda rows: [row for row in rows if row][-len(wanted) :] == list(wanted), f"{wanted} at the end", timeout
        )

    def _until(self, condition: Callable[[list[str]], bool], what: str, timeout: float) -> None:
        try:
            wait_until(lambda: condition(self.rows()), timeout, what)
        except LabError as error:
            seen = "\n".join(self.rows())
            raise LabError(f"{error}; there was\n{seen}") from None

    def close(self) -> None:
        """End the program and tmux."""
        self._tmux("kill-server", check=False)

    def _tmux(self, *arguments: str, check: bool = True) -> str:
        return self._client.run("tmux", "-u", "-S", self._socket, *arguments, check=check).stdout


def _begin(rows: list[str], wanted: list[str]) -> bool:
    return len(rows) >= len(wanted) and all(row.startswith(text) for row, text in zip(rows, wanted, strict=False))
