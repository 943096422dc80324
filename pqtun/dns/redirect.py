"""What takes privileges: the sockets of the DNS proxy, and the nftables table that redirects lookups to them.

The table has the owner flag: the kernel removes it as soon as the netlink socket that made it is closed, however the
process ends. The nft program closes its socket at once, so the table is made through its library, whose context
keeps the socket (libnftables(3)).

Not redirected are the worker's own lookups, and those to or from a link-local address: a socket that is connected to
such an address is bound to its interface and takes no answer from the loopback. For the same reason lookups of a
program that binds its socket to an interface (SO_BINDTODEVICE) are redirected, but get no answer.
"""

import ctypes
import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pqtun.dns.conntrack import forget_flows, open_events
from pqtun.dns.origin import DNS_PORT
from pqtun.protocol.errors import MessageError, UserError

TABLE: Final = "pqtun_client"
# The worker's own lookups are in a conntrack zone of their own. In the common one, a program that happens to get a
# source port that the worker has just used towards the same resolver would be taken for the same flow and not be
# redirected: one lookup in a hundred on a busy host. Any number that other software does not use will do.
ZONE: Final = 42424

_BACKLOG: Final = 64
_ATTEMPTS: Final = 64  # ports to try; each is free for UDP and IPv4, and nearly always for the rest
_LIBRARY: Final = "libnftables.so.1"
_EVENTS_SWITCH: Final = Path("/proc/sys/net/netfilter/nf_conntrack_events")  # of this network namespace
_NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
# -100 is the priority of destination NAT. One before it: the first rule that matches decides, and another's (for a DNS
# server in a container of this host, say) would lead lookups around the proxy. It still gets the worker's own.
_RULES: Final = """\
create table inet {table} {{ flags owner; }}
add chain inet {table} raw {{ type filter hook output priority -300; policy accept; }}
add rule inet {table} raw meta skuid {uid} meta l4proto {{ tcp, udp }} th dport {dns} ct original zone set {zone}
add chain inet {table} output {{ type nat hook output priority -101; policy accept; }}
add rule inet {table} output meta skuid {uid} accept
add rule inet {table} output ip6 daddr fe80::/10 accept
add rule inet {table} output ip6 saddr fe80::/10 accept
add rule inet {table} output meta l4proto {{ tcp, udp }} th dport {dns} redirect to :{port}
"""
# Anybody can announce a server and have this host make a tunnel to it. Through the tunnel such a server would reach
# whatever listens on all addresses of this host, past the router or firewall that keeps others away from it.
_GUARD_RULES: Final = """\
add chain inet {table} input {{ type filter hook input priority 0; policy accept; }}
add rule inet {table} input iifname != "{interface}" accept
add rule inet {table} input ct state {{ established, related }} accept
add rule inet {table} input meta l4proto {{ icmp, icmpv6 }} accept
add rule inet {table} input counter drop
"""


@dataclass(frozen=True, slots=True)
class DnsSockets:
    """The proxy's sockets, non-blocking: UDP and listening TCP on 127.0.0.1 and ::1, conntrack's events."""

    port: int
    udp: tuple[socket.socket, ...]
    tcp: tuple[socket.socket, ...]
    events: socket.socket

    def close(self) -> None:
        """Close this process's copies."""
        for sock in (*self.udp, *self.tcp, self.events):
            sock.close()


def open_sockets() -> DnsSockets:
    """Open the proxy's sockets, all on one port that the kernel chooses. Without IPv6 on the loopback, on IPv4 only.

    A wildcard socket would not do: it answers from another address than the one that was asked. Raises UserError
    without CAP_NET_ADMIN or conntrack.
    """
    for _ in range(_ATTEMPTS):
        opened: list[socket.socket] = []
        try:
            udp4 = _bound(opened, socket.AF_INET, socket.SOCK_DGRAM, 0)
            port = int(udp4.getsockname()[1])
            tcp4 = _bound(opened, socket.AF_INET, socket.SOCK_STREAM, port)
            udp, tcp = [udp4], [tcp4]
            try:
                udp.append(_bound(opened, socket.AF_INET6, socket.SOCK_DGRAM, port))
                tcp.append(_bound(opened, socket.AF_INET6, socket.SOCK_STREAM, port))
            except OSError as error:
                if error.errno not in _NO_IPV6:
                    raise
            for sock in tcp:
                sock.listen(_BACKLOG)
            return DnsSockets(port, tuple(udp), tuple(tcp), _events(port))
        except BaseException as error:
            for sock in opened:
                sock.close()
            if not (isinstance(error, OSError) and error.errno == errno.EADDRINUSE):
                raise
    raise UserError("no port on 127.0.0.1 and ::1 is free for the DNS proxy: too many programs hold local ports")


def _bound(opened: list[socket.socket], family: int, kind: int, port: int) -> socket.socket:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    opened.append(sock)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
    return sock


def _events(port: int) -> socket.socket:
    try:
        events = open_events(DNS_PORT, port)
    except PermissionError:
        raise UserError("watching for DNS lookups needs root (CAP_NET_ADMIN): start the client as root") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"this kernel tells no new connections (nf_conntrack_netlink): {reason}") from None
    if _events_are_off():
        events.close()
        raise UserError("conntrack's events are switched off: run `sysctl net.netfilter.nf_conntrack_events=2`")
    return events


def _events_are_off() -> bool:
    try:
        return _EVENTS_SWITCH.read_text().strip() == "0"
    except OSError:
        return False  # a kernel that cannot switch them off


class Redirect:
    """The nftables table that sends all lookups of this network namespace, but the worker's, to the proxy."""

    def __init__(self, port: int, worker_uid: int, table: str = TABLE, *, guarded: str | None = None) -> None:
        """Make the table: UDP and TCP to port 53 go to ``port`` on the loopback, unless ``worker_uid`` sent them.

        What comes in through the interface ``guarded`` is dropped unless it is ICMP or belongs to a connection that
        was begun here.
        Raises UserError without libnftables, without CAP_NET_ADMIN, if the kernel cannot do it, and if the table is
        there already: another client runs.
        """
        self._nft = _Nftables()
        try:
            if self._nft.run(f"list table inet {table}") is None:
                raise UserError(
                    f"the nftables table 'inet {table}' exists: another pqtun client runs here. Stop that first"
                    f" (or, if none does, remove it: nft delete table inet {table})"
                )
            rules = _RULES.format(table=table, uid=worker_uid, zone=ZONE, dns=DNS_PORT, port=port)
            if guarded is not None:
                rules += _GUARD_RULES.format(table=table, interface=guarded)
            fault = self._nft.run(rules)
            if fault is not None:
                raise UserError(_explain(fault))
            _forget_lookups()
        except BaseException:
            self._nft.close()
            raise

    def close(self) -> None:
        """Remove the table. May be called again."""
        if self._nft.close():
            _forget_lookups()


def _forget_lookups() -> None:
    """Have lookups that programs make through sockets they keep follow the change at once."""
    try:
        forget_flows(DNS_PORT)
    except (OSError, MessageError):
        pass  # they follow when the socket was silent for conntrack's 30 to 120 s


def _explain(fault: str) -> str:
    if "Operation not permitted" in fault:
        return "redirecting DNS lookups needs root (CAP_NET_ADMIN): start the client as root"
    return f"nftables does not take the rules for DNS lookups (it takes Linux 5.12 or newer, with nft_redir): {fault}"


class _Nftables:
    """A context of libnftables; its netlink socket is open until close()."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise UserError(f"{_LIBRARY} is missing: install nftables") from None
        context = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_new.restype = context
        library.nft_ctx_free.argtypes = [context]
        library.nft_ctx_free.restype = None
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [context]
        library.nft_ctx_get_error_buffer.argtypes = [context]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
        before = _descriptors()
        self._library = library
        self._context: int | None = library.nft_ctx_new(0)
        if self._context is None:
            raise UserError("libnftables does not start: no memory, or no netlink sockets")
        # A program that this process starts must not inherit the socket, or the table would outlive us.
        for descriptor in _descriptors() - before:
            os.set_inheritable(descriptor, False)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str | None:
        """Run commands as one transaction; None if all is well, else the first line of what is wrong."""
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) == 0:
            return None
        text = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        return next((line for line in text.splitlines() if line.strip()), "no reason given")

    def close(self) -> bool:
        """Close the netlink socket; False if that was done before."""
        if self._context is None:
            return False
        self._library.nft_ctx_free(self._context)
        self._context = None
        return True


def _descriptors() -> set[int]:
    """The open descriptors of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the one with which the directory was read
        found.add(int(name))
    return found
