"""Where the server listens, and whom it takes connections from: the inner addresses of its TUN device."""

import fcntl
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network
from pathlib import Path
from struct import Struct
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.protocol.private6 import address4, address6, prefix

# linux/sockios.h, netdevice(7)
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_IFREQ: Final = Struct("16sHH4s16x")  # name, then struct sockaddr_in: family, port, address
_IF_INET6: Final = Path("/proc/net/if_inet6")  # address, index, prefix length, scope, flags, name of the device
# linux/in.h, linux/in6.h: an address may be bound that is not usable yet.
_IP_FREEBIND: Final = 15
_IPV6_FREEBIND: Final = 78
_BACKLOG: Final = 128


@dataclass(frozen=True, slots=True)
class Place:
    """A device with the addresses of it to listen on."""

    index: int  # of the device: one that was made anew is another
    device: str
    inner: IPv4Interface
    addresses: tuple[IPv4Address | IPv6Address, ...]

    @property
    def network6(self) -> IPv6Network:
        """The IPv6 prefix of clients."""
        return prefix(self.inner.network)

    def client(self, source: str) -> IPv4Address | None:
        """Return the private IPv4 address of whoever has the source address; None if it is no client's.

        A client's IPv6 address stands for the same client.
        """
        try:
            address: IPv4Address | None = IPv4Address(source)
        except ValueError:
            try:
                address = address4(self.network6, IPv6Address(source))
            except ValueError:
                return None
        if address is None or address not in self.inner.network or address in (self.inner.ip, *self.addresses):
            return None
        return address


def find(device: str, wanted: IPv4Interface | None, deliver_to: IPv4Address | None) -> Place | None:
    """Return where to listen now; None while the device or its address is not there.

    ``wanted``: the address and network that was configured; None: what the device has, and ``deliver_to`` where the
    tunnel delivers packets to another address.
    """
    try:
        index = socket.if_nametoindex(device)
        has = _ipv4_of(device)
    except OSError:
        return None
    inner = has if wanted is None else wanted
    if inner is None:
        return None
    addresses: list[IPv4Address | IPv6Address] = [inner.ip]
    if wanted is None and deliver_to is not None and deliver_to != inner.ip:
        addresses.append(deliver_to)
    own6 = address6(prefix(inner.network), inner.ip)
    if own6 in _ipv6_of(device):
        addresses.append(own6)
    return Place(index, device, inner, tuple(addresses))


def _ipv4_of(device: str) -> IPv4Interface | None:
    request = _IFREQ.pack(device.encode(), 0, 0, bytes(4))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            address, mask = (
                _IFREQ.unpack(fcntl.ioctl(sock, ask, request))[3] for ask in (_SIOCGIFADDR, _SIOCGIFNETMASK)
            )
        except OSError:
            return None
    return IPv4Interface((address, int.from_bytes(mask).bit_count()))


def _ipv6_of(device: str) -> list[IPv6Address]:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return []  # no IPv6 in this kernel
    return [IPv6Address(bytes.fromhex(words[0])) for line in lines if (words := line.split())[-1] == device]


def listen(place: Place, port: int) -> list[socket.socket]:
    """Return sockets that listen on the place's addresses and take only what arrives by its device.

    Raises UserError if the port is taken, OSError if the device has gone meanwhile.
    """
    sockets: list[socket.socket] = []
    try:
        for address in place.addresses:
            sockets.append(_listen(address, place.device, port))
    except BaseException:
        close(sockets)
        raise
    return sockets


def _listen(address: IPv4Address | IPv6Address, device: str, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
        try:
            sock.bind((str(address), port))
            sock.listen(_BACKLOG)
        except OSError as error:
            raise UserError(f"cannot listen on {address} port {port}: {error.strerror}; see --port") from None
    except BaseException:
        sock.close()
        raise
    return sock


def close(sockets: Sequence[socket.socket]) -> None:
    """Close listening sockets."""
    for sock in sockets:
        sock.close()
