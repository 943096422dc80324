"""A web server: web_server.py PORT DIRECTORY [CONGESTION-CONTROL], IPv4 and IPv6, HTTP/1.1, a line of output a request.

GET serves the directory's files; POST answers with the SHA-256 of what was sent, in hexadecimal.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import socketserver
import sys

_CHUNK = 1 << 16


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints "client-address path" for each request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer with the digest of the body."""
        left = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while left and (data := self.rfile.read(min(left, _CHUNK))):
            digest.update(data)
            left -= len(data)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Print the request in place of the common log format."""
        address = str(self.client_address[0]).removeprefix("::ffff:")
        print(address, getattr(self, "path", "-"), flush=True)


class Server(socketserver.ThreadingTCPServer):
    """Not http.server's own class: that asks the DNS for the host's name at start."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in mid-transfer is no event."""


if __name__ == "__main__":
    handler = functools.partial(Handler, directory=sys.argv[2])
    with Server(("::", int(sys.argv[1])), handler) as server:
        if sys.argv[3:] and sys.argv[3]:
            # Of one socket, for a namespace may not have others than the machine allows. Accepted ones inherit it.
            server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[3].encode())
        server.serve_forever()
