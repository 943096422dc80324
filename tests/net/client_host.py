"""Client hosts beside the first one: each behind the same router on a wire of its own, with a daemon of its own."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from tests.net.lab import RESOLVER4, Conditions
from tests.net.pqtun import PqtunClient
from tests.net.ssh import EchoSession, SshServer
from tests.net.stage import Stage
from tests.net.wire import Wire


@dataclass(frozen=True)
class ClientHost:
    """A namespace whose eth0 leads over the wire ("a": router, "b": host) to the router, and the daemon in it."""

    ns: str
    wire: Wire
    client: PqtunClient
    network: str  # its IPv4 network
    addresses: tuple[str, str]  # its IPv4 and IPv6 address, with prefix length

    def shell(self, stage: Stage, ssh: SshServer, host: str) -> EchoSession:
        """A session with the server that sends lines back, once it has sent the first one."""
        session = EchoSession(stage.lab.argv(self.ns, *ssh.client_argv(host, EchoSession.COMMAND)))
        session.echo("hello", 20)
        return session

    def signal(self, number: signal.Signals) -> None:
        """To the daemon and its worker."""
        assert self.client.process is not None
        os.killpg(self.client.process.pid, number)


def client_host(stage: Stage, number: int) -> ClientHost:
    """Make host `number` (1 to 250): 198.18.NUMBER.10 and 2001:db8:18:NUMBER::10 (RFC 2544, RFC 3849)."""
    lab, router = stage.lab, stage.net.router
    ns = lab.namespace(f"host{number}", nameservers=[RESOLVER4])
    v4, v6 = f"198.18.{number}.", f"2001:db8:18:{number}::"
    ends = ((router, f"host{number}"), (ns, "eth0"))
    wire = lab.wire(ends, ([f"{v4}1/24", f"{v6}1/64"], [f"{v4}10/24", f"{v6}10/64"]), Conditions(), seed=number)
    lab.route(ns, "default", f"{v4}1")
    lab.route(ns, "default", f"{v6}1")
    client = PqtunClient(lab, ns, lab.directory / f"host{number}")
    return ClientHost(ns, wire, client, f"{v4}0/24", (f"{v4}10/24", f"{v6}10/64"))
