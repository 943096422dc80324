"""The one process that has the host keys. It signs hashes of key exchanges and does nothing else.

Neither what parses packets nor what starts users' processes ever has a host key in its memory; and no connection has to
load them.
"""

import resource
import selectors
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncssh

from pqtun.protocol.errors import UserError
from pqtun.shell.sshd import confinement, hostkeys, messages, process
from pqtun.shell.sshd.hostkeys import PublicKey
from pqtun.shell.sshd.messages import MessageError

HASH_BYTES: Final = (32, 48, 64)  # of an exchange hash: SHA-256, SHA-384, SHA-512
ANSWER_SECONDS: Final = 5.0
_START_SECONDS: Final = 30.0


class Signer:
    """The listener's view of the process."""

    def __init__(self, directory: Path, empty: Path) -> None:
        """Start it; it makes missing keys, then shuts itself in ``empty``. Raises UserError if there are no keys."""
        self._sock, other = messages.pair()
        self.pid = process.start("pqtun-signer", lambda: _run(directory, empty, other))
        other.close()
        self._sock.settimeout(_START_SECONDS)
        try:
            answer, _ = messages.receive(self._sock)
        except (EOFError, OSError, MessageError):
            answer = {"error": "the process that has the host keys ended while it started"}
        if "error" in answer:
            self.close()
            raise UserError(answer["error"])
        self.keys = [PublicKey(name, messages.decode_bytes(blob)) for name, blob in answer["keys"]]
        self._sock.settimeout(ANSWER_SECONDS)

    def connect(self) -> socket.socket:
        """Return a connection to it, for one monitor. Raises OSError."""
        ours, theirs = messages.pair()
        ours.settimeout(ANSWER_SECONDS)
        with theirs:
            try:
                messages.send(self._sock, {}, [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """No new connections; the process ends with the last of those that there are."""
        self._sock.close()


def ask(sock: socket.socket, algorithm: str, data: bytes) -> bytes:
    """Return the signature blob (RFC 4253 section 6.6) of a hash. Blocks. Raises MessageError, OSError, EOFError."""
    messages.send(sock, {"algorithm": algorithm, "data": messages.encode_bytes(data)})
    answer, fds = messages.receive(sock)
    messages.close_all(fds)
    return messages.decode_bytes(answer.get("signature"))


def _run(directory: Path, empty: Path, sock: socket.socket) -> None:
    try:
        keys = hostkeys.prepare(directory)
    except UserError as error:
        messages.send(sock, {"error": str(error)})
        return
    confinement.shut_in(empty, [sock.fileno()])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (most, most)
    )  # each connection takes one, and services get 1024 at first
    publics = [hostkeys.public(key) for key in keys]
    messages.send(sock, {"keys": [(key.algorithm, messages.encode_bytes(key.blob)) for key in publics]})
    _serve(sock, keys)


def _serve(sock: socket.socket, keys: Sequence[asyncssh.SSHKey]) -> None:
    by_name = {key.get_algorithm(): key for key in keys}
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                asking = key.fileobj
                assert isinstance(asking, socket.socket)
                try:
                    message, fds = messages.receive(asking)
                except (EOFError, OSError, MessageError) as error:
                    if asking is sock and isinstance(error, MessageError):
                        continue  # no descriptor was left for that connection; there will be for others
                    selector.unregister(asking)
                    asking.close()
                    continue
                if asking is sock:
                    for fd in fds:
                        selector.register(socket.socket(fileno=fd), selectors.EVENT_READ)
                    continue
                messages.close_all(fds)
                try:
                    messages.send(asking, _answer(message, by_name))
                except OSError:
                    pass  # its end shows with the next receive


def _answer(message: dict[str, object], keys: dict[str, asyncssh.SSHKey]) -> dict[str, object]:
    try:
        key = keys[str(message["algorithm"])]
        data = messages.decode_bytes(message["data"])
    except (KeyError, MessageError):
        return {"error": "no such key, or no hash"}
    if len(data) not in HASH_BYTES:
        return {"error": "not the length of a hash"}
    return {"signature": messages.encode_bytes(key.sign(data, key.algorithm))}
