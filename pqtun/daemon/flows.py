"""Which private addresses programs of this host have connections to (sock_diag(7))."""

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import Struct
from typing import Final

from pqtun.protocol.private6 import address4

# linux/netlink.h, sock_diag.h, inet_diag.h, tcp_states.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_DUMP_REQUEST: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_INET_DIAG_REQ_BYTECODE: Final = 1
_INET_DIAG_BC_D_COND: Final = 8
_ANY_PORT: Final = -1
# All but TIME_WAIT (6), CLOSE (7: a UDP socket without a peer), LISTEN (10) and what never had an answer.
_STATES: Final = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9, 11))

_NLMSG = Struct("=IHHII")
_REQUEST = Struct("=BBBxI48x")
_ATTRIBUTE = Struct("=HH")
_OPERATION = Struct("=BBH")
_HOST = Struct("=BBxxi")
_ADDRESS_AT: Final = _NLMSG.size + 4 + 4 + 16  # of struct inet_diag_msg: 4 bytes, ports, source; the destination
_RECEIVE_BYTES: Final = 1 << 16


def addresses_in_use(subnet: IPv4Network, network6: IPv6Network | None) -> set[IPv4Address]:
    """Return the private IPv4 addresses in ``subnet`` to which TCP or connected UDP sockets of this host go.

    Sockets to an IPv6 address of ``network6`` count for the IPv4 address beside it. Programs in other network
    namespaces (containers) are not seen. Blocks for as long as the kernel looks through its tables. Raises OSError.
    """
    used = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as sock:
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
            # A condition on IPv4 matches mapped addresses of IPv6 sockets too.
            for family, network in ((socket.AF_INET, subnet), (socket.AF_INET6, subnet), (socket.AF_INET6, network6)):
                if network is not None:
                    for address in _destinations(sock, family, protocol, network):
                        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else address
                        if mapped is None and network6 is not None and isinstance(address, IPv6Address):
                            mapped = address4(network6, address)
                        if mapped is not None:
                            used.add(mapped)
    return used


def _destinations(
    sock: socket.socket, family: int, protocol: int, network: IPv4Network | IPv6Network
) -> Iterator[IPv4Address | IPv6Address]:
    sock.send(_request(family, protocol, network))
    while True:
        data = sock.recv(_RECEIVE_BYTES)
        at = 0
        while at + _NLMSG.size <= len(data):
            length, kind, *_ = _NLMSG.unpack_from(data, at)
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -int.from_bytes(data[at + _NLMSG.size : at + _NLMSG.size + 4], "little", signed=True)
                if code == errno.ENOENT:  # a protocol that this kernel does not list
                    return
                raise OSError(code, os.strerror(code))
            start = at + _ADDRESS_AT
            if data[at + _NLMSG.size] == socket.AF_INET:
                yield IPv4Address(data[start : start + 4])
            else:
                yield IPv6Address(data[start : start + 16])
            at += (length + 3) & ~3


def _request(family: int, protocol: int, network: IPv4Network | IPv6Network) -> bytes:
    """A dump of the sockets whose destination is in ``network``."""
    address = network.network_address.packed
    kind = socket.AF_INET if network.version == 4 else socket.AF_INET6
    condition = _HOST.pack(kind, network.prefixlen, _ANY_PORT) + address
    size = _OPERATION.size + len(condition)
    code = _OPERATION.pack(_INET_DIAG_BC_D_COND, size, size + 4) + condition  # to the end, or past it
    body = _REQUEST.pack(family, protocol, 0, _STATES)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(code), _INET_DIAG_REQ_BYTECODE) + code
    return _NLMSG.pack(_NLMSG.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP_REQUEST, 0, 0) + body
