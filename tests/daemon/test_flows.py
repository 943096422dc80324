"""Connections of this host, as the kernel lists them."""

import socket
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from pqtun.daemon.flows import addresses_in_use

LOOPBACK = IPv4Network("127.53.0.0/16")  # nobody else's
NOWHERE = IPv6Network("fd00::/64")
ONE, TWO, THREE, FOUR = (IPv4Address(f"127.53.0.{n}") for n in range(1, 5))


def test_tcp_udp_and_mapped() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        port = listener.getsockname()[1]
        assert addresses_in_use(LOOPBACK, NOWHERE) == set()
        tcp = stack.enter_context(socket.create_connection((str(ONE), port)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.connect((str(TWO), 9))
        unconnected = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        unconnected.bind((str(FOUR), 0))
        unconnected.sendto(b"", (str(FOUR), unconnected.getsockname()[1]))
        mapped = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM))
        mapped.connect((f"::ffff:{THREE}", port))
        assert addresses_in_use(LOOPBACK, NOWHERE) == {ONE, TWO, THREE}
        assert addresses_in_use(LOOPBACK, None) == {ONE, TWO, THREE}
        tcp.close()
        accepted = listener.accept()[0]
        accepted.close()
        udp.close()
        assert addresses_in_use(LOOPBACK, None) == {THREE}
