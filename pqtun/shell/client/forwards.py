"""Opens the forwards that the command line and the configuration name, and says how that went, in ssh's words."""

from __future__ import annotations

import os
from collections.abc import Sequence

import asyncssh

from pqtun.protocol.errors import UserError
from pqtun.shell.client.config import Config
from pqtun.shell.client.forward_table import ForwardTable
from pqtun.shell.client.forwardspec import Forward, parse_forward
from pqtun.shell.client.printable import printable
from pqtun.shell.client.ui import UserInterface

COMMAND_HELP = """\
Commands:
      -L[bind_address:]port:host:hostport    Request local forward
      -R[bind_address:]port:host:hostport    Request remote forward
      -D[bind_address:]port                  Request dynamic forward
      -KL[bind_address:]port                 Cancel local forward
      -KR[bind_address:]port                 Cancel remote forward
      -KD[bind_address:]port                 Cancel dynamic forward"""


async def open_all(table: ForwardTable, forwards: Sequence[Forward], config: Config, ui: UserInterface) -> None:
    """Open them. Raises UserError for one that cannot be opened if ExitOnForwardFailure says so, else prints it."""
    for forward in forwards:
        try:
            await open_one(table, forward, ui)
        except UserError as error:
            if config.exitonforwardfailure:
                raise
            ui.fault(str(error))


async def open_one(table: ForwardTable, forward: Forward, ui: UserInterface) -> None:
    """Open a forward. Raises UserError."""
    try:
        port = await table.open(forward)
    except (OSError, asyncssh.Error, asyncssh.ChannelListenError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else printable(str(error))
        if forward.kind == "remote":
            what = "listen path" if forward.listen_path is not None else "listen port"
            raise UserError(f"remote port forwarding failed for {what} {_end(forward)}: {reason}") from None
        raise UserError(f"cannot listen to {forward.listen}: {reason}") from None
    ui.debug(f"Forwarding {forward.kind} {forward.listen} -> {forward.connect}")
    if forward.kind == "remote" and forward.listen_port == 0:
        ui.say(f"Allocated port {port} for remote forward to {forward.connect}")


def _end(forward: Forward) -> str:
    return forward.listen_path if forward.listen_path is not None else str(forward.listen_port)


async def command(line: str, table: ForwardTable, ui: UserInterface) -> None:
    """Do what was typed at ``~C``. Raises UserError."""
    text = line.strip()
    if not text:
        return
    cancel = text.startswith("-K")
    letter, rest = (text[2:3], text[3:]) if cancel else (text[1:2], text[2:])
    if not text.startswith("-") or letter not in ("L", "R", "D") or not rest.strip():
        ui.say(COMMAND_HELP)
        return
    kind = {"L": "local", "R": "remote", "D": "dynamic"}[letter]
    specification = rest.strip()
    if not cancel:
        try:
            forward = parse_forward(kind, specification)  # type: ignore[arg-type]
        except ValueError:
            raise UserError("Bad forwarding specification.") from None
        await open_one(table, forward, ui)
        ui.say("Forwarding port.")
        return
    for forward in table.forwards:
        if forward.kind == kind and forward.listen == specification:
            await table.cancel(forward)
            ui.say("Canceled forwarding.")
            return
    raise UserError("Unknown port forwarding.")
