"""When a PQConnect peer hears nothing more of what we send, and what helps. Pure.

Its receiver keeps at most 90 unused packet keys of an epoch, and that of a lost packet is never used: once so many
packets of ours are lost in one epoch, it can read no later one (PQConnect 1.2, tunnel.py, MAX_CHAIN_LEN). The first
packet of our next epoch is read again. But it keeps at most 5 epochs, each for 120 s after it came up, and cannot read
a sixth: an epoch that we begin early is one less for later.
"""

import os
from enum import Enum, auto
from math import inf
from typing import Final

from pqtun.protocol.constants import EPOCH_LIFETIME, EPOCH_SECONDS, MAX_EPOCHS
from pqtun.pump.engine import TunnelStats

TOKEN_BYTES: Final = 8

# Fewer packets in an epoch cannot have stalled the peer.
PEER_WINDOW: Final = 90

# The peer counts as stalled when so many questions, the first of them so long ago, are not answered. At 5 % loss each
# way it is one pair in a hundred that gets lost; what that costs is the epoch that an early one takes from later.
QUESTIONS: Final = 2
ANSWER_SECONDS: Final = 1.0

# How much later than we the peer may take an epoch to begin or end: its timers, and an interval of ours.
MARGIN_SECONDS: Final = 1.0

# From the next epoch on, the peer has so long to answer before it is taken to be out of reach.
RECOVERY_SECONDS: Final = 5.0


class Step(Enum):
    """What to do about a peer now."""

    NOTHING = auto()
    ASK = auto()  # send it an echo request with ``token``
    NEXT_EPOCH = auto()  # begin an epoch, and then the same


class Stalls:
    """Watches one tunnel to a PQConnect peer. ``now`` and all times are seconds of one clock."""

    def __init__(self) -> None:
        self.token = os.urandom(TOKEN_BYTES)
        self._began: list[float] = []  # when the peer's latest epochs had come up at the latest, newest last
        self._newest = -1  # epoch that the peer is known to have
        self._epoch = -1
        self._epoch_began = -inf
        self._sent = 0  # packets, at the last tick
        self._sent_before = 0  # this epoch began
        self._used = -inf
        self._first_asked: float | None = None
        self._asked = 0
        self._excused_at = -inf  # when the peer had been heard last, as it was excused
        self._excused_until = -inf

    def answered(self, token: bytes) -> bool:
        """Take an answer to an echo; say whether it was the one to a question of here."""
        if token != self.token:
            return False
        self._forget_questions()
        return True

    def excuses(self, now: float) -> bool:
        """Whether silence may be that of a stall which ends by itself."""
        return now < self._excused_until

    def tick(self, stats: TunnelStats, now: float) -> Step:
        """Return what to do. Call it at least once a second, also where nothing is sent."""
        self._note_epochs(stats, now)
        used = stats.last_used is not None and stats.last_used > self._used
        self._used = stats.use
        if stats.packets_sent - self._sent_before < PEER_WINDOW:
            self._forget_questions()
            return Step.NOTHING
        if self._first_asked is not None:
            if self._asked >= QUESTIONS and now - self._first_asked >= ANSWER_SECONDS:
                return self._stalled(stats, now)
        elif not used:
            return Step.NOTHING
        else:
            self._first_asked = now
        self._asked += 1
        return Step.ASK

    def _stalled(self, stats: TunnelStats, now: float) -> Step:
        heard = stats.created if stats.last_received is None else stats.last_received
        if heard > self._excused_at:  # once only, until it is heard again
            self._excused_at = heard
            self._excused_until = self._epoch_began + EPOCH_SECONDS + RECOVERY_SECONDS
        self._forget_questions()
        if self._has_room(stats.send_epoch, now):
            return Step.NEXT_EPOCH
        self._first_asked, self._asked = now, 1
        return Step.ASK

    def _has_room(self, epoch: int, now: float) -> bool:
        """Whether the peer can take an epoch now and also the next ones, which begin every 30 s from then on."""
        began = [now] * (epoch - self._newest) + self._began[::-1]
        return all(when <= now - EPOCH_SECONDS * place - MARGIN_SECONDS for place, when in enumerate(began) if place)

    def _note_epochs(self, stats: TunnelStats, now: float) -> None:
        if not self._began:  # one that is watched only now has had its epochs by the clock
            self._began = [when for place in range(4, -1, -1) if (when := now - EPOCH_SECONDS * place) > stats.created]
            self._began = self._began or [stats.created]
            self._newest = stats.recv_epoch
        for _ in range(min(stats.recv_epoch - self._newest, MAX_EPOCHS)):  # the peer has ours when it sends in it
            self._began.append(now)
        self._newest = max(self._newest, stats.recv_epoch)
        self._began = [when for when in self._began if when > now - EPOCH_LIFETIME - MARGIN_SECONDS][-MAX_EPOCHS:]
        if stats.send_epoch != self._epoch:
            self._epoch, self._epoch_began = stats.send_epoch, now
            self._sent_before = self._sent
            self._forget_questions()
        self._sent = stats.packets_sent

    def _forget_questions(self) -> None:
        if self._asked:
            self.token = os.urandom(TOKEN_BYTES)
        self._first_asked, self._asked = None, 0
