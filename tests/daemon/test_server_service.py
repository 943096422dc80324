import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from pqtun.daemon.host import Tun
from pqtun.daemon.server import ServerService
from pqtun.daemon.settings import ServerSettings
from pqtun.keys.directory import LongTermKey
from pqtun.protocol import control
from pqtun.protocol.handshake import EphemeralPublicKey, initiate
from pqtun.protocol.keydatagram import ephemeral_request, parse_response
from pqtun.protocol.keytree import KeyTree
from pqtun.pump.engine import Alive, Control, Datagram, Dead, EngineStats, Failed, TunnelStats, Wanted
from tests.protocol.vectors import key_file, public_key, secret_key

SOURCE = ("192.0.2.9", 42423)


class RecordingEngine:
    """Stands for an engine: takes calls, has the tunnels' figures that a test sets."""

    name = "native"
    workers = 2

    def offload(self):
        return {"udp-gso": "on", "udp-gro": "unsupported"}

    def __init__(self):
        self.listener: Callable | None = None
        self.tunnels = {}
        self.sent = []
        self.dropped = []
        self.closed = False

    def drop_held(self, inner, *, unreachable):
        self.dropped.append((inner, unreachable))

    def start(self, listener):
        self.listener = listener

    def add_tunnel(self, session, inner, endpoint, *, first=None):
        self.tunnels[session.tid] = TunnelStats(session.tid, inner, endpoint, 0, 0, 0.0, None, None, 0, 0, 0, 0, {})

    def remove_tunnel(self, tid):
        self.tunnels.pop(tid, None)

    def send_inner(self, tid, packet):
        self.sent.append((tid, packet))

    def stats(self):
        return EngineStats(list(self.tunnels.values()), {}, 0, 0, 0, 0)

    def close(self):
        self.closed = True


def with_service(test, address="10.42.0.1/29"):
    """Run ``test(service, engine)`` on an event loop."""

    async def body():
        key = LongTermKey(secret_key(), public_key(), key_file("session_key"), KeyTree(public_key()).keyhash)
        engine = RecordingEngine()
        interface = IPv4Interface(address)
        service = ServerService(ServerSettings(address=interface), Tun(None, "pqtsrv0", interface), engine, key)
        service.start()
        result = test(service, engine)
        if result is not None:
            await result
        service.failed.cancel()
        service.close()
        assert engine.closed

    asyncio.run(body())


def ephemeral(service):
    response = parse_response(service.key_server.answer(ephemeral_request()))
    return EphemeralPublicKey(response.sntrup_pk, response.x25519_pk)


def connect(service):
    datagram, session = initiate(public_key(), ephemeral(service))
    service.handle(Datagram(datagram, SOURCE))
    return datagram, session


def test_a_handshake_makes_a_tunnel_and_its_replay_none():
    def test(service, engine):
        datagram, session = connect(service)
        assert engine.tunnels[session.tid].inner == IPv4Address("10.42.0.2")
        assert engine.tunnels[session.tid].endpoint == SOURCE
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


def test_a_full_subnet_evicts_the_longest_silent():
    def test(service, engine):
        sessions = [connect(service)[1] for _ in range(5)]
        for number, session in enumerate(sessions):
            engine.tunnels[session.tid] = replace(engine.tunnels[session.tid], last_received=100.0 - number)
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
        asked = [control.Hello(1, 0, 1396), control.Ping(b"12345678"), control.Resume(bytes(32), bytes(32))]
        service.handle(Control(session.tid, control.encode(asked, IPv4Address("10.43.0.1"))))
        ((tid, answer),) = engine.sent
        assert tid == session.tid
        assert control.parse(answer) == [control.Hello(1, 0, 1396), control.Pong(b"12345678")]
        service.handle(Control(session.tid, control.encode([control.Pong(bytes(8))], IPv4Address("10.43.0.1"))))
        service.handle(Control(session.tid, b"\x45" + bytes(60)))
        assert len(engine.sent) == 1
        service.handle(Control(session.tid, control.encode([control.Bye(0)], IPv4Address("10.43.0.1"))))
        assert not engine.tunnels

    with_service(test)


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


def test_status_names_no_secret():
    def test(service, engine):
        _, session = connect(service)
        said = str(service.status())
        for secret in (session.send_root, session.recv_root, session.resume_secret, secret_key().x25519_sk):
            assert secret.hex() not in said
            assert repr(secret) not in said

    with_service(test)
