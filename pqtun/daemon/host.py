"""What the privileged parent makes on the host: the TUN interface with its address, and bound sockets."""

import errno
import io
import logging
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from pqtun.protocol.constants import TUNNEL_OVERHEAD
from pqtun.protocol.errors import UserError
from pqtun.pump.tun import open_tun

log = logging.getLogger(__name__)

PRIVATE_NETWORKS: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918

# The kernel doubles them. Each is enough for a burst of some 30 ms at the engine's speed; what one client sends beyond
# that is lost to it, while more would keep the packets of all others waiting for as long.
SOCKET_BUFFER: Final = 1 << 20
NATIVE_SOCKET_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_SO_SNDBUFFORCE: Final = 32
# linux/in.h. Datagrams go without DF: on a path with a smaller MTU routers cut them, where else they would be lost.
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DONT: Final = 0

_UDP_PAYLOAD: Final = 0xFFFF - 28  # bytes of a whole UDP_SEGMENT message: 65,535 less the IPv4 and UDP headers
_UDP_SEGMENTS: Final = 64  # linux/udp.h UDP_MAX_SEGMENTS was that before Linux 6.9
_HEADERS: Final = 40  # bytes of IPv4 and TCP without options
_TIMESTAMPS: Final = 12  # bytes of the TCP options that packets with data have


def link_local_resolvers(resolv_conf: Path = Path("/etc/resolv.conf")) -> list[str]:
    """Return the nameservers of resolv.conf(5) with a link-local address: lookups through them cannot be redirected."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError:
        return []
    words = (line.split() for line in lines)
    servers = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return [server for server in servers if server.lower().startswith(("fe8", "fe9", "fea", "feb"))]  # fe80::/10


@dataclass(frozen=True, slots=True)
class Tun:
    """An open TUN device that is up."""

    files: tuple[io.FileIO, ...]  # its queues; the device vanishes with the last process's descriptor
    name: str
    address: IPv4Interface
    vnet_header: bool = False  # whether a virtio header stands before each packet

    def close(self) -> None:
        """Close this process's descriptors."""
        for file in self.files:
            file.close()


def networks_in_use(ipr: Any) -> list[IPv4Network]:
    """Return the networks of the host's addresses and of its routes, default routes left out."""
    networks = [
        IPv4Network(
            (message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["prefixlen"]), strict=False
        )
        for message in ipr.get_addr(family=socket.AF_INET)
    ]
    for route in ipr.get_routes(family=socket.AF_INET):
        destination = route.get_attr("RTA_DST")
        if destination and route["dst_len"] > 1:  # two routes with one bit each are a default route too
            networks.append(IPv4Network((destination, route["dst_len"]), strict=False))
    return networks


def check_own_address(address: IPv4Address, option: str) -> None:
    """Raise UserError that names ``option`` unless an interface other than the loopback has this address.

    What arrives through a tunnel is for this host only, and the kernel takes nothing from outside for the loopback.
    """
    with IPRoute() as ipr:
        own = {str(message.get_attr("IFA_LOCAL")) for message in ipr.get_addr(family=socket.AF_INET)}
    if address.is_loopback or str(address) not in own:
        raise UserError(f"{option} {address}: name an address that one of this host's network interfaces has")


def free_subnet(wanted: IPv4Interface, used: Iterable[IPv4Network]) -> IPv4Interface:
    """Return ``wanted``, or if it overlaps a network in use the same host number in a free private one.

    Raises UserError if no private network of that size is free.
    """
    used = list(used)

    def is_free(network: IPv4Network) -> bool:
        return not any(network.overlaps(other) for other in used)

    if is_free(wanted.network):
        return wanted
    host_number = int(wanted.ip) - int(wanted.network.network_address)
    length = wanted.network.prefixlen
    for private in PRIVATE_NETWORKS:
        if length >= private.prefixlen:
            for network in private.subnets(new_prefix=length):
                if is_free(network):
                    return IPv4Interface((network.network_address + host_number, length))
    raise UserError(f"no private network of size /{length} is free on this host; name one with --address")


def make_tun(
    name: str, wanted: IPv4Interface, mtu: int, *, movable: bool, queues: int = 1, vnet_header: bool = False
) -> Tun:
    """Make a TUN device with an address, up. It vanishes with its descriptors.

    ``movable``: nobody asked for this very address, so a free one may be taken where it is in use. ``queues``: how many
    at most, one where the kernel has no more. Raises UserError.
    """
    with IPRoute() as ipr:
        used = networks_in_use(ipr)
        address = free_subnet(wanted, used)
        if address != wanted and not movable:
            clash = next(network for network in used if network.overlaps(wanted.network))
            raise UserError(
                f"the subnet {wanted.network} is in use on this host ({clash}); name a free one with --address"
            )
        descriptors = open_tun(name, queues=queues, vnet_header=vnet_header)
        try:
            index = ipr.link_lookup(ifname=name)[0]
            _disable_ipv6(name)
            ipr.link("set", index=index, mtu=mtu)
            if vnet_header:
                _limit_segments(ipr, index, mtu)
            ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
            ipr.link("set", index=index, state="up")
        except BaseException as error:
            for fd in descriptors:
                os.close(fd)
            if isinstance(error, NetlinkError | IndexError):
                raise UserError(f"cannot set up the interface {name}: {error}") from None
            raise
    if address != wanted:
        log.warning("%s is in use on this host: using %s", wanted.network, address.network)
    return Tun(tuple(io.FileIO(fd, "r+") for fd in descriptors), name, address, vnet_header)


def segment_limits(mtu: int) -> tuple[int, int]:
    """Return how many segments, and how many bytes with headers, one read from the TUN device shall bring at most.

    So much leaves as one UDP_SEGMENT message, in which each segment takes an inner packet and our own bytes.
    """
    segments = min(_UDP_SEGMENTS, _UDP_PAYLOAD // (mtu + TUNNEL_OVERHEAD))
    return segments, segments * (mtu - _HEADERS - _TIMESTAMPS) + _HEADERS


def _limit_segments(ipr: Any, index: int, mtu: int) -> None:
    segments, size = segment_limits(mtu)
    try:
        ipr.link("set", index=index, gso_max_segs=segments, gso_max_size=size)
    except NetlinkError as error:
        log.debug("the kernel cuts packets of any size: %s", error)  # then some leave as two messages


def remove_tun(name: str) -> None:
    """Remove the device if it is still there: a worker that was taken over could have made it a persistent one."""
    try:
        with IPRoute() as ipr:
            for index in ipr.link_lookup(ifname=name):
                ipr.link("del", index=index)
    except NetlinkError as error:
        log.warning("cannot remove the interface %s: %s", name, error)


def _disable_ipv6(name: str) -> None:
    """Keep the kernel from sending router solicitations into a tunnel that carries IPv4 only."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:
        pass  # no IPv6 in this kernel, or /proc/sys is read-only in a container: the packets are dropped by the pump


def bind_udp(port: int, option: str, buffer: int = SOCKET_BUFFER) -> socket.socket:
    """Return a non-blocking IPv4 UDP socket on ``port`` of all addresses, with room for ``buffer`` bytes each way.

    Raises UserError that names ``option``.
    """
    return bind_udp_group(port, option, 1, buffer)[0]


def bind_udp_group(port: int, option: str, count: int, buffer: int = SOCKET_BUFFER) -> list[socket.socket]:
    """Return ``count`` sockets as those of ``bind_udp`` on one port; each peer's datagrams come to one of them.

    Raises UserError that names ``option``.
    """
    # The first takes the port for itself, so that another program's claim to it shows. Only then may others of the
    # same user, root, join (SO_REUSEPORT, socket(7)).
    sockets = [_bound(port, option, buffer, shared=False)]
    try:
        if count > 1:
            sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(sockets) < count:
            sockets.append(_bound(port, option, buffer, shared=True))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bound(port: int, option: str, buffer: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"UDP port {port} is in use by another program; stop it or choose another {option}"
            ) from None
        raise UserError(f"cannot use UDP port {port}: {error.strerror}; choose another {option}") from None
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
    for name in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        try:
            sock.setsockopt(socket.SOL_SOCKET, name, buffer)
        except OSError:
            pass  # root without CAP_NET_ADMIN: the system's default has to do
    return sock
