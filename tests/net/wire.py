"""A link of a Lab on which packets fare badly, as long as somebody wants them to: the other end of relay.py."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.net.process import Process

if TYPE_CHECKING:
    from tests.net.lab import Lab

_RELAY = str(Path(__file__).with_name("relay.py"))
_ANSWER = 65536
_SECONDS = 10.0
# Packets that a device keeps for a relay that does not get its turn at once. More than a relay is late with: the only
# losses are those that were ordered.
_DEVICE_QUEUE = "20000"


class Wire:
    """A running relay between (namespace, device) `ends`. Both devices exist, and are down.

    `towards` in all calls is one or both of "a" and "b": the first of the ends, and the second.
    """

    def __init__(self, lab: Lab, ends: tuple[tuple[str, str], tuple[str, str]], seed: int | str) -> None:
        serial = len(list(lab.directory.glob("*.relay")))
        place = str(lab.directory / f"{serial}.relay")
        (ns_a, dev_a), (ns_b, dev_b) = ends
        argv = [sys.executable, _RELAY, ns_a, dev_a, ns_b, dev_b, place, str(seed)]
        self.process = Process(argv, lab.directory / f"{serial}.relay.log")
        self.process.wait_output("ready", 15)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_SECONDS)
        self._socket.connect(place)
        for ns, device in ends:
            lab.run(ns, "ip", "link", "set", device, "txqueuelen", _DEVICE_QUEUE)

    def set(self, towards: Sequence[str] = ("a", "b"), /, **conditions: float) -> None:
        """Change some of the Conditions, by name; in force when this returns."""
        self._order({"set": conditions, "towards": list(towards)})

    def lose_next(self, count: int, towards: Sequence[str] = ("a", "b")) -> None:
        """The next `count` packets are lost, in each of the directions."""
        self._order({"lose": count, "towards": list(towards)})

    def counters(self, towards: str) -> dict[str, int]:
        """What became of the packets that went there so far (Direction.counters)."""
        found: dict[str, int] = self._order({})[towards]
        return found

    def close(self) -> None:
        """End the relay; the devices go with it."""
        self._socket.close()
        self.process.kill()

    def _order(self, order: dict[str, Any]) -> Any:
        self._socket.send(json.dumps(order).encode())
        return json.loads(self._socket.recv(_ANSWER))
