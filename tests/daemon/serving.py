"""A server service over a recording engine, with a clock that a test moves on."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from unittest.mock import patch

from pqtun.daemon import clock
from pqtun.daemon.host import Tun
from pqtun.daemon.server import ServerService
from pqtun.daemon.settings import ServerSettings
from pqtun.keys.directory import LongTermKey
from pqtun.protocol import control, cookie
from pqtun.protocol.handshake import EphemeralPublicKey, initiate
from pqtun.protocol.keydatagram import ephemeral_request, parse_response
from pqtun.protocol.keytree import KeyTree
from pqtun.pump import icmp
from pqtun.pump.engine import Alive, Control, Datagram, EngineStats, TunnelStats
from tests.protocol.vectors import key_file, public_key, secret_key

SOURCE = ("192.0.2.9", 42423)
CLIENT = IPv4Address("10.43.0.1")
SEND_ROOT, RECV_ROOT = bytes([1]) * 32, bytes([2]) * 32
COOKIE_EPOCH = 6


class RecordingEngine:
    """Stands for an engine: takes calls, has the tunnels' figures that a test sets."""

    name = "native"
    workers = 2

    def offload(self):
        return {"udp-gso": "on", "udp-gro": "unsupported"}

    def __init__(self):
        self.listener: Callable | None = None
        self.tunnels = {}
        self.epochs = {}
        self.sent = []
        self.dropped = []
        self.held = []
        self.expected = []
        self.mtus = {}
        self.cookies = {}
        self.closed = False
        self.now = 1000.0

    def drop_held(self, inner, *, unreachable):
        self.dropped.append((inner, unreachable))

    def hold(self, inner, *, report=False):
        self.held.append((inner, report))

    def start(self, listener):
        self.listener = listener

    def add_tunnel(self, session, inner, endpoint, *, first=None, epoch=0, confirmed=True, standby=False):
        assert session.tid not in self.tunnels
        times = {"created": self.now, "last_sent": None, "last_received": None, "last_used": None}
        sums = {"packets_sent": 0, "packets_received": 0, "bytes_sent": 0, "bytes_received": 0, "drops": {}}
        self.epochs[session.tid] = epoch, bytes(session.send_root), bytes(session.recv_root)
        self.tunnels[session.tid] = TunnelStats(
            session.tid, inner, endpoint, epoch, epoch, **times, confirmed=confirmed, mtu=None, **sums
        )

    def move_tunnel(self, tid, inner):
        if tid not in self.tunnels:
            raise ValueError("there is no such tunnel")
        self.tunnels[tid] = replace(self.tunnels[tid], inner=inner)

    def remove_tunnel(self, tid):
        self.tunnels.pop(tid, None)

    def put_aside(self, tid, key, nonce, timestamp):
        self.cookies[tid] = cookie.pack(
            cookie.TunnelState(tid, COOKIE_EPOCH, SEND_ROOT, RECV_ROOT), key, nonce, timestamp
        )
        self.remove_tunnel(tid)

    def confirm(self, tid, endpoint):
        if tid in self.tunnels and self.tunnels[tid].endpoint == endpoint:
            self.tunnels[tid] = replace(self.tunnels[tid], confirmed=True)

    def set_mtu(self, tid, mtu):
        self.mtus[tid] = mtu

    def next_epoch(self, tid):
        tunnel = self.tunnels[tid]
        self.tunnels[tid] = replace(tunnel, send_epoch=tunnel.send_epoch + 1)

    def expect(self, host):
        self.expected.append(host)

    def send_inner(self, tid, packet, *, only=None):
        if only is None or tid not in self.tunnels or only == self.tunnels[tid].endpoint:
            self.sent.append((tid, packet))

    def stats(self, recent=None):
        used_last = sorted(self.tunnels.values(), key=lambda tunnel: -tunnel.use)
        return EngineStats(used_last[:recent], {}, 0, 0, 0, 0)

    def longest_idle(self, count):
        tunnels = self.tunnels.values()
        return sorted(tunnels, key=lambda tunnel: (tunnel.last_received is not None, tunnel.use))[:count]

    def close(self):
        self.closed = True


def with_service(test, address="10.42.0.1/29", address6=None, **settings):
    """Run ``test(service, engine)`` on an event loop."""

    engine = RecordingEngine()

    async def body():
        key = LongTermKey(secret_key(), public_key(), key_file("session_key"), KeyTree(public_key()).keyhash)
        interface = IPv4Interface(address)
        tun = Tun(None, "pqtsrv0", interface, mtu=1396, address6=address6)
        service = ServerService(ServerSettings(address=interface, **settings), tun, engine, key)
        service.start()
        result = test(service, engine)
        if result is not None:
            await result
        service.failed.cancel()
        service.close()
        assert engine.closed

    with patch.object(clock, "boottime", lambda: engine.now):
        asyncio.run(body())


def ephemeral(service):
    response = parse_response(service.key_server.answer(ephemeral_request(), SOURCE[0], clock.boottime()))
    return EphemeralPublicKey(response.sntrup_pk, response.x25519_pk)


def connect(service, source=SOURCE):
    datagram, session = initiate(public_key(), ephemeral(service))
    service.handle(Datagram(datagram, source))
    return datagram, session


def said(service, tid, *items, size=0):
    """Have a client say something in its tunnel."""
    service.handle(Control(tid, control.encode(items, CLIENT, size)))


def greeted(service, engine, *items, source=SOURCE):
    """Connect as a pqtun client does; what it continues may be added."""
    _, session = connect(service, source)
    tid = session.tid
    engine.tunnels[tid] = replace(engine.tunnels[tid], last_received=engine.now)
    service.handle(Alive(tid))
    said(service, tid, control.Hello(1, control.FEATURE_RESUME, 1396), *items)
    service._tenants.confirmed(tid, source)  # its answer to the server's question is for a test to give
    return session


def resume(old, new):
    return control.Resume(old.tid, control.resume_proof(old.resume_secret, new.tid))


def answers(engine, tid):
    """What the server has said in a tunnel's control packets since this was asked last."""
    packets = [packet for to, packet in engine.sent if to == tid and control.is_control(packet)]
    engine.sent.clear()
    return [item for packet in packets for item in control.parse(packet)]


def echo_reply(request):
    return bytes([*request[:20], icmp.ECHO_REPLY, *request[21:]])
