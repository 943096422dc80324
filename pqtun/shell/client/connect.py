"""Connects and logs in: ssh_config, the tunnel, jump hosts, the host key, agent and identities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pqtun.shell.client.options import Options
from pqtun.shell.client.ui import UserInterface

if TYPE_CHECKING:
    import asyncssh

    from pqtun.shell.client.config import Config


async def connect(options: Options, *, ui: UserInterface, config: Config | None = None) -> asyncssh.SSHClientConnection:
    """Return a connection that is logged in; its jump hosts are closed with it.

    ``config``: what config.resolve(options) gave, if it was asked already. Raises UserError (one line as ssh's users
    know it: no tunnel, unknown host, refused, wrong host key, no key accepted), OSError never.
    """
    raise NotImplementedError
