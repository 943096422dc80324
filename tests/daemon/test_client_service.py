import asyncio
from ipaddress import IPv4Address, IPv4Interface

from pqtun.daemon.client import ClientService
from pqtun.daemon.host import Tun
from pqtun.daemon.settings import ClientSettings
from pqtun.protocol import control
from pqtun.pump.engine import Control, EngineStats

OWN = IPv4Interface("10.43.0.1/16")
SERVER = IPv4Address("10.42.0.1")
TID = bytes(32)


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

    def send_inner(self, tid, packet):
        self.sent.append((tid, packet))

    def remove_tunnel(self, tid):
        self.removed.append(tid)

    def stats(self):
        return EngineStats([], {}, 0, 0, 0, 0)

    def close(self):
        pass


def with_service(tmp_path, test):
    """Run ``test(service, engine)`` on an event loop."""

    async def body():
        engine = RecordingEngine()
        service = ClientService(ClientSettings(state=tmp_path), Tun(None, "pqtcli0", OWN), engine)
        test(service, engine)
        service.failed.cancel()
        await service.close()

    asyncio.run(body())


def test_one_packet_asks_for_one(tmp_path):
    """The server chooses where the answers go: one packet must not bring it, or a third party, thousands."""

    def test(service, engine):
        pings = [control.Ping(number.to_bytes(8, "big")) for number in range(1000)]
        asked = control.encode(pings, SERVER)
        service.handle(Control(TID, asked))
        ((tid, answer),) = engine.sent
        assert tid == TID
        assert len(answer) == len(asked)
        assert control.parse(answer) == [control.Pong(ping.data) for ping in pings]

    with_service(tmp_path, test)


def test_a_farewell_ends_the_tunnel_and_bad_control_packets_do_not(tmp_path):
    def test(service, engine):
        good = control.encode([control.Bye(0)], SERVER)
        service.handle(Control(TID, good[:-1]))
        service.handle(Control(TID, control.encode([control.Hello(1, 0, 1396), control.Pong(bytes(8))], SERVER)))
        assert not engine.removed
        assert not engine.sent
        service.handle(Control(TID, good))
        assert engine.removed == [TID]

    with_service(tmp_path, test)


def test_the_status_tells_of_the_key_cache(tmp_path):
    def test(service, _engine):
        assert service.status({"udp_queries": 3})["key_cache"] == {}
        service._cache.get(bytes(32))
        said = service.status({"udp_queries": 3})
        assert (said["key_cache"], said["dns"]) == ({"misses": 1}, {"udp_queries": 3})

    with_service(tmp_path, test)
