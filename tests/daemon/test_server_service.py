import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from unittest.mock import patch

import pytest

from pqtun.daemon import server
from pqtun.daemon.tenants import PREFIX_LEAST, Tenants
from pqtun.protocol import control
from pqtun.protocol.handshake import initiate
from pqtun.pump.engine import Alive, Control, Datagram, Dead, Failed, Wanted
from tests.daemon.serving import CLIENT, SOURCE, answers, connect, ephemeral, greeted, resume, said, with_service
from tests.protocol.vectors import public_key, secret_key


def test_a_handshake_makes_a_tunnel_and_its_replay_none():
    def test(service, engine):
        datagram, session = connect(service)
        assert engine.tunnels[session.tid].inner == IPv4Address("10.42.0.2")
        assert engine.tunnels[session.tid].endpoint == SOURCE
        assert not engine.tunnels[session.tid].confirmed
        engine.tunnels.clear()
        service.handle(Datagram(datagram, ("192.0.2.66", 1)))
        assert not engine.tunnels
        assert service.status()["handshakes"] == {"accepted": 1, "replay": 1}

    with_service(test)


def test_what_is_no_handshake_is_counted():
    def test(service, engine):
        datagram, _ = initiate(public_key(), ephemeral(service))
        forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
        for data in (b"\3\0", b"\1\0", datagram[:-1], datagram + b"\0", forged, b"\1\0" + bytes(1297), bytes(100)):
            service.handle(Datagram(data, SOURCE))
        assert not engine.tunnels
        counters = service.status()["handshakes"]
        assert counters == {"unknown_datagram": 2, "length": 3, "ephemeral_key": 1, "authentication": 1}
        connect(service)  # the forged copy has not used up the real one's place
        service.handle(Datagram(datagram, SOURCE))
        assert len(engine.tunnels) == 2

    with_service(test)


def test_who_asked_for_ephemeral_keys_is_expected_and_who_made_a_tunnel_too():
    def test(service, engine):
        ephemeral(service)
        assert engine.expected == [SOURCE[0]]
        connect(service, ("198.51.100.7", 9))
        assert engine.expected == [SOURCE[0], SOURCE[0], "198.51.100.7"]

    with_service(test)


def test_a_full_subnet_evicts_the_longest_idle():
    def test(service, engine):
        sessions = [connect(service)[1] for _ in range(5)]
        for number, session in enumerate(sessions):
            figures = {"last_received": 1000.0, "last_used": 100.0 - number}
            engine.tunnels[session.tid] = replace(engine.tunnels[session.tid], **figures)
            service.handle(Alive(session.tid))
        _, newest = connect(service)
        assert sessions[4].tid not in engine.tunnels
        assert str(engine.tunnels[newest.tid].inner) == "10.42.0.6"
        assert len({tunnel.inner for tunnel in engine.tunnels.values()}) == 5

    with_service(test)


def test_a_tunnel_that_was_never_used_goes_first():
    """Anybody can make tunnels without end; they must not displace one that somebody uses."""

    def test(service, engine):
        sessions = [connect(service)[1] for _ in range(5)]
        used, unused = sessions[0].tid, sessions[4].tid
        for session in sessions:
            engine.tunnels[session.tid] = replace(engine.tunnels[session.tid], last_received=1.0, created=0.5)
            if session.tid != unused:
                service.handle(Alive(session.tid))
        engine.tunnels[unused] = replace(engine.tunnels[unused], last_received=None, created=100.0)
        connect(service)
        assert used in engine.tunnels
        assert unused not in engine.tunnels
        assert not engine.cookies  # nobody may be there

    with_service(test)


def test_who_has_had_no_time_to_speak_keeps_the_address():
    """A flood of handshakes takes addresses from itself, once they are seconds old."""

    def test(service, engine):
        greeted_one = greeted(service, engine)
        silent = [connect(service)[1].tid for _ in range(4)]
        engine.tunnels[greeted_one.tid] = replace(engine.tunnels[greeted_one.tid], last_used=1000.0)
        engine.now += server.NEWCOMER_SECONDS
        with patch.object(engine, "longest_idle", side_effect=AssertionError("looked through all")):
            newest = connect(service)[1].tid
        assert set(engine.tunnels) == {greeted_one.tid, *silent[1:], newest}
        for _ in range(3):
            connect(service)
        assert newest in engine.tunnels
        assert greeted_one.tid in engine.tunnels

    with_service(test)


def test_no_more_tunnels_than_the_bound():
    def test(service, engine):
        service._tenants = Tenants(IPv4Interface("10.42.0.1/16"), limit=3)
        tids = [connect(service)[1].tid for _ in range(5)]
        assert set(engine.tunnels) == set(tids[2:])
        assert service.status()["handshakes"]["evicted"] == 2

    with_service(test, "10.42.0.1/16")


def test_forged_sources_put_nobody_out():
    """Whoever forges them can say what a client says, but does not hear what it is asked."""

    def test(service, engine):
        idle = greeted(service, engine, source=("198.51.100.1", 1))
        asleep = greeted(service, engine, source=("198.51.100.2", 2))
        engine.remove_tunnel(asleep.tid)
        service.handle(Dead(asleep.tid))
        plain = connect(service, ("198.51.100.3", 3))[1]
        service.handle(Alive(plain.tid))
        for number in range(600):
            _, forged = connect(service, (f"203.0.{number % 256}.1", 9))
            service.handle(Alive(forged.tid))
            said(service, forged.tid, control.Hello(1, control.FEATURE_RESUME, 1396))
            engine.now += 0.1
            if number % 3 == 0:
                engine.remove_tunnel(forged.tid)
                service.handle(Dead(forged.tid))
        assert idle.tid in engine.tunnels
        assert service.status()["reserved_addresses"] == 1
        assert service._tenants.address(asleep.tid) == IPv4Address("10.42.0.3")
        assert list(engine.cookies) == [plain.tid]  # it may have been there, and can come back
        assert len(service._resumption) < 300

    with_service(test, "10.42.0.1/24")


def test_one_network_puts_nobody_else_out():
    """Its clients all say a word, so that none of them is silent. The others are idle, asleep, or just connected."""

    def test(service, engine):
        idle = greeted(service, engine, source=("198.51.100.1", 1))
        asleep = greeted(service, engine, source=("198.51.100.2", 2))
        engine.remove_tunnel(asleep.tid)
        service.handle(Dead(asleep.tid))
        engine.now += 1
        many = []
        for number in range(400):
            many.append(greeted(service, engine, source=(f"203.0.113.{number % 256}", number)))
            if number % 3:  # these are there; of the others only somebody says so
                question = answers(engine, many[-1].tid)[-1]
                said(service, many[-1].tid, control.Pong(question.data))
        assert service.status()["handshakes"]["confirmed"] == 266
        late = greeted(service, engine, source=("198.51.100.3", 3))
        assert idle.tid in engine.tunnels
        assert service.status()["reserved_addresses"] == 1
        assert many[-1].tid in engine.tunnels
        assert late.tid in engine.tunnels
        new = greeted(service, engine, source=("198.51.100.2", 2))
        assert service.status()["handshakes"]["evicted_crowd"] == 400 + 4 - 253
        said(service, new.tid, resume(asleep, new))
        assert str(engine.tunnels[new.tid].inner) == "10.42.0.3"

    with_service(test, "10.42.0.1/24")


def test_a_network_with_its_share_waits_for_nobody_else():
    def test(service, engine):
        first = greeted(service, engine, source=("198.51.100.1", 1))
        for number in range(252):
            greeted(service, engine, source=(f"203.0.{number % 4}.1", number))
            engine.now += 1
        greeted(service, engine, source=("203.0.0.1", 1))
        assert PREFIX_LEAST > 253 / 4
        assert first.tid not in engine.tunnels  # the longest idle
        assert "evicted_crowd" not in service.status()["handshakes"]

    with_service(test, "10.42.0.1/24")


def test_nothing_to_evict_is_no_endless_search():
    """All tunnels may have died while the events of that still wait."""

    def test(service, engine):
        for _ in range(5):
            connect(service)
        engine.tunnels.clear()
        connect(service)
        assert service.status()["handshakes"]["no_free_address"] == 1

    with_service(test)


def test_a_dead_tunnel_frees_its_address():
    def test(service, engine):
        sessions = [connect(service)[1] for _ in range(5)]
        engine.remove_tunnel(sessions[1].tid)
        service.handle(Dead(sessions[1].tid))
        _, newest = connect(service)
        assert str(engine.tunnels[newest.tid].inner) == "10.42.0.3"
        assert "evicted" not in service.status()["handshakes"]

    with_service(test)


def test_control_packets():
    def test(service, engine):
        _, session = connect(service)
        said(
            service,
            session.tid,
            control.Hello(1, 0, 1300),
            control.Ping(b"12345678"),
            control.Resume(bytes(32), bytes(32)),
        )
        assert answers(engine, session.tid) == [
            control.Hello(1, control.FEATURE_RESUME, 1396),
            control.Pong(b"12345678"),
        ]
        assert engine.mtus == {session.tid: 1300}
        said(service, session.tid, control.Pong(bytes(8)))
        service.handle(Control(session.tid, b"\x45" + bytes(60)))
        assert answers(engine, session.tid) == []
        said(service, session.tid, control.Bye(0))
        assert not engine.tunnels
        said(service, session.tid, control.Hello(1, 0, 1300))  # it waited while the tunnel went
        assert answers(engine, session.tid) == []

    with_service(test)


@pytest.mark.parametrize(("offered", "taken"), [(0, 576), (1280, 1280), (65535, 1396)])
def test_the_smaller_mtu_decides(offered, taken):
    def test(service, engine):
        _, session = connect(service)
        said(service, session.tid, control.Hello(1, 0, offered))
        assert engine.mtus == {session.tid: taken}

    with_service(test)


@pytest.mark.parametrize("size", [37, 39, 40, 576, 1396])
def test_a_pong_is_as_long_as_the_ping_and_never_longer(size):
    def test(service, engine):
        _, session = connect(service)
        asked = control.encode([control.Ping(b"12345678")], CLIENT, size)
        service.handle(Control(session.tid, asked))
        ((_, answer),) = engine.sent
        assert len(answer) == len(asked)

    with_service(test)


def test_ipv6_inside_is_offered_where_the_device_has_an_address():
    address6 = IPv6Interface("fd00::1/64")

    def offers(features):
        def test(service, engine):
            _, session = connect(service)
            said(service, session.tid, control.Hello(1, 0, 1300))
            assert answers(engine, session.tid)[0].features == features

        return test

    both = control.FEATURE_RESUME | control.FEATURE_IPV6_INSIDE
    with_service(offers(both), address6=address6)
    with_service(offers(control.FEATURE_RESUME), address6=address6, deliver_to=IPv4Address("192.0.2.1"))


def test_packets_to_nobody_are_refused_and_not_kept():
    def test(service, engine):
        service.handle(Wanted(IPv4Address("10.42.0.5")))
        assert engine.dropped == [(IPv4Address("10.42.0.5"), True)]

    with_service(test)


def test_clients_are_told_of_the_end():
    def test(service, engine):
        _, session = connect(service)
        service.close()
        assert [(tid, control.parse(packet)) for tid, packet in engine.sent] == [(session.tid, [control.Bye(0)])]
        engine.sent.clear()

    with_service(test)


def test_a_lost_device_ends_the_service():
    async def test(service, engine):
        service.handle(Alive(bytes(32)))
        assert not service.failed.done()
        service.handle(Failed("gone"))
        service.handle(Failed("gone again"))
        with pytest.raises(RuntimeError, match="gone"):
            await service.failed

    with_service(test)


def test_no_key_outlives_a_fault(monkeypatch):
    """Keys that nobody erases any more are no state to go on in."""
    monkeypatch.setattr(server, "EXPIRE_SECONDS", 0.0)

    async def test(service, engine):
        await asyncio.wait_for(asyncio.gather(service.keep_deadlines(), return_exceptions=True), 10)
        with pytest.raises(ZeroDivisionError):
            await service.failed

    def spoilt(service, engine):
        service._ring.expire = lambda: 1 / 0
        return test(service, engine)

    with_service(spoilt)


def test_status_names_no_secret():
    def test(service, engine):
        session = greeted(service, engine)
        said = str(service.status())
        for secret in (session.send_root, session.recv_root, session.resume_secret, secret_key().x25519_sk):
            assert secret.hex() not in said
            assert repr(secret) not in said

    with_service(test)


def name(number):
    return number.to_bytes(4, "big") * 8


def test_status_of_very_many_peers_shows_those_used_last():
    def test(service, engine):
        _, session = connect(service)
        model = engine.tunnels.pop(session.tid)
        service.handle(Dead(session.tid))
        for number in range(65_000):
            tid = name(number)
            service._tenants.take(tid, SOURCE, 0.0)
            engine.tunnels[tid] = replace(model, tid=tid, last_used=float(number))
        status = service.status()
        assert status["peers_total"] == 65_000
        assert [peer["name"] for peer in status["peers"]] == [
            name(number).hex()[:16] for number in reversed(range(64_000, 65_000))
        ]

    with_service(test, "10.42.0.1/16")
