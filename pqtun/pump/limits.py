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

# Events not yet delivered. The first bound is for what anybody can send, the second for what authenticated peers can,
# of which one alone takes a sixteenth, and some together half, so that the first word of others is heard; the rest
# (Wanted, Alive, Dead) are bounded by the tables they come from.
QUEUED_DATAGRAMS: Final = 256
QUEUED_PEER_EVENTS: Final = 1024
QUEUED_EVENTS_PER_TUNNEL: Final = 64

# Control events a second of one tunnel, and at once. A peer has a hello, a ping each few seconds and some probes of its
# path to send; each event costs the receiving daemon a tenth of a millisecond.
CONTROL_RATE: Final = 100.0
CONTROL_BURST: Final = 200.0

# What a tunnel may send to an endpoint that nobody confirmed, in bytes of datagrams: so many at once, which last while
# a question and its answer are on their way; so many a second after that; three for each that came from there (RFC 9000
# section 8.1). A peer can so have no flood sent to somebody else, and to move ever and again brings no new allowance.
UNCONFIRMED_BYTES: Final = 256 << 10
UNCONFIRMED_RATE: Final = 25_600.0
UNCONFIRMED_FACTOR: Final = 3
# The same for all tunnels whose peers claim to be in one network, because anybody can have many tunnels: eight at once
# have all of theirs, after which 1.6 Mbit/s is no flood to anybody. What came from there is answered on top of it. So
# many slots keep apart the networks that anybody moves to at one time, and take 64 KiB.
UNCONFIRMED_PREFIX_BYTES: Final = 2 << 20
UNCONFIRMED_PREFIX_RATE: Final = 200_000.0
UNCONFIRMED_PREFIX_SLOTS: Final = 1 << 12

# Handshakes and returned cookies a second that a server looks at. A core does some 5000; the rest of its time is for
# packets. Of a prefix two seconds' worth may come at once (many clients behind one address), of all a quarter's.
HANDSHAKES_PER_SECOND: Final = 2000
HANDSHAKES_PER_PREFIX: Final = 100
PREFIX_BURST_SECONDS: Final = 2.0
ALL_BURST_SECONDS: Final = 0.25
UNEXPECTED_SHARE: Final = 0.25  # of HANDSHAKES_PER_SECOND, beside it, for sources that nobody expects

# Slots that prefixes of outer addresses share.
PREFIX_SLOTS: Final = 1 << 16
# A client has fetched the ephemeral keys right before its handshake; under loss it tries for 90 s.
EXPECTED_SECONDS: Final = 120.0

# "Handshake failed" datagrams a second that a client looks at: a hint at most, of any source.
HINTS_PER_SECOND: Final = 10.0

# How long handshakes may keep the event loop in one turn where packets have threads of their own. One takes a fifth of
# that: the turn itself then costs little, and key requests and timers hardly wait. The events of tunnels may as long.
DATAGRAM_TURN_SECONDS: Final = 0.001

# Events of tunnels delivered in one turn where packets have no threads of their own: some milliseconds' work.
EVENT_BATCH: Final = 64

# No peer is sent less than what every IPv4 host takes in one packet (RFC 791), whatever was said.
LEAST_MTU: Final = 576

# An IP datagram has at most 65535 bytes, whatever the MTU is set to meanwhile.
READ_BYTES: Final = 65535

# Packets handled in one turn of a reader: long enough to spread the cost of the event loop's turn, short enough
# (1 to 2 ms) that the other reader, timers and handshakes are not kept waiting.
BATCH: Final = 64

# Longest sleep of the deadline timer. The event loop's clock stands still while the machine sleeps, CLOCK_BOOTTIME
# does not: after a wake-up, expired keys are erased at most this late.
TIMER_SECONDS: Final = 1.0
