import contextlib
import socket
from ipaddress import IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import host
from pqtun.protocol.errors import UserError

WANTED = IPv4Interface("10.43.0.1/16")


def test_a_free_subnet_is_taken_as_it_is():
    assert host.free_subnet(WANTED, [IPv4Network("10.42.0.0/16"), IPv4Network("192.0.2.0/24")]) == WANTED


def test_one_in_use_is_replaced():
    assert host.free_subnet(WANTED, [IPv4Network("10.43.7.0/24")]) == IPv4Interface("10.0.0.1/16")
    assert host.free_subnet(WANTED, [IPv4Network("10.0.0.0/8")]) == IPv4Interface("172.16.0.1/16")
    assert host.free_subnet(WANTED, [IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12")]) == IPv4Interface(
        "192.168.0.1/16"
    )


def test_none_is_free():
    with pytest.raises(UserError, match="--address"):
        host.free_subnet(WANTED, host.PRIVATE_NETWORKS)
    with pytest.raises(UserError, match="--address"):
        host.free_subnet(IPv4Interface("10.0.0.1/8"), [IPv4Network("10.1.0.0/16")])


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(13, 32)), max_size=12), st.integers(14, 29))
def test_what_is_found_overlaps_nothing(used, length):
    networks = [IPv4Network(pair, strict=False) for pair in used]
    wanted = IPv4Interface(f"10.43.0.1/{length}")
    found = host.free_subnet(wanted, networks)
    assert not any(found.network.overlaps(network) for network in networks)
    assert found.network.prefixlen == length


def test_a_port_in_use_is_named():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"UDP port {port} is in use .* --key-port"):
            host.bind_udp(port, "--key-port")


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_group_of_sockets_shares_the_datagrams_of_one_port():
    port = free_port()
    sockets = host.bind_udp_group(port, "--port", 3)
    try:
        assert not any(sock.getblocking() or sock.get_inheritable() for sock in sockets)
        with pytest.raises(UserError, match="is in use"):  # another pqtun would make a group too
            host.bind_udp_group(port, "--port", 2)
        for _ in range(200):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", ("127.0.0.1", port))
        got = [0, 0, 0]
        for number, sock in enumerate(sockets):
            with contextlib.suppress(BlockingIOError):
                while sock.recv(10):
                    got[number] += 1
        assert sum(got) == 200
        assert min(got) > 20
    finally:
        for sock in sockets:
            sock.close()
    host.bind_udp(port, "--port").close()


@pytest.mark.parametrize("mtu", [576, 1200, 1396, 4040])
def test_a_read_fits_into_one_message(mtu):
    segments, size = host.segment_limits(mtu)
    assert 1 <= segments <= 64
    assert segments * (mtu + 56) <= 65507
    payload = mtu - 52
    assert (size - 40) // payload <= segments
    assert size <= 65536


def test_link_local_resolvers(tmp_path):
    file = tmp_path / "resolv.conf"
    assert host.link_local_resolvers(file) == []
    file.write_text("# nameserver fe80::9\nsearch x\nnameserver\nnameserver 192.0.2.1\nnameserver FE80::1%eth0\n")
    assert host.link_local_resolvers(file) == ["FE80::1%eth0"]
