"""What befalls idle connections, each from a host of its own, and whether they outlive it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from tests.net.client_host import ClientHost, client_host
from tests.net.nat import Nat
from tests.net.ssh import EchoSession, SshServer
from tests.net.stage import Stage, started, status, stopped

ANSWER_SECONDS = 3.0  # real ones, within which a shell should answer then; `make soak` judges it
PATIENCE = 30.0  # real seconds; one that has not answered by then never will

# Lets so many seconds pass for the daemons.
PassTime = Callable[[float], None]


def clock(scale: float) -> PassTime:
    """For daemons whose clock runs so many times as fast. That nothing happens meanwhile is what is tested."""
    return lambda seconds: time.sleep(seconds / scale)


def silence(stage: Stage, host: ClientHost, pass_time: PassTime) -> None:
    pass_time(600)


def cut(stage: Stage, host: ClientHost, pass_time: PassTime) -> None:
    host.wire.set(cut=True)
    pass_time(300)
    host.wire.set(cut=False)


def other_address(stage: Stage, host: ClientHost, pass_time: PassTime) -> None:
    for address in host.addresses:
        stage.lab.readdress(host.ns, "eth0", address, address.replace("10/", "11/"))


def other_port(stage: Stage, host: ClientHost, pass_time: PassTime) -> None:
    nat = Nat(stage.lab, stage.net.router, "server0", host.network)
    pass_time(60)  # as the router's address, too, has become another one now
    nat.change_ports()


def stopped_process(stage: Stage, host: ClientHost, pass_time: PassTime) -> None:
    host.signal(signal.SIGSTOP)
    pass_time(180)
    host.signal(signal.SIGCONT)


FATES: list[Callable[[Stage, ClientHost, PassTime], None]] = [silence, cut, other_address, other_port, stopped_process]


class Fate:
    """One host, its session with server `name`, and what befalls them."""

    def __init__(
        self,
        stage: Stage,
        ssh: SshServer,
        name: str,
        number: int,
        befall: Callable[[Stage, ClientHost, PassTime], None],
    ) -> None:
        """The client has the engine of the server, and its environment: if that is of a faster clock, so is this."""
        self._stage, self._befall = stage, befall
        self.host = client_host(stage, number)
        self.host.client.environment = stage.server.environment
        started(self.host.client, "--engine", status(stage.server)["engine"])
        self._shell: EchoSession = self.host.shell(stage, ssh, name)
        self.before = self.tunnel()

    def run(self, pass_time: PassTime) -> tuple[float, dict[str, Any]]:
        """Seconds from the end of it to the shell's answer, and what the client says of the tunnel then."""
        self._befall(self._stage, self.host, pass_time)
        took = self._shell.echo("still there?", PATIENCE)
        for number in range(3):
            self._shell.echo(f"line {number}", PATIENCE)
        return took, self.tunnel()

    def close(self) -> None:
        """End session and daemon."""
        self._shell.close()
        assert stopped(self.host.client) == 0
        assert self.host.client.process is not None
        assert "Traceback" not in self.host.client.process.output()

    def tunnel(self) -> dict[str, Any]:
        """What the client says of its only peer."""
        (peer,) = status(self.host.client)["peers"]
        found: dict[str, Any] = peer
        return found
