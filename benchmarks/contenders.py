"""What is measured: each makes a tunnel between the client and the server of the lab, in turn."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from benchmarks import tools
from benchmarks.wireguard import SERVER_ADDRESS, WireGuard
from tests.interop.debian import PQCONNECT, Unavailable
from tests.interop.pqconnect import PqconnectClient, PqconnectServer
from tests.net.lab import SERVER4, Lab, Topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import LabError, Process, wait_until


@dataclass(frozen=True)
class Tunnel:
    """A tunnel that works: the server's address in it, and the daemons by role."""

    address: str
    daemons: Mapping[str, Process]


class Contender(Protocol):
    """Something that can be started and stopped, again and again."""

    def records(self) -> str:
        """What the resolver must know before start(), as zone text."""

    def start(self) -> Tunnel:
        """Start it and wait until packets go through."""

    def stop(self) -> None:
        """Stop it, also when start() failed."""


class Veth:
    """The network without any tunnel."""

    def __init__(self, lab: Lab, net: Topology) -> None:
        self._lab, self._net = lab, net

    def records(self) -> str:
        return ""

    def start(self) -> Tunnel:
        return Tunnel(_answering(self._lab, self._net, SERVER4), {})

    def stop(self) -> None:
        pass


class UserspaceWireGuard:
    """wireguard-go or boringtun."""

    def __init__(self, lab: Lab, net: Topology, program: Path, *arguments: str) -> None:
        self._lab, self._net = lab, net
        self._ends = WireGuard(lab, net, program, *arguments)

    def records(self) -> str:
        return ""

    def start(self) -> Tunnel:
        daemons = self._ends.start()
        return Tunnel(_answering(self._lab, self._net, SERVER_ADDRESS), daemons)

    def stop(self) -> None:
        self._ends.stop()


class _ByName:
    """A tunnel that comes about when a name is looked up."""

    def __init__(self, lab: Lab, net: Topology, host: str) -> None:
        self._lab, self._net, self.host = lab, net, host

    def start_server(self) -> Process:
        raise NotImplementedError

    def start_client(self) -> Process:
        raise NotImplementedError

    def start(self) -> Tunnel:
        daemons = {"server": self.start_server(), "client": self.start_client()}
        address = lookup(self._lab, self._net.client, self.host)
        if address == SERVER4:
            raise LabError(f"{self.host} does not lead into a tunnel")
        return Tunnel(_answering(self._lab, self._net, address), daemons)


class Pqtun(_ByName):
    """pqtun with one of its engines."""

    def __init__(
        self, lab: Lab, net: Topology, name: str, engine: str, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(lab, net, f"{name}.example.net")
        self._arguments = ("--engine", engine)
        self._serial = itertools.count()
        self.server = PqtunServer(lab, net.server, lab.directory / f"{name}-server")
        self.client = PqtunClient(lab, net.client, lab.directory / f"{name}-client")
        if environment is not None:
            self.server.environment = self.client.environment = environment

    def records(self) -> str:
        return self.server.announce(self.host, address=SERVER4)

    def start_server(self) -> Process:
        return self.server.start(*self._arguments)

    def start_client(self) -> Process:
        return self.client.start(*self._arguments)

    def forget(self) -> None:
        """Let the next client be one that has never run."""
        self.client.directory = self._lab.directory / f"{self.host}-{next(self._serial)}"
        self.client.directory.mkdir()

    def stop(self) -> None:
        for daemon in (self.client, self.server):
            if daemon.process is not None:
                daemon.stop()


class Pqconnect(_ByName):
    """PQConnect of Debian 13."""

    def __init__(self, lab: Lab, net: Topology, name: str, root: Path) -> None:
        super().__init__(lab, net, f"{name}.example.net")
        self.server = PqconnectServer(lab, net.server, root, lab.directory / f"{name}-server")
        self.client = PqconnectClient(lab, net.client, root, lab.directory / f"{name}-client")

    def records(self) -> str:
        name = f"{self.server.name}.example.net."
        return f"{self.host}. IN CNAME {name}\n{name} IN A {SERVER4}\n"

    def start_server(self) -> Process:
        return self.server.start()

    def start_client(self) -> Process:
        return self.client.start()

    def stop(self) -> None:
        self.client.stop()
        self.server.stop()


def _native(lab: Lab, net: Topology, name: str) -> Contender:
    if find_spec("pqtun.pump._native") is None:
        raise Unavailable("the native engine is not built: make setup builds it where cargo is")
    return Pqtun(lab, net, name, "native")


def _null(lab: Lab, net: Topology, name: str) -> Contender:
    return Pqtun(lab, net, name, "native", tools.null_cipher())


MAKERS: Mapping[str, Callable[[Lab, Topology, str], Contender]] = {
    "pqtun-native": _native,
    "pqtun-null": _null,
    "pqtun-python": lambda lab, net, name: Pqtun(lab, net, name, "python"),
    "wireguard-go": lambda lab, net, name: UserspaceWireGuard(lab, net, tools.wireguard_go()),
    "boringtun": lambda lab, net, name: UserspaceWireGuard(
        lab, net, tools.boringtun(), "--foreground", "--disable-drop-privileges"
    ),
    "pqconnect": lambda lab, net, name: Pqconnect(lab, net, name, PQCONNECT.root()),
    "veth": lambda lab, net, name: Veth(lab, net),
}


def lookup(lab: Lab, ns: str, host: str) -> str:
    """The IPv4 address that a program in `ns` connects to for `host`."""
    said = lab.run(ns, "getent", "ahostsv4", host, timeout=30).stdout
    return said.split()[0]


def device_mtu(lab: Lab, ns: str, address: str) -> int:
    """The MTU of the device that leads to an address."""
    device = json.loads(lab.run(ns, "ip", "-j", "route", "get", address).stdout)[0]["dev"]
    return int(json.loads(lab.run(ns, "ip", "-j", "link", "show", device).stdout)[0]["mtu"])


def _answering(lab: Lab, net: Topology, address: str) -> str:
    """The address, once it answers to ping."""

    def answers() -> bool:
        said = lab.run(net.client, "ping", "-n", "-c", "1", "-W", "1", address, check=False).stdout
        return re.search(r"\b1 received", said) is not None

    wait_until(answers, 20, f"an answer from {address}")
    return address
