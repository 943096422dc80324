"""The listener's control socket, for ``pqtun status``: as pqtun.daemon.control has it, without asyncio."""

import json
import selectors
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

MAX_REQUEST: Final = 4096  # bytes
MAX_ASKING: Final = 8  # connections at once; the oldest makes room


class StatusSocket:
    """Serves requests on the listener's selector."""

    def __init__(
        self, sock: socket.socket, selector: selectors.BaseSelector, status: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._sock = sock
        self._selector = selector
        self._status = status
        self._asking: OrderedDict[socket.socket, bytes] = OrderedDict()
        selector.register(sock, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """End all connections, and listen no more."""
        for sock in (*self._asking, self._sock):
            self._selector.unregister(sock)
            sock.close()
        self._asking.clear()

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        self._asking[sock] = b""
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._readable(sock))
        if len(self._asking) > MAX_ASKING:
            self._end(next(iter(self._asking)))

    def _readable(self, sock: socket.socket) -> None:
        if sock not in self._asking:
            return  # it has just made room
        try:
            data = sock.recv(MAX_REQUEST)
            line = self._asking[sock] + data
            if not data or len(line) > MAX_REQUEST:
                self._end(sock)
            elif b"\n" not in data:
                self._asking[sock] = line
            else:
                sock.sendall(json.dumps(self._answer(line)).encode() + b"\n")  # what does not fit is not waited for
                self._end(sock)
        except OSError:
            self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        del self._asking[sock]
        self._selector.unregister(sock)
        sock.close()

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            known = json.loads(line)["op"] == "status"
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        return self._status() if known else {"error": "unknown request; known: status"}
