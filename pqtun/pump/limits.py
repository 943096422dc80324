"""Bounds of the packet path, our own choices, each with its reason. Times in seconds."""

from typing import Final

# Packets that wait for a handshake. 256 of a full-size packet hold a whole initial TCP window many times over; a
# program that waits longer than 30 s for a first answer has given up. The totals bound a program that addresses a
# whole subnet at once.
HELD_PACKETS_PER_PEER: Final = 256
HELD_SECONDS: Final = 30.0
HELD_ADDRESSES: Final = 1024
HELD_PACKETS: Final = 4096
HELD_BYTES: Final = 8 << 20

# Tunnel packets that overtook the handshake which names their tunnel. The client sends both back to back and the
# server needs some milliseconds for the handshake; a second covers a busy server. Anyone can fill this stash, so the
# oldest packets make room, and it stays small.
EARLY_PACKETS: Final = 256
EARLY_PACKETS_PER_TUNNEL: Final = 64
EARLY_BYTES: Final = 256 << 10
EARLY_SECONDS: Final = 1.0

# Events not yet delivered. The first bound is for what anybody can send, the second for what authenticated peers can;
# the rest (Wanted, Alive, Dead) are bounded by the tables they come from.
QUEUED_DATAGRAMS: Final = 256
QUEUED_PEER_EVENTS: Final = 1024

# How long handshakes may keep the event loop in one turn where packets have threads of their own. One takes a fifth of
# that: the turn itself then costs little, and key requests and timers hardly wait.
DATAGRAM_TURN_SECONDS: Final = 0.001

# The longest datagram that is no tunnel packet: a handshake has 1299 bytes, a cookie fewer.
DATAGRAM_BYTES: Final = 2048

# An IP datagram has at most 65535 bytes, whatever the MTU is set to meanwhile.
READ_BYTES: Final = 65535

# Packets handled in one turn of a reader: long enough to spread the cost of the event loop's turn, short enough
# (1 to 2 ms) that the other reader, timers and handshakes are not kept waiting.
BATCH: Final = 64

# Longest sleep of the deadline timer. The event loop's clock stands still while the machine sleeps, CLOCK_BOOTTIME
# does not: after a wake-up, expired keys are erased at most this late.
TIMER_SECONDS: Final = 1.0
