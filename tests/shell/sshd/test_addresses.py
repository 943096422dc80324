import json
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv6Address

import pytest

from pqtun.protocol.private6 import address6, prefix
from pqtun.shell.sshd.addresses import Place

INNER = IPv4Interface("10.42.0.1/16")
NETWORK6 = prefix(INNER.network)
OWN6 = address6(NETWORK6, INNER.ip)


def place(*more) -> Place:
    return Place(7, "pqtsrv0", INNER, (INNER.ip, OWN6, *more))


def test_clients_are_those_of_the_tunnel():
    client = IPv4Address("10.42.3.9")
    assert place().client("10.42.3.9") == client
    assert place().client(str(address6(NETWORK6, client))) == client


@pytest.mark.parametrize(
    "source",
    [
        "10.42.0.1",
        "10.43.0.9",
        "127.0.0.1",
        "192.0.2.1",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "fe80::1%lo",
        "::ffff:10.42.3.9",
        str(OWN6),
        str(IPv6Address(int(address6(NETWORK6, IPv4Address("10.42.3.9"))) ^ 1)),
        str(address6(NETWORK6, IPv4Address("10.43.0.9"))),
        str(address6(prefix(IPv4Interface("10.9.0.1/16").network), IPv4Address("10.42.3.9"))),
        "",
        "alice",
    ],
)
def test_nobody_else_is(source):
    assert place().client(source) is None


def test_an_address_that_packets_are_delivered_to_is_own():
    assert place(IPv4Address("10.42.5.5")).client("10.42.5.5") is None


# Runs in a network namespace of its own.
FIND = """
import json, subprocess, sys
from ipaddress import IPv4Address, IPv4Interface
from pqtun.shell.sshd import addresses
def ip(*words): subprocess.run(["ip", *words], check=True)
def found(wanted=None, deliver_to=None):
    place = addresses.find("inner7", wanted, deliver_to)
    return place and [str(place.inner), *map(str, place.addresses)]
seen = [found()]
ip("link", "add", "inner7", "type", "veth", "peer", "name", "other7")
seen.append(found())
ip("addr", "add", "10.42.0.1/16", "dev", "inner7")
ip("link", "set", "inner7", "up")
seen.append(found())
ip("addr", "add", sys.argv[1] + "/64", "dev", "inner7", "nodad")
seen.append(found())
seen.append(found(None, IPv4Address("192.0.2.9")))
seen.append(found(IPv4Interface("10.42.0.9/24")))
place = addresses.find("inner7", None, None)
sockets = addresses.listen(place, 42422)
seen.append([sock.getsockname()[:2] for sock in sockets])
try:
    addresses.listen(place, 42422)
except Exception as error:
    seen.append(str(error))
addresses.close(sockets)
ip("link", "del", "inner7")
seen.append(found())
print(json.dumps(seen))
"""


@pytest.mark.root
def test_what_a_device_has():
    argv = ["unshare", "--net", sys.executable, "-c", FIND, str(OWN6)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    own, own6 = "10.42.0.1", str(OWN6)
    assert json.loads(result.stdout) == [
        None,
        None,
        ["10.42.0.1/16", own],
        ["10.42.0.1/16", own, own6],
        ["10.42.0.1/16", own, "192.0.2.9", own6],
        ["10.42.0.9/24", "10.42.0.9"],
        [[own, 42422], [own6, 42422]],
        "cannot listen on 10.42.0.1 port 42422: Address already in use; see --port",
        None,
    ]
