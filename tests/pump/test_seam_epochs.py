"""What every engine does when a sending epoch is to begin early."""

from ipaddress import IPv4Address

from pqtun.protocol.constants import HEADER_BYTES, LAST_EPOCH, TID_BYTES
from tests.pump.conftest import Play
from tests.pump.rig import PEER, Far, Rig, to_far


async def index(rig: Rig, far: Far) -> tuple[int, int]:
    """Epoch and counter of the next packet to the peer, which can read it."""
    rig.write(to_far(b"one"))
    datagram = await far.datagram()
    far.tunnel.open(datagram, rig.clock())
    at = 2 + TID_BYTES
    return int.from_bytes(datagram[at : at + 2], "big"), int.from_bytes(datagram[at + 2 : HEADER_BYTES], "big")


def test_the_next_packet_begins_it(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        assert [await index(rig, far) for _ in range(2)] == [(0, 0), (0, 1)]
        rig.clock.now += 10
        rig.engine.next_epoch(far.tid)
        assert [await index(rig, far) for _ in range(2)] == [(1, 0), (1, 1)]
        rig.clock.now += 29.9
        assert await index(rig, far) == (1, 2)
        rig.clock.now += 0.2
        assert await index(rig, far) == (2, 0)
        assert rig.stats(far).send_epoch == 2

    play(scenario)


def test_one_whose_time_has_come_is_the_next(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far()
        rig.clock.now += 30
        rig.engine.next_epoch(far.tid)
        assert await index(rig, far) == (1, 0)

    play(scenario)


def test_without_a_tunnel_or_after_the_last_epoch_nothing_happens(play: Play) -> None:
    async def scenario(rig: Rig) -> None:
        far = rig.far(inner=None)
        rig.engine.next_epoch(far.tid)
        last = Far(rig, 2, epoch=LAST_EPOCH)
        rig.engine.add_tunnel(last.ours, IPv4Address(PEER), last.endpoint, epoch=LAST_EPOCH)
        rig.engine.next_epoch(last.tid)
        assert await index(rig, last) == (LAST_EPOCH, 0)

    play(scenario)
