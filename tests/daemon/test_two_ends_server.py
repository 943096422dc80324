"""What becomes of a client when the server makes room, loses it, or gives its address away."""

import asyncio

from pqtun.daemon import clock
from pqtun.protocol.constants import EPOCH_LIFETIME
from pqtun.pump.limits import HELD_SECONDS
from tests.daemon.two_ends import SERVER, TwoEnds, datagram, two_ends

TUNNEL_DIES = EPOCH_LIFETIME + 60.0


def test_a_client_that_made_room_goes_on_where_it_was(tmp_path, monkeypatch):
    async def scenario(ends: TwoEnds) -> None:
        ends.look_up()
        await ends.say()
        await asyncio.sleep(1)  # until it has answered the server's question
        ends.server._evict(clock.boottime())
        assert ends.tunnels()[1] == 0
        await ends.say()
        assert len(ends.sources) == 1
        assert ends.tunnels() == (1, 1)
        assert ends.server.status()["handshakes"]["resumed"] == 1

    two_ends(tmp_path, monkeypatch, scenario)


def test_a_client_that_is_away_is_held_for_while_programs_send(tmp_path, monkeypatch):
    async def scenario(ends: TwoEnds) -> None:
        def speak() -> None:
            ends._server_tun.send(datagram(str(SERVER.ip), ends.sources[0], b"are you there?"))

        def held() -> tuple[int, int]:
            stats = ends.server._engine.stats()
            return stats.held_addresses, stats.held_packets

        ends.look_up()
        await ends.say()
        ends.relay.cut = True
        await asyncio.sleep(TUNNEL_DIES)
        assert ends.tunnels()[1] == 0
        for _ in range(10):
            speak()
            await asyncio.sleep(HELD_SECONDS / 2)
            assert held()[0] == 1
            assert held()[1] in (1, 2)
        await asyncio.sleep(3 * HELD_SECONDS)
        assert held() == (0, 0)
        speak()
        await asyncio.sleep(1)
        assert held() == (1, 1)
        ends.relay.cut = False
        await ends.say()
        assert held() == (0, 0)
        assert len(ends.sources) == 1
        await asyncio.sleep(3 * HELD_SECONDS)
        await ends.say()
        assert held() == (0, 0)

    two_ends(tmp_path, monkeypatch, scenario)
