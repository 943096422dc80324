import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from types import SimpleNamespace

import pytest

from pqtun.daemon import client as client_module
from pqtun.daemon import clock
from pqtun.daemon.client import ClientService
from pqtun.daemon.connector import ConnectError
from pqtun.daemon.host import Tun
from pqtun.daemon.policy import Rule
from pqtun.daemon.settings import ClientSettings
from pqtun.dns.answer import DIRECT, Found, Private
from pqtun.protocol import control
from pqtun.protocol.names import Announcement
from pqtun.protocol.private6 import address6
from pqtun.pump.engine import Control, EngineStats, Roamed, TunnelStats, Wanted
from tests.daemon.virtual import now, play

OWN = IPv4Interface("10.43.0.1/16")
SERVER = IPv4Address("10.42.0.1")
TID = bytes(32)
REAL, OTHER = IPv4Address("192.0.2.7"), IPv4Address("192.0.2.8")


class RecordingEngine:
    """Stands for an engine: notes what is sent."""

    name = "native"
    workers = 2

    def offload(self):
        return {"udp-gso": "on", "udp-gro": "unsupported"}

    def __init__(self):
        self.sent = []
        self.removed = []

    def start(self, listener):
        pass

    def send_inner(self, tid, packet, *, only=None):
        self.sent.append((tid, packet))

    def remove_tunnel(self, tid):
        self.removed.append(tid)

    def hold(self, inner, *, report=False):
        pass

    def drop_held(self, inner, *, unreachable):
        pass

    def stats(self):
        return EngineStats([], {}, 0, 0, 0, 0)

    def close(self):
        pass


def with_service(tmp_path, test):
    """Run ``test(service, engine)`` on an event loop."""

    async def body():
        engine = RecordingEngine()
        service = ClientService(ClientSettings(state=tmp_path), Tun((), "pqtcli0", OWN), engine)
        test(service, engine)
        service.failed.cancel()
        await service.close()

    asyncio.run(body())


class RecordingLink:
    """Stands for the link of the tunnel TID."""

    peer = SimpleNamespace(inner=IPv4Address("10.43.0.2"))
    tid = None
    upkeep = None

    def __init__(self, service):
        self.calls = []
        service._by_tid[TID] = self

    def __getattr__(self, name):
        return lambda *words, **named: self.calls.append((name, *words, *named.values()))


def test_one_packet_asks_for_one(tmp_path):
    """The server chooses where the answers go: one packet must not bring it, or a third party, thousands."""

    def test(service, engine):
        RecordingLink(service)
        pings = [control.Ping(number.to_bytes(8, "big")) for number in range(control.MAX_ITEMS)]
        asked = control.encode(pings, SERVER)
        service.handle(Control(TID, asked))
        ((tid, answer),) = engine.sent
        assert tid == TID
        assert len(answer) == len(asked)
        assert control.parse(answer) == [control.Pong(ping.data) for ping in pings]

    with_service(tmp_path, test)


@pytest.mark.parametrize("size", [0, 500, 1396])
def test_a_pong_is_as_long_as_its_ping(tmp_path, size):
    def test(service, engine):
        RecordingLink(service)
        asked = control.encode([control.Ping(bytes(8))], SERVER, size)
        service.handle(Control(TID, asked))
        assert [len(answer) for _, answer in engine.sent] == [len(asked)]

    with_service(tmp_path, test)


def test_what_the_tunnels_say_goes_to_their_links(tmp_path):
    def test(service, engine):
        link = RecordingLink(service)
        hello = control.Hello(1, 0, 1396)
        good = control.encode([control.Bye(0)], SERVER)
        service.handle(Control(TID, good[:-1]))
        service.handle(Control(b"x" * 32, good))
        service.handle(Control(TID, control.encode([hello, control.Pong(b"12345678")], SERVER)))
        service.handle(Roamed(TID, ("192.0.2.1", 1)))
        service.handle(Roamed(TID, ("10.43.0.9", 1)))
        for reason in (control.BYE_STOPPING, control.BYE_MAKING_ROOM):
            service.handle(Control(TID, control.encode([control.Bye(reason)], SERVER)))
        assert link.calls == [
            ("introduced", TID, hello),
            ("answered", TID, b"12345678"),
            ("roamed", TID, ("192.0.2.1", 1)),
            ("ended", TID, False),  # two tunnels that lead through each other would carry a packet for ever
            ("ended", TID, False),
            ("ended", TID, True),
        ]
        assert service.status({})["events"] == {"control": 2, "roamed_inside": 1}

    with_service(tmp_path, test)


def found(name="pq1x.example.net", asked="www.example.net", real4=(REAL,), real6=None, *, sought=True):
    announcement = Announcement(b"k" * 32, 42424, 42425)
    return Found(announcement, name, asked, real4 and list(real4), real6, ("192.0.2.53", 53), sought)


class Refused:
    """Stands for the connector: there is no tunnel to be had."""

    async def contact(self, *_, **__):
        raise ConnectError("wrong_key", "no")


def test_where_it_is_allowed_programs_go_without_a_tunnel_for_some_time(tmp_path, monkeypatch):
    """Only after a failure, only by the names it is allowed for, and only this server."""
    rules = (Rule("*.example.net", "direct"),)

    async def scenario():
        monkeypatch.setattr(clock, "boottime", now)
        engine = RecordingEngine()
        settings = ClientSettings(state=tmp_path, failure=rules, direct_minutes=5)
        service = ClientService(settings, Tun((), "pqtcli0", OWN), engine)
        service._connector = Refused()
        private = service.address_of(found())
        assert isinstance(private, Private)
        await asyncio.sleep(1)
        assert service.address_of(found()) is DIRECT
        assert service.address_of(found(name="pq1x.example.org", asked="www.example.org")) is not DIRECT
        assert service.address_of(found(name="pq1y.example.net", real4=[OTHER])) is not DIRECT
        await asyncio.sleep(298)
        assert service.address_of(found()) is DIRECT
        await asyncio.sleep(2)
        assert service.address_of(found()) == private
        await asyncio.sleep(1)
        assert service.address_of(found()) is DIRECT
        service.failed.cancel()
        await service.close()

    play(scenario())


def test_without_leave_a_server_is_never_spoken_to_in_clear(tmp_path, monkeypatch):
    async def scenario():
        monkeypatch.setattr(clock, "boottime", now)
        service = ClientService(ClientSettings(state=tmp_path), Tun((), "pqtcli0", OWN), RecordingEngine())
        service._connector = Refused()
        for _ in range(5):
            assert isinstance(service.address_of(found()), Private)
            await asyncio.sleep(60)
        service.failed.cancel()
        await service.close()

    play(scenario())


def test_ipv6_addresses_are_given_for_servers_that_know_of_them(tmp_path):
    def test(service, _engine):
        service._tun = Tun((), "pqtcli0", OWN, address6=IPv6Interface("fdd7:ef0f:7bd4::1/64"))
        service._connector = Refused()
        inner, six = service.address_of(found())
        assert six is None
        service._book.learned(inner, True)
        assert service.address_of(found()).v6 == address6(IPv6Network("fdd7:ef0f:7bd4::/64"), inner)
        assert service.is_own(inner)
        assert service.is_own(service.address_of(found()).v6)
        assert not service.is_own(IPv6Address("fdd7:ef0f:7bd4::1"))

    with_service(tmp_path, test)


def test_the_status_tells_of_the_key_cache(tmp_path):
    def test(service, _engine):
        assert service.status({"udp_queries": 3})["key_cache"] == {}
        service._cache.get(bytes(32))
        said = service.status({"udp_queries": 3})
        assert (said["key_cache"], said["dns"]) == ({"misses": 1}, {"udp_queries": 3})

    with_service(tmp_path, test)


async def made(tmp_path, monkeypatch, **settings):
    monkeypatch.setattr(clock, "boottime", now)
    monkeypatch.setattr(clock, "wall", now)
    service = ClientService(ClientSettings(state=tmp_path, **settings), Tun((), "pqtcli0", OWN), RecordingEngine())
    service._connector = Refused()
    return service


async def closed(service):
    service.failed.cancel()
    await service.close()


def test_a_fault_in_the_rounds_ends_the_service(tmp_path, monkeypatch):
    """Without them nothing is kept up and nothing lost is replaced, and nobody would notice."""

    async def scenario():
        service = await made(tmp_path, monkeypatch)
        service.address_of(found())
        monkeypatch.setattr(client_module, "FLOWS_SECONDS", 1e9)  # a thread knows nothing of virtual time
        monkeypatch.setattr(service._engine, "stats", lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await service.keep_up()
        assert isinstance(service.failed.exception(), ZeroDivisionError)
        await service.close()

    play(scenario())


def tunnel_stats(inner, *, sent=None, received=None, confirmed=True):
    return TunnelStats(
        TID, inner, (str(OTHER), 42424), 0, 0, now(), sent, received, None, confirmed, None, *(0,) * 4, {}
    )


@pytest.mark.parametrize(
    ("received", "confirmed", "proven"), [(None, True, False), (0.0, False, False), (0.0, True, True)]
)
def test_a_peer_is_proven_by_what_comes_from_it(tmp_path, monkeypatch, received, confirmed, proven):
    """What is sent, or comes from where it was not shown to be, proves no address."""

    async def scenario():
        service = await made(tmp_path, monkeypatch)
        inner = service.address_of(found()).v4
        when = None if received is None else now() + received
        stats = EngineStats([tunnel_stats(inner, sent=now(), received=when, confirmed=confirmed)], {}, 0, 0, 0, 0)
        monkeypatch.setattr(service._engine, "stats", lambda: stats)
        service._round(now())
        assert service._book.by_inner(inner).proven == proven
        await closed(service)

    play(scenario())


def test_links_of_which_nothing_is_left_to_know_are_forgotten(tmp_path, monkeypatch):
    """Anybody can have this host look up names without end."""

    async def scenario():
        service = await made(tmp_path, monkeypatch)
        kept = service.address_of(found("pq1kept.example.net")).v4
        for number in range(50):
            service.address_of(found(f"pq1x{number}.example.net", real4=[OTHER + number]))
        assert len(service._links) == 51
        await asyncio.sleep(1)
        service._connected = {kept}
        for _ in range(20):
            service._round(now())
            await asyncio.sleep(client_module.NOTE_SECONDS)
        assert set(service._links) == {kept}
        await closed(service)

    play(scenario())


def test_servers_that_share_a_key_share_no_link(tmp_path, monkeypatch):
    """Anybody can announce somebody else's key, and be given a private address that was another's before."""

    async def scenario():
        service = await made(tmp_path, monkeypatch)
        inner = service.address_of(found()).v4
        before, peer = service._links[inner], service._book.by_inner(inner)
        assert service._link(replace(peer, addresses=(OTHER,))) is before
        assert service._link(replace(peer, name="pq1x.example.org")) is not before
        await closed(service)

    play(scenario())


def test_what_was_reached_directly_is_forgotten_in_time(tmp_path, monkeypatch):
    async def scenario():
        service = await made(tmp_path, monkeypatch, failure=(Rule("*", "direct"),), direct_minutes=5)
        for number in range(50):
            service.address_of(found(f"pq1x{number}.example.net", real4=[REAL + number]))
            await asyncio.sleep(30)
        assert 0 < len(service._direct) <= 11
        await closed(service)

    play(scenario())


def test_nobody_goes_without_a_tunnel_that_is_there(tmp_path, monkeypatch):
    """It came up meanwhile, for a connection that waited for it."""

    async def scenario():
        service = await made(tmp_path, monkeypatch, failure=(Rule("*", "direct"),))
        inner = service.address_of(found()).v4
        await asyncio.sleep(1)
        assert service.address_of(found()) is DIRECT
        service._links[inner] = SimpleNamespace(
            **{name: getattr(service._links[inner], name) for name in ("peer", "found", "close", "tid")},
            state="up",
            idle=False,
            want=lambda: None,
        )
        assert service.address_of(found()).v4 == inner
        await closed(service)

    play(scenario())


def test_what_an_answer_names_beside_the_one_sought_waits_for_a_packet(tmp_path, monkeypatch):
    async def scenario():
        service = await made(tmp_path, monkeypatch)
        inner = service.address_of(found(sought=False)).v4
        assert service._links[inner].state == "idle"
        service.handle(Wanted(inner))
        assert service._links[inner].state == "connecting"
        await asyncio.sleep(0.1)
        await closed(service)

    play(scenario())
