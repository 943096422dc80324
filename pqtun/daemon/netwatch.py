"""Tells when this host's addresses or routes change (rtnetlink(7))."""

import asyncio
import socket
from collections.abc import Callable
from struct import Struct
from typing import Final

# linux/rtnetlink.h
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV4_ROUTE: Final = 0x40
_RTMGRP_IPV6_IFADDR: Final = 0x100
_RTMGRP_IPV6_ROUTE: Final = 0x400
_GROUPS: Final = _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE
_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_CHANGES: Final = frozenset((_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE))
_NLMSG = Struct("=IHHII")
_RECEIVE_BYTES: Final = 1 << 16

# A change of network is a dozen messages within some hundred milliseconds: one call for all of them.
SETTLE_SECONDS: Final = 0.3


class NetworkWatch:
    """Calls ``changed`` after each change, once the messages have settled."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Raises OSError. Nothing is read before ``start``."""
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._sock = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        try:
            self._sock.bind((0, _GROUPS))
        except OSError:
            self._sock.close()
            raise

    def start(self) -> None:
        """Begin to watch on the running event loop."""
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Stop; may be called twice."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self) -> None:
        try:
            relevant = _has_change(self._sock.recv(_RECEIVE_BYTES))
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: so much has changed that the kernel could not tell all of it
            relevant = True
        if relevant and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._changed()


def _has_change(data: bytes) -> bool:
    at = 0
    while at + _NLMSG.size <= len(data):
        length, kind, *_ = _NLMSG.unpack_from(data, at)
        if kind in _CHANGES:
            return True
        at += max((length + 3) & ~3, _NLMSG.size)
    return False
