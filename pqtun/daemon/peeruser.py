"""Which user is at the other end of a Unix socket."""

import socket
from struct import Struct
from typing import Final

_UCRED: Final = Struct("=iII")  # unix(7), SO_PEERCRED: pid, uid, gid


def peer_user(sock: socket.socket) -> int:
    """Return the user id of who connected, or of who called listen(2). Raises OSError."""
    return int(_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1])
