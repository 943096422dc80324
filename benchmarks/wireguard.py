"""WireGuard in user space: wireguard-go or boringtun at both ends, set up over the socket that both of them have.

The protocol of that socket: https://www.wireguard.com/xplatform/
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.net.lab import CLIENT4, SERVER4, Lab, Topology
from tests.net.process import LabError, Process, wait_until

MTU = 1420  # wg-quick's for a path of 1500 bytes, and wireguard-go's own
PORT = 51820
CLIENT_ADDRESS, SERVER_ADDRESS = "10.44.0.2", "10.44.0.1"
_SOCKETS = Path("/run/wireguard")


@dataclass(frozen=True)
class _End:
    role: str
    ns: str
    inner: str
    outer: str
    key: X25519PrivateKey


class WireGuard:
    """A tunnel between two namespaces; `program` and its arguments run before the name of the device."""

    def __init__(self, lab: Lab, net: Topology, program: Path, *arguments: str) -> None:
        self._lab = lab
        self._argv = [str(program), *arguments]
        self._ends = (
            _End("client", net.client, CLIENT_ADDRESS, CLIENT4, X25519PrivateKey.generate()),
            _End("server", net.server, SERVER_ADDRESS, SERVER4, X25519PrivateKey.generate()),
        )
        self._running: list[tuple[Process, Path]] = []

    def start(self) -> dict[str, Process]:
        """Start both ends; their processes by role."""
        client, server = self._ends
        return {end.role: self._start(end, peer) for end, peer in ((client, server), (server, client))}

    def stop(self) -> None:
        """End both."""
        for process, sock in self._running:
            process.stop()
            sock.unlink(missing_ok=True)
        self._running.clear()

    def _start(self, end: _End, peer: _End) -> Process:
        # The sockets of all namespaces share a directory.
        device = f"{end.role[0]}{os.getpid()}"
        sock = _SOCKETS / f"{device}.sock"
        sock.unlink(missing_ok=True)
        environment = {"WG_PROCESS_FOREGROUND": "1"}
        process = self._lab.spawn(end.ns, *self._argv, device, env=environment)
        self._running.append((process, sock))

        def listening() -> bool:
            if not process.running:
                raise LabError(f"{process.argv} ended: {process.returncode}\n{process.output()}")
            return sock.exists()

        wait_until(listening, 10, f"the socket of {process.argv}")
        ask(
            sock,
            "set=1",
            f"private_key={end.key.private_bytes_raw().hex()}",
            f"listen_port={PORT}",
            f"public_key={peer.key.public_key().public_bytes_raw().hex()}",
            f"endpoint={peer.outer}:{PORT}",
            f"allowed_ip={peer.inner}/32",
        )
        for command in (f"addr add {end.inner}/24 dev {device}", f"link set {device} mtu {MTU} up"):
            self._lab.run(end.ns, "ip", *command.split())
        return process


def ask(path: Path, *lines: str) -> str:
    """One request to a device's socket, and its answer; LabError if it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(10)

        def connected() -> bool:
            try:
                link.connect(str(path))
            except ConnectionRefusedError:  # bound, but does not listen yet
                return False
            return True

        wait_until(connected, 10, str(path))
        link.sendall("".join(f"{line}\n" for line in lines).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n\n"):
            part = link.recv(4096)
            if not part:
                break
            answer += part
    text = answer.decode()
    if "errno=0\n" not in text:
        raise LabError(f"{path} said {text!r}")
    return text
