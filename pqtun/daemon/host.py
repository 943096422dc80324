"""What the privileged parent makes on the host: the TUN interface with its addresses, and bound sockets."""

import errno
import io
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from itertools import chain
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from pqtun.protocol.constants import TUNNEL_OVERHEAD
from pqtun.protocol.errors import UserError
from pqtun.protocol.private6 import PREFIX_BITS, address6, prefix
from pqtun.pump.tun import open_tun

log = logging.getLogger(__name__)

PRIVATE_NETWORKS: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918
# Where the search in a private network begins. People and routers number from the low end, and a host that moves on to
# such a network should not find its own subnet there; Kubernetes and VPNs have more from 10.244 on.
_SEARCH_FROM: Final = int(IPv4Address("10.200.0.0"))
_SITE_BITS: Final = 48  # a unique local site (RFC 4193); a shorter prefix is a route to all such sites

# Where nobody sets the MTU: what the way to the Internet carries, at most Ethernet's 1500, less IPv6 40, UDP 8 and our
# own bytes, which fits both outer IP versions without fragments; never less than IPv6 takes (RFC 8200 section 5).
LARGEST_ROUTE_MTU: Final = 1500
OUTER_OVERHEAD: Final = 40 + 8 + TUNNEL_OVERHEAD
LEAST_MTU: Final = 1280
_RTN_UNICAST: Final = 1  # linux/rtnetlink.h

# The kernel doubles them. Each is enough for a burst of some 30 ms at the engine's speed; what one client sends beyond
# that is lost to it, while more would keep the packets of all others waiting for as long.
SOCKET_BUFFER: Final = 1 << 20
NATIVE_SOCKET_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_SO_SNDBUFFORCE: Final = 32
# linux/in.h, linux/in6.h. Datagrams go without DF: on a path with a smaller MTU routers cut them (those over IPv6 this
# host, once a router said so), where else they would be lost.
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT: Final = 0
# No IPv6 in this kernel, or none that may be used.
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_IFA_F_NODAD: Final = 0x02  # linux/if_addr.h
_ADDR_GEN_MODE_NONE: Final = "1"  # linux/if_link.h, IN6_ADDR_GEN_MODE_NONE

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
    mtu: int = LARGEST_ROUTE_MTU - OUTER_OVERHEAD  # bytes
    address6: IPv6Interface | None = None  # its private IPv6 address, if it has one

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
    for network in _private_subnets(length):
        if is_free(network):
            return IPv4Interface((network.network_address + host_number, length))
    raise UserError(f"no private network of size /{length} is free on this host; name one with --address")


def _private_subnets(length: int) -> Iterator[IPv4Network]:
    """All private networks of a size, those that are seldom used by others first."""
    size = 1 << (32 - length)
    for private in PRIVATE_NETWORKS:
        first, last = int(private.network_address), int(private.broadcast_address)
        middle = _SEARCH_FROM // size * size if first < _SEARCH_FROM < last else first
        if length >= private.prefixlen:
            for number in chain(range(middle, last, size), range(first, middle, size)):
                yield IPv4Network((number, length))


def automatic_mtu(ipr: Any) -> int:
    """Return the MTU (bytes) for the TUN device of a host whose default routes are these."""
    sizes = [LARGEST_ROUTE_MTU]
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in ipr.get_routes(family=family):
            # Of several the least: this host may come to use each. Two routes with one bit are a default route too.
            if route["family"] == family and route["dst_len"] <= 1 and route["type"] == _RTN_UNICAST:
                sizes += _route_mtus(ipr, route)
    return max(min(sizes) - OUTER_OVERHEAD, LEAST_MTU)


def _route_mtus(ipr: Any, route: Any) -> list[int]:
    """The MTU of the route itself, where it has one, and those of its devices."""
    own = route.get_attr("RTA_METRICS")
    sizes = [own.get_attr("RTAX_MTU") if own is not None else None]
    hops = [hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ()]
    for index in filter(None, (route.get_attr("RTA_OIF"), *hops)):
        sizes += [link.get_attr("IFLA_MTU") for link in ipr.get_links(index)]
    return [size for size in sizes if size]


def _prefix_is_in_use(ipr: Any, network: IPv6Network) -> bool:
    """Whether the host has an address or a route in a private IPv6 prefix, or one to a site that contains it."""
    addresses = [(message.get_attr("IFA_ADDRESS"), message["prefixlen"]) for message in _of_ipv6(ipr.get_addr)]
    routes = [(route.get_attr("RTA_DST"), route["dst_len"]) for route in _of_ipv6(ipr.get_routes)]
    return any(
        length >= _SITE_BITS and network.overlaps(IPv6Network((text, length), strict=False))
        for text, length in addresses + routes
        if text
    )


def _of_ipv6(dump: Any) -> list[Any]:
    """What a netlink dump has of IPv6; a kernel without it gives what it has of other families."""
    return [message for message in dump(family=socket.AF_INET6) if message["family"] == socket.AF_INET6]


def make_tun(
    name: str,
    wanted: IPv4Interface,
    mtu: int | None,
    *,
    movable: bool,
    queues: int = 1,
    vnet_header: bool = False,
    ipv6: bool = True,
) -> Tun:
    """Make a TUN device with an address, up. It vanishes with its descriptors.

    ``mtu``: in bytes, None for what the default routes make best. ``movable``: nobody asked for this very address, so
    a free one may be taken where it is in use. ``queues``: how many at most, one where the kernel has no more.
    ``ipv6``: whether it gets its private IPv6 address too, where the host allows that. Raises UserError.
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
            mtu = automatic_mtu(ipr) if mtu is None else mtu
            ipr.link("set", index=index, mtu=mtu)
            if vnet_header:
                _limit_segments(ipr, index, mtu)
            ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
            own6 = _add_ipv6(ipr, index, name, address) if ipv6 else None
            if own6 is None:
                _set_ipv6(name, disable_ipv6="1")  # or the kernel sends router solicitations into the tunnel
            ipr.link("set", index=index, state="up")
        except BaseException as error:
            for fd in descriptors:
                os.close(fd)
            if isinstance(error, NetlinkError | IndexError):
                raise UserError(f"cannot set up the interface {name}: {error}") from None
            raise
    if address != wanted:
        log.warning("%s is in use on this host: using %s", wanted.network, address.network)
    return Tun(tuple(io.FileIO(fd, "r+") for fd in descriptors), name, address, vnet_header, mtu, own6)


def _add_ipv6(ipr: Any, index: int, name: str, address: IPv4Interface) -> IPv6Interface | None:
    """Give a device that is down its private IPv6 address and no other; None where that cannot be."""
    network = prefix(address.network)
    own6 = IPv6Interface((address6(network, address.ip), PREFIX_BITS))
    if _prefix_is_in_use(ipr, network):
        log.warning("%s is in use on this host: no IPv6 inside tunnels", network)
        return None
    # No link-local address, no routes from anybody: in a tunnel there is the peer and nothing else.
    _set_ipv6(name, disable_ipv6="0", addr_gen_mode=_ADDR_GEN_MODE_NONE, accept_ra="0", accept_redirects="0")
    try:
        ipr.addr(
            "add",
            index=index,
            family=socket.AF_INET6,
            address=str(own6.ip),
            prefixlen=PREFIX_BITS,
            flags=_IFA_F_NODAD,  # there is nobody who could have it
        )
    except NetlinkError as error:  # no IPv6 in this kernel, switched off for all devices, or an MTU below its least
        log.info("no IPv6 inside tunnels: %s", error)
        return None
    return own6


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


def _set_ipv6(name: str, **settings: str) -> None:
    for setting, value in settings.items():
        try:
            with open(f"/proc/sys/net/ipv6/conf/{name}/{setting}", "w") as file:
                file.write(value)
        except OSError:
            pass  # no IPv6 in this kernel, or /proc/sys is read-only in a container: the pump drops what is not ours


def bind_udp(port: int, option: str, buffer: int = SOCKET_BUFFER) -> socket.socket:
    """Return a non-blocking UDP socket on ``port`` of all addresses, with room for ``buffer`` bytes each way.

    It is an IPv6 socket that takes IPv4 too (RFC 3493 section 3.7), or one for IPv4 where the kernel has no IPv6.
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
    try:
        try:
            sock = _bound_to(socket.AF_INET6, "::", port, shared=shared)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
            sock = _bound_to(socket.AF_INET, "0.0.0.0", port, shared=shared)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"UDP port {port} is in use by another program; stop it or choose another {option}"
            ) from None
        raise UserError(f"cannot use UDP port {port}: {error.strerror}; choose another {option}") from None
    for name in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        try:
            sock.setsockopt(socket.SOL_SOCKET, name, buffer)
        except OSError:
            pass  # root without CAP_NET_ADMIN: the system's default has to do
    return sock


def _bound_to(family: socket.AddressFamily, host: str, port: int, *, shared: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
