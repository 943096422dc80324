"""A router of a Lab that hides what is behind it, as home routers do, and forgets its mappings on command."""

from __future__ import annotations

import itertools
import sys

from tests.net.lab import Lab

_FIRST_PORT, _PORTS = 20_000, 1_000  # each time all flows get ports of another thousand
_ROOM = 40
# nf_conntrack has no file to write to; conntrack(8) is one more package.
_FORGET = "from pyroute2 import NFCTSocket; NFCTSocket().flush()"


class Nat:
    """What router `ns` sends out by `device` over IPv4 has the device's address, and a port of the NAT's choice.

    Only what comes from the network `behind`.
    """

    def __init__(self, lab: Lab, ns: str, device: str, behind: str = "0.0.0.0/0") -> None:
        self._lab, self._ns = lab, ns
        self._match = f'oifname "{device}" ip saddr {behind}'
        self._thousands = itertools.cycle(range(_ROOM))
        lab.run(ns, "nft", "add table ip lab_nat")
        lab.run(ns, "nft", "add chain ip lab_nat out { type nat hook postrouting priority srcnat; }")
        self.change_ports()

    def change_ports(self) -> None:
        """Forget all mappings: the next packet of each flow leaves by a port that it has not had before."""
        first = _FIRST_PORT + next(self._thousands) * _PORTS
        ports = f"{first}-{first + _PORTS - 1}"
        rules = "flush chain ip lab_nat out\n"
        for protocol in ("udp", "tcp"):
            rules += f"add rule ip lab_nat out {self._match} ip protocol {protocol} masquerade to :{ports}\n"
        rules += f"add rule ip lab_nat out {self._match} masquerade\n"
        self._lab.run(self._ns, "nft", "-f", "-", stdin=rules.encode())
        self._lab.run(self._ns, sys.executable, "-c", _FORGET)
