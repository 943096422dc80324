"""`python -m benchmarks.answers`: what a datagram costs the key server, answered or dropped, without the socket."""

import os
import time

from pqtun.keyserver.server import KeyServer
from pqtun.protocol.keydatagram import ephemeral_request, static_request
from tests.keyserver.loopback import a_server

ROUNDS = 5000
DATAGRAMS = {
    "ephemeral key": ephemeral_request(),
    "node of the key": static_request((3, 0)),
    "long request for a node": b"\xf0\x00" + bytes(1400),
    "long, with a right beginning": b"\xf0\x00\x00\x01\x03\x00\x02" + bytes(1400),
    "long request for an ephemeral key": b"\xf2\x00" + bytes(1400),
    "zeros": bytes(1400),
    "random": os.urandom(1400),
}


def microseconds(server: KeyServer, datagram: bytes) -> float:
    """Time for one; they come a second apart, so that no limit of rates drops them."""
    begun = time.perf_counter()
    for second in range(ROUNDS):
        server.answer(datagram, "192.0.2.1", float(second))
    return (time.perf_counter() - begun) / ROUNDS * 1e6


def main() -> None:
    """One line for each kind."""
    for name, datagram in DATAGRAMS.items():
        server = a_server()
        said = "dropped" if server.answer(datagram, "192.0.2.1", 0.0) is None else "answered"
        print(f"{name:34} {said:8} {microseconds(server, datagram):6.1f} us")


if __name__ == "__main__":
    main()
