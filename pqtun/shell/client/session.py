"""The session of `pqtun ssh` itself: what is asked of the server, and stdin, stdout and stderr joined to it."""

from __future__ import annotations

import os
from collections.abc import Callable

from pqtun.shell.client import mux_client
from pqtun.shell.client.config import Config
from pqtun.shell.client.escapes import Escape, EscapeFilter
from pqtun.shell.client.mux_messages import NO_ESCAPE, NewSession
from pqtun.shell.client.mux_session import Passenger
from pqtun.shell.client.options import Options
from pqtun.shell.client.ui import UserInterface


def wants_terminal(options: Options, config: Config, ui: UserInterface) -> bool:
    """Whether the server is asked for a pseudo-terminal, as ssh decides it; says so if stdin forbids it."""
    command = " ".join(options.command) or config.remotecommand or ""
    if mux_client.wants_terminal(config, command):
        return True
    if config.requesttty == "yes" or (config.requesttty == "auto" and not command and config.sessiontype == "default"):
        ui.say("Pseudo-terminal will not be allocated because stdin is not a terminal.")
    return False


def request(options: Options, config: Config, *, terminal: bool) -> NewSession:
    """Return what the server is asked for."""
    return NewSession(
        request=0,
        reserved="",
        tty=terminal,
        x11=config.forwardx11,
        agent=config.forwardagent != "no",
        subsystem=config.sessiontype == "subsystem",
        escape=config.escapechar[0] if terminal and config.escapechar else NO_ESCAPE,
        terminal=os.environ.get("TERM", ""),
        command=" ".join(options.command) or config.remotecommand or "",
        environment=mux_client.variables(config),
    )


class OwnSession(Passenger):
    """A passenger whose person types escape characters."""

    def __init__(
        self,
        fds: list[int],
        ended: Callable[[int | None], None],
        *,
        escapes: EscapeFilter,
        escaped: Callable[[Escape], None],
    ) -> None:
        """``fds``: as of Passenger; ``escaped`` is called for each escape that was typed."""
        super().__init__(fds, lambda: None, ended)
        self._escapes = escapes
        self._escaped = escaped
        self.killed_by: str | None = None  # the signal's name, without SIG

    def _typed(self, data: bytes) -> None:
        if not data:
            super()._typed(data)
            return
        for part in self._escapes.feed(data):
            if isinstance(part, bytes):
                super()._typed(part)
            else:
                self._escaped(part)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """See asyncssh.SSHClientSession."""
        self.killed_by = signal

    def send_break(self) -> None:
        """Send a break (~B)."""
        self._channel.send_break(1000)

    def end_input(self, last: bytes) -> None:
        """Send what a person would type at last, and read no more."""
        self._source.close()
        super()._typed(last)


def standard_descriptors(*, null_input: bool) -> list[int]:
    """Return copies of stdin (or /dev/null), stdout and stderr."""
    stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if null_input else os.dup(0)
    return [stdin, os.dup(1), os.dup(2)]
