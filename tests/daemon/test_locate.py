import asyncio
import os
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import dns.flags
import dns.message
import pytest

from pqtun.daemon import locate
from pqtun.daemon.locate import Addresses, Ports, find_ports, is_unicast
from tests.daemon.resolver import Resolver, serving

NAME = "pq1x.example.net"
V4, V6 = IPv4Address("192.0.2.9"), IPv6Address("2001:db8::9")
SILENT = ("192.0.2.1", 53)


def txt(texts):
    return {(name, "TXT"): found for name, found in texts.items()}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, Ports(42424, 42425)),
        ({NAME: ["p=1000"]}, Ports(1000, 42425)),
        (
            {NAME: ["v=spf1", "p=1000"], f"ks.{NAME}": ["ip=192.0.2.7;p=2000"]},
            Ports(1000, 42425, (("192.0.2.7", 2000),)),
        ),
        (
            {f"ks.{NAME}": ["ip=999.1.1.1;p=9", "ip=2001:db8::1;p=9", "ip=ff02::1;p=9", "ip=192.0.2.8;p=3"]},
            Ports(42424, 42425, (("2001:db8::1", 9), ("192.0.2.8", 3))),
        ),
    ],
)
@pytest.mark.parametrize("at", ["127.0.0.1", "::1"])
def test_ports_from_txt_records(texts, expected, at):
    async def test():
        async with serving(Resolver(txt(texts)), (at, 0)) as resolver:
            assert await find_ports(NAME, None, None, resolver) == expected

    asyncio.run(test())


def test_a_key_server_of_the_same_family_is_asked():
    both = Ports(1, 2, (("192.0.2.7", 3), ("192.0.2.8", 4), ("2001:db8::1", 5)))
    assert (both.key_server_of(V4), both.key_server_of(V6)) == (("192.0.2.7", 3), ("2001:db8::1", 5))
    one = Ports(1, 2, (("192.0.2.7", 3),))
    assert one.key_server_of(V4) == one.key_server_of(V6) == ("192.0.2.7", 3)
    none = Ports(1, 2)
    assert (none.key_server_of(V4), none.key_server_of(V6)) == (("192.0.2.9", 2), ("2001:db8::9", 2))


def test_one_port_of_the_label_and_one_default():
    assert asyncio.run(find_ports(NAME, 443, None, None)) == Ports(443, 42425)
    assert asyncio.run(find_ports(NAME, None, 853, None)) == Ports(42424, 853)


def test_the_label_goes_before_txt_records():
    async def test():
        texts = txt({NAME: ["p=1000"], f"ks.{NAME}": ["ip=192.0.2.7;p=2000"]})
        async with serving(Resolver(texts)) as resolver:
            assert await find_ports(NAME, None, 853, resolver) == Ports(1000, 853)
            assert await find_ports(NAME, 443, None, resolver) == Ports(443, 42425, (("192.0.2.7", 2000),))

    asyncio.run(test())


def test_ports_from_the_label_need_no_lookup():
    assert asyncio.run(find_ports(NAME, 443, 853, SILENT)) == Ports(443, 853)


def test_a_resolver_that_hangs_up_is_no_fault_of_ours():
    """It says by UDP that the answer is cut short, and closes the TCP connection without one."""

    class Truncating(Resolver):
        def datagram_received(self, data, source):
            answer = dns.message.make_response(dns.message.from_wire(data))
            answer.flags |= dns.flags.TC
            self.transport.sendto(answer.to_wire(), source)

    async def test():
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with serving(Truncating({}), server.sockets[0].getsockname()) as resolver:
            assert await find_ports(NAME, None, None, resolver) == Ports()
        server.close()

    asyncio.run(test())


def test_a_lost_question_is_asked_again(monkeypatch):
    monkeypatch.setattr(locate, "TRY_SECONDS", (0.05, 10.0))

    async def test():
        server = Resolver(txt({NAME: ["p=1000"]}), lost=2)
        async with serving(server) as resolver:
            assert await find_ports(NAME, None, None, resolver) == Ports(1000)
        assert len(server.asked) == 4

    asyncio.run(test())


def test_what_is_no_answer_is_not_believed(monkeypatch):
    """Datagrams from elsewhere, or with another id, do not end the wait for the real one either."""
    monkeypatch.setattr(locate, "TRY_SECONDS", (10.0,))

    class Noisy(Resolver):
        def datagram_received(self, data, source):
            query = dns.message.from_wire(data)
            forged = dns.message.make_response(query)
            forged.id ^= 1
            self.transport.sendto(b"junk", source)
            self.transport.sendto(forged.to_wire(), source)
            elsewhere.transport.sendto(dns.message.make_response(query).to_wire(), source)
            super().datagram_received(data, source)

    elsewhere = Resolver({})

    async def test():
        async with serving(elsewhere), serving(Noisy(txt({NAME: ["p=1000"]}))) as resolver:
            assert await find_ports(NAME, None, None, resolver) == Ports(1000)

    asyncio.run(test())


def test_no_resolver_answers(monkeypatch):
    monkeypatch.setattr(locate, "TRY_SECONDS", (0.01, 0.01))

    async def test():
        server = Resolver({}, lost=9)
        async with serving(server) as resolver:
            assert await find_ports(NAME, None, None, resolver) == Ports()
        assert len(server.asked) == 4

    asyncio.run(test())


RECORDS = {
    (NAME, "A"): [f"192.0.2.{number}" for number in range(1, 20)],
    (NAME, "AAAA"): ["2001:db8::9", "::ffff:192.0.2.77", "ff02::1", "::"],
}


async def all_known(addresses):
    while addresses.pending:
        await asyncio.wait(addresses.pending)
    return addresses.known


def test_addresses_of_both_families_are_looked_up():
    async def test():
        async with (
            serving(Resolver(RECORDS)) as resolver,
            Addresses(NAME, [V4], resolver, settled=()) as addresses,
        ):
            assert addresses.known == (V4,)
            found = await all_known(addresses)
            assert found[0] == V4
            assert set(found[1:]) <= {V6, *(ip_address(text) for text in RECORDS[NAME, "A"])}
            assert V6 in found
            assert sum(address.version == 4 for address in found[1:]) <= locate.MAX_RECORDS
            assert not addresses.look_again()

    asyncio.run(test())


def test_what_is_settled_is_looked_up_only_again():
    async def test():
        server = Resolver(RECORDS)
        async with serving(server) as resolver, Addresses(NAME, [V4], resolver, settled=[4]) as addresses:
            assert await all_known(addresses) == (V4, V6)
            assert server.asked == [(NAME, "AAAA")]
            assert addresses.look_again()
            assert len(await all_known(addresses)) > 2
            assert not addresses.look_again()
            assert sorted(server.asked) == [(NAME, "A"), (NAME, "AAAA")]

    asyncio.run(test())


def test_without_a_resolver_nothing_is_looked_up():
    async def test():
        async with Addresses(NAME, [V4], None, settled=()) as addresses:
            assert not addresses.pending
            assert not addresses.look_again()
            assert addresses.known == (V4,)

    asyncio.run(test())


def test_leaving_ends_the_lookups():
    async def test():
        server = Resolver({}, lost=9)
        async with serving(server) as resolver:
            before = len(os.listdir("/proc/self/fd"))
            async with Addresses(NAME, [], resolver, settled=()):
                async with asyncio.timeout(10):
                    while len(server.asked) < 2:  # noqa: ASYNC110 - polls state that has no event
                        await asyncio.sleep(0)
                assert len(os.listdir("/proc/self/fd")) == before + 2
            assert asyncio.all_tasks() == {asyncio.current_task()}
            await asyncio.sleep(0)  # transports close their sockets in the next turn
            assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(test())


@pytest.mark.parametrize("text", ["224.0.0.1", "239.1.1.1", "0.0.0.0", "ff02::1", "::", "::ffff:192.0.2.1"])
def test_addresses_that_no_single_host_has(text):
    assert not is_unicast(ip_address(text))
    assert is_unicast(V4)
    assert is_unicast(V6)


def test_addresses_that_are_no_servers_are_left_out_wherever_they_come_from():
    """Private ones, which stand for peers: a tunnel to one would lead through another tunnel, or itself."""
    records = {(NAME, "A"): ["192.0.2.1", "10.43.0.7"]}
    private = IPv4Address("10.43.0.9")

    def is_private(address):
        return address in IPv4Network("10.43.0.0/16")

    async def test():
        async with (
            serving(Resolver(records)) as resolver,
            Addresses(NAME, [private], resolver, settled=(), without=is_private) as addresses,
        ):
            assert addresses.known == ()
            assert await all_known(addresses) == (IPv4Address("192.0.2.1"),)

    asyncio.run(test())
    ports = Ports(1, 2, (("10.43.0.7", 3), ("192.0.2.1", 4)))
    assert ports.without(is_private) == Ports(1, 2, (("192.0.2.1", 4),))
