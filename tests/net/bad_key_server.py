"""A key server with a fault: bad_key_server.py MODE ADDRESS, on UDP port 45000 of that address; prints "ready".

silent: answers nothing. noise: answers with random bytes. wrong: answers each request with another key's node.
slow: hands everything on to the real one on port 42425, and its answers back 0.3 s later.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections import deque

from pqtun.protocol.errors import MessageError
from pqtun.protocol.keydatagram import StaticRequest, parse_request, static_response
from pqtun.protocol.keytree import node_length

PORT = 45000
_DELAY = 0.3
_REAL = ("127.0.0.1", 42425)


def answer(mode: str, request: bytes) -> bytes | None:
    """What a faulty server says to a request."""
    if mode == "silent":
        return None
    if mode == "wrong":
        try:
            parsed = parse_request(request)
        except MessageError:
            return None
        if isinstance(parsed, StaticRequest):
            return static_response(parsed.node, bytes(node_length(parsed.node)))
    return os.urandom(len(request))


def relay(sock: socket.socket) -> None:
    """Be slow, for one client."""
    real = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    real.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    real.connect(_REAL)
    client = ("", 0)
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([sock, real], [], [], timeout)
        if sock in readable:
            request, client = sock.recvfrom(2048)
            real.send(request)
        if real in readable:
            waiting.append((time.monotonic() + _DELAY, real.recv(2048)))
        while waiting and waiting[0][0] <= time.monotonic():
            sock.sendto(waiting.popleft()[1], client)


def main(mode: str, address: str) -> None:
    """Serve until killed."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, PORT))
    print("ready", flush=True)
    if mode == "slow":
        relay(sock)
    while True:
        request, client = sock.recvfrom(2048)
        response = answer(mode, request)
        if response is not None:
            sock.sendto(response, client)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
