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

from pqtun.protocol.errors import UserError
from pqtun.pump.tun import open_tun

log = logging.getLogger(__name__)

PRIVATE_NETWORKS: Final = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918

# The kernel doubles it. Enough for a burst of some 30 ms at the speed of the Python engine; what one client sends
# beyond that is lost to it, while more would keep the packets of all others waiting for as long.
SOCKET_BUFFER: Final = 1 << 20
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h
_SO_SNDBUFFORCE: Final = 32
# linux/in.h. Datagrams go without DF: on a path with a smaller MTU routers cut them, where else they would be lost.
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DONT: Final = 0


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

    file: io.FileIO  # the device vanishes with the last process's descriptor
    name: str
    address: IPv4Interface


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


def make_tun(name: str, wanted: IPv4Interface, mtu: int, *, movable: bool) -> Tun:
    """Make a TUN device with an address, up. It vanishes with its descriptor.

    ``movable``: nobody asked for this very address, so a free one may be taken where it is in use. Raises UserError.
    """
    with IPRoute() as ipr:
        used = networks_in_use(ipr)
        address = free_subnet(wanted, used)
        if address != wanted and not movable:
            clash = next(network for network in used if network.overlaps(wanted.network))
            raise UserError(
                f"the subnet {wanted.network} is in use on this host ({clash}); name a free one with --address"
            )
        fd = open_tun(name)
        try:
            index = ipr.link_lookup(ifname=name)[0]
            _disable_ipv6(name)
            ipr.link("set", index=index, mtu=mtu)
            ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
            ipr.link("set", index=index, state="up")
        except (NetlinkError, IndexError) as error:
            os.close(fd)
            raise UserError(f"cannot set up the interface {name}: {error}") from None
        except BaseException:
            os.close(fd)
            raise
    if address != wanted:
        log.warning("%s is in use on this host: using %s", wanted.network, address.network)
    return Tun(io.FileIO(fd, "r+"), name, address)


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


def bind_udp(port: int, option: str) -> socket.socket:
    """Return a non-blocking IPv4 UDP socket on ``port`` of all addresses. Raises UserError that names ``option``."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
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
            sock.setsockopt(socket.SOL_SOCKET, name, SOCKET_BUFFER)
        except OSError:
            pass  # root without CAP_NET_ADMIN: the system's default has to do
    return sock
