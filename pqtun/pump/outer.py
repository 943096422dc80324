"""The UDP socket of a Python engine: IPv4, or both families in one socket."""

import socket
from errno import EAFNOSUPPORT

from pqtun.pump.engine import Endpoint

_MAPPED = "::ffff:"  # RFC 4291 section 2.5.5.2


class OuterSocket:
    """Sends to and receives from endpoints. A socket of AF_INET6 carries IPv4 in mapped addresses, unseen above it."""

    def __init__(self, sock: socket.socket) -> None:
        """``sock`` is bound and not connected; one of AF_INET6 has IPV6_V6ONLY off. It is this object's from now on."""
        self._socket = sock
        self._dual = sock.family == socket.AF_INET6
        sock.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def send(self, datagram: bytes, endpoint: Endpoint) -> None:
        """Send a datagram now. Raises OSError, EAFNOSUPPORT for an IPv6 endpoint where there is only IPv4."""
        host, port = endpoint
        if self._dual:
            endpoint = (host if ":" in host else _MAPPED + host, port)
        elif ":" in host:
            raise OSError(EAFNOSUPPORT, "no IPv6 socket")
        self._socket.sendto(datagram, endpoint)

    def receive(self, size: int) -> tuple[bytes, Endpoint]:
        """Return a datagram and where it came from. Raises BlockingIOError if there is none, and OSError."""
        datagram, (host, port, *_) = self._socket.recvfrom(size)
        if self._dual and "." in host:
            host = host.removeprefix(_MAPPED)
        return datagram, (host, port)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
