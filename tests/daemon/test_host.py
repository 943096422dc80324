import contextlib
import errno
import itertools
import json
import socket
import subprocess
import sys
import textwrap
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import host
from pqtun.protocol.errors import UserError

WANTED = IPv4Interface("10.43.0.1/16")
ROOT = Path(__file__).resolve().parents[2]
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23


def test_a_free_subnet_is_taken_as_it_is():
    assert host.free_subnet(WANTED, [IPv4Network("10.42.0.0/16"), IPv4Network("192.0.2.0/24")]) == WANTED


def test_one_in_use_is_replaced():
    assert host.free_subnet(WANTED, [IPv4Network("10.43.7.0/24")]) == IPv4Interface("10.200.0.1/16")
    some = [IPv4Network("10.43.7.0/24"), IPv4Network("10.200.0.0/15")]
    assert host.free_subnet(WANTED, some) == IPv4Interface("10.202.0.1/16")
    upper = [IPv4Network("10.43.7.0/24"), IPv4Network("10.192.0.0/10")]
    assert host.free_subnet(WANTED, upper) == IPv4Interface("10.0.0.1/16")
    assert host.free_subnet(WANTED, [IPv4Network("10.0.0.0/8")]) == IPv4Interface("172.16.0.1/16")
    assert host.free_subnet(WANTED, [IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12")]) == IPv4Interface(
        "192.168.0.1/16"
    )


def test_none_is_free():
    with pytest.raises(UserError, match="--address"):
        host.free_subnet(WANTED, host.PRIVATE_NETWORKS)
    with pytest.raises(UserError, match="--address"):
        host.free_subnet(IPv4Interface("10.0.0.1/8"), [IPv4Network("10.1.0.0/16")])


@pytest.mark.parametrize("length", [8, 9, 12, 16, 20])
def test_every_private_network_is_tried_once(length):
    tried = list(host._private_subnets(length))
    assert len(set(tried)) == len(tried)
    private = [network for network in host.PRIVATE_NETWORKS if network.prefixlen <= length]
    assert sorted(tried) == sorted(itertools.chain(*(network.subnets(new_prefix=length) for network in private)))


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(13, 32)), max_size=12), st.integers(14, 29))
def test_what_is_found_overlaps_nothing(used, length):
    networks = [IPv4Network(pair, strict=False) for pair in used]
    wanted = IPv4Interface(f"10.43.0.1/{length}")
    found = host.free_subnet(wanted, networks)
    assert not any(found.network.overlaps(network) for network in networks)
    assert found.network.prefixlen == length


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")]
)
def test_a_port_in_use_is_named(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as taken:
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"UDP port {port} is in use .* --key-port"):
            host.bind_udp(port, "--key-port")


def exchange(sock, family, address):
    """Send to a socket and let it answer; the source that it saw."""
    with socket.socket(family, socket.SOCK_DGRAM) as far:
        far.settimeout(10)
        far.connect((address, sock.getsockname()[1]))
        far.send(b"question")
        sock.settimeout(10)
        data, source = sock.recvfrom(100)
        assert data == b"question"
        sock.sendto(b"answer", source)
        assert far.recv(100) == b"answer"
    return source[0]


def test_a_socket_for_both_families():
    with host.bind_udp(free_port(), "--port") as sock:
        assert sock.family == socket.AF_INET6
        assert exchange(sock, socket.AF_INET6, "::1") == "::1"
        assert exchange(sock, socket.AF_INET, "127.0.0.1") == "::ffff:127.0.0.1"
        # Neither family's datagrams go with DF or fail here where the path is narrow.
        assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == 0
        assert sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) == 0


def no_ipv6(monkeypatch, number, where):
    """Have every IPv6 socket fail with an error, when it is made or bound; the sockets that were made."""
    made = []

    class Refusing(socket.socket):
        def __init__(self, family=-1, *arguments, **named):
            if family == socket.AF_INET6 and where == "socket":
                raise OSError(number, "no")
            super().__init__(family, *arguments, **named)
            made.append(self)

        def bind(self, address):
            if self.family == socket.AF_INET6:
                raise OSError(number, "no")
            super().bind(address)

    monkeypatch.setattr(host.socket, "socket", Refusing)
    return made


@pytest.mark.parametrize(
    ("number", "where"),
    [(errno.EAFNOSUPPORT, "socket"), (errno.EADDRNOTAVAIL, "bind"), (errno.EAFNOSUPPORT, "bind")],
)
def test_without_ipv6_a_socket_for_ipv4(monkeypatch, number, where):
    port = free_port()
    made = no_ipv6(monkeypatch, number, where)
    sockets = host.bind_udp_group(port, "--port", 2)
    monkeypatch.undo()
    assert [sock.fileno() >= 0 for sock in made if sock.family == socket.AF_INET6] == [False] * 2 * (where == "bind")
    assert [sock.family for sock in sockets] == [socket.AF_INET] * 2
    sockets.pop().close()
    with sockets[0] as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER) == 0
        assert exchange(sock, socket.AF_INET, "127.0.0.1") == "127.0.0.1"


def test_another_fault_is_told(monkeypatch):
    made = no_ipv6(monkeypatch, errno.EACCES, "bind")
    with pytest.raises(UserError, match="cannot use UDP port 7: no; choose another --port"):
        host.bind_udp(7, "--port")
    assert [sock.fileno() for sock in made] == [-1]


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
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")) * 100:
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", (address, port))
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


def in_own_network(text):
    """Run a program in a network namespace of its own; what it prints, as JSON."""
    program = """
import json, subprocess
from ipaddress import IPv4Interface
from pqtun.daemon import host
def ip(command):
    return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout
def ipv6_of(name):
    return [
        (found["local"], found["prefixlen"], "nodad" in found, "tentative" in found)
        for link in json.loads(ip(f"-j -6 addr show dev {name}"))
        for found in link.get("addr_info", ()) if "local" in found
    ]
def setting(name, key):
    return open(f"/proc/sys/net/ipv6/conf/{name}/{key}").read().strip()
def device(name, mtu=1500):
    ip(f"link add {name} mtu {mtu} type veth peer name {name}x")
    ip(f"link set {name} up")
    ip(f"link set {name}x up")
def tun(address="10.43.0.1/16", mtu=1396, **named):
    return host.make_tun("pq0", IPv4Interface(address), mtu, movable=False, **named)
ip("link set lo up")
"""
    argv = ["unshare", "--net", sys.executable, "-c", program + textwrap.dedent(text)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


OWN6 = "fdd7:ef0f:7bd4::8d17:a2b:1"


@pytest.mark.root
@pytest.mark.tun
def test_the_tun_device_has_one_private_ipv6_address():
    said, _ = in_own_network("""
        made = tun()
        print(json.dumps([
            str(made.address6), made.mtu, ipv6_of("pq0"), ip("-6 route show dev pq0").split()[0],
            [setting("pq0", key) for key in ("addr_gen_mode", "accept_ra", "accept_redirects")],
        ]))
    """)
    own6, mtu, addresses, route, settings = said
    assert (own6, mtu) == (f"{OWN6}/64", 1396)
    assert addresses == [[OWN6, 64, True, False]]  # in use at once, and no link-local one beside it
    assert route == f"{OWN6.partition('::')[0]}::/64"
    assert settings == ["1", "0", "0"]


@pytest.mark.root
@pytest.mark.tun
@pytest.mark.parametrize(
    ("before", "named"),
    [
        ("", "ipv6=False"),
        ("", "mtu=1279"),
        ("open('/proc/sys/net/ipv6/conf/default/disable_ipv6', 'w').write('1')\n        host._set_ipv6 = no", ""),
    ],
    ids=["not wanted", "small MTU", "switched off for good"],
)
def test_a_tun_device_without_ipv6(before, named):
    said, _ = in_own_network(f"""
        def no(*_, **__): pass
        {before}
        made = tun({named})
        print(json.dumps([made.address6, ipv6_of("pq0"), ip("-4 -o addr show dev pq0").split()[3]]))
    """)
    assert said == [None, [], "10.43.0.1/16"]


@pytest.mark.root
@pytest.mark.tun
@pytest.mark.parametrize(
    ("route", "taken"), [("fdd7:ef0f:7bd4::/64", True), ("fdd7:ef0f:7bd4::/48", True), ("fc00::/7", False)]
)
def test_an_ipv6_prefix_in_use_is_left_alone(route, taken):
    said, stderr = in_own_network(f"""
        device("other"); ip("-6 route add {route} dev other")
        made = tun()
        print(json.dumps([str(made.address6), ipv6_of("pq0"), setting("pq0", "disable_ipv6")]))
    """)
    assert said == (["None", [], "1"] if taken else [f"{OWN6}/64", [[OWN6, 64, True, False]], "0"])
    assert ("in use" in stderr) == taken


@pytest.mark.root
@pytest.mark.tun
@pytest.mark.parametrize(
    ("routes", "mtu"),
    [
        ([], 1396),
        (["route add default dev d1500"], 1396),
        (["route add default dev d9000"], 1396),
        (["route add default dev d1450"], 1346),
        (["-6 route add default dev d1450"], 1346),
        (["route add default dev d1500", "-6 route add default dev d1450"], 1346),
        (["route add default dev d1500 mtu 1420"], 1316),
        (["route add default nexthop dev d1500 nexthop dev d1450"], 1346),
        (["route add default dev d1450 table 77"], 1346),
        (["route add 0.0.0.0/1 dev d1450", "route add default dev d1500"], 1346),
        (["route add 192.0.2.0/24 dev d1450"], 1396),
        (["-6 route add unreachable default"], 1396),
        (["route add default dev d1300"], 1280),
    ],
)
def test_the_mtu_follows_from_the_default_routes(routes, mtu):
    said, _ = in_own_network(f"""
        for size in (1300, 1450, 1500, 9000):
            device(f"d{{size}}", size)
        for route in {routes!r}:
            ip(route)
        made = tun(mtu=None)
        print(json.dumps([made.mtu, json.loads(ip("-j link show dev pq0"))[0]["mtu"]]))
    """)
    assert said == [mtu, mtu]
