"""What tests of the native engine behind virtio headers have in common."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tests.pump import gso
from tests.pump import packets as p
from tests.pump.rig import FAR_OWN, FAR_US, OWN, PEER, Far, rig
from tests.pump.twins import ALL_OFFLOADS, Side, native

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(range(8))
LONGEST = 65535

Scenario = Callable[[Side], Coroutine[None, None, None]]


def play(scenario: Scenario, offload: Sequence[str] = ALL_OFFLOADS, **options: Any) -> None:
    async def scene() -> None:
        with rig(native(virtio=True, offload=offload), **options) as made:
            await scenario(Side(made, virtio=True))
            assert "internal_error" not in made.drops()

    asyncio.run(scene())


def noise(count: int) -> bytes:
    return random.Random(count).randbytes(count)


async def opened(far: Far, count: int) -> list[bytes]:
    return [await far.plaintext() for _ in range(count)]


def written(side: Side) -> list[bytes]:
    """Messages that the engine wrote to the device since."""
    side.messages.clear()
    side.delivered()
    return side.messages


def joined(messages: list[bytes]) -> list[int]:
    """How many packets there are in each message."""
    return [len(gso.cut(message)) for message in messages]


def train(far: Far, packets: Sequence[bytes]) -> list[bytes]:
    """Sealed with padding to one length, so that they fit in one message."""
    longest = max(map(len, packets))
    return [far.seal(p.cleared(packet).ljust(longest, b"\0")) for packet in packets]


def as_delivered(packet: bytes, peer: str = PEER) -> bytes:
    """A packet from the far end with the addresses that it gets here."""
    return gso.summed(p.cleared(packet)[:12] + bytes(map(int, f"{peer}.{OWN}".split("."))) + packet[20:])


def of_tcp(count: int, size: int = 1000, **more: int) -> list[bytes]:
    """A run of one connection."""
    return [
        gso.tcp_packet(FAR_OWN, FAR_US, noise(size), **{"sequence": 5 + n * size, "identification": 9 + n, **more})
        for n in range(count)
    ]


# By name: a packet, and how long the payload of its segments is.
LARGE = {
    "tcp": (gso.tcp_packet(OWN, PEER, noise(60_000)), 1144),
    "longest": (gso.tcp_packet(OWN, PEER, noise(LONGEST - 40)), 1400),
    "options": (gso.tcp_packet(OWN, PEER, noise(20_001), options=TIMESTAMPS), 1100),
    "last is full": (gso.tcp_packet(OWN, PEER, noise(3000)), 1000),
    "flags": (gso.tcp_packet(OWN, PEER, noise(5000), flags=ACK | PSH | FIN | CWR | ECE), 1000),
    "wraps": (gso.tcp_packet(OWN, PEER, noise(9000), sequence=2**32 - 2500, identification=65533), 1000),
    "one segment": (gso.tcp_packet(OWN, PEER, noise(1000)), 1000),
    "small": (gso.tcp_packet(OWN, PEER, noise(300)), 1),
    "no checksum work left": (gso.tcp_packet(OWN, PEER, bytes(4000), service=3, ttl=1), 1000),
    "udp": (gso.udp_packet(OWN, PEER, noise(60_000)), 1172),
    "udp, small": (gso.udp_packet(OWN, PEER, noise(101), dont_fragment=False, identification=65535), 2),
}
