"""What becomes of a client when the server makes room, loses it, or gives its address away."""

from pqtun.daemon import clock
from tests.daemon.two_ends import TwoEnds, two_ends


def test_a_client_that_made_room_goes_on_where_it_was(tmp_path, monkeypatch):
    async def scenario(ends: TwoEnds) -> None:
        ends.look_up()
        await ends.say()
        ends.server._evict(clock.boottime())
        assert ends.tunnels()[1] == 0
        await ends.say()
        assert len(ends.sources) == 1
        assert ends.tunnels() == (1, 1)
        assert ends.server.status()["handshakes"]["resumed"] == 1

    two_ends(tmp_path, monkeypatch, scenario)
