"""The server's ephemeral key pairs: one a half minute, made when asked for, erased two minutes after its start."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pqtun.protocol.constants import EPHEMERAL_LIFETIME, EPHEMERAL_PERIOD
from pqtun.protocol.handshake import EphemeralPublicKey, EphemeralSecretKey
from pqtun.protocol.primitives import ekem_keypair, erase, x25519_keypair

# Pairs kept at most. A steady clock needs 5; a wall clock that jumps about must not fill the memory.
MAX_PAIRS: Final = 8

# A wall clock that is being slewed (500 ppm: adjtimex(2)) ends a half minute up to 15 ms late; only beyond this is it
# taken for one that was set back.
PERIOD_SLACK: Final = 1.0

# sntrup761 public and secret key, X25519 public and secret key.
Pair = tuple[bytes, bytearray, bytes, bytearray]


def make_pair() -> Pair:
    """Makes a fresh ephemeral pair: sntrup761 public (1158) and secret (1763), X25519 public (32) and secret (32)."""
    return *ekem_keypair(), *x25519_keypair()


@dataclass(slots=True)
class _Entry:
    window: int  # wall-clock time of its start
    began: float  # the same moment on the boottime clock
    public: EphemeralPublicKey
    sntrup_sk: bytearray
    x25519_sk: bytearray
    secret: EphemeralSecretKey

    def erase(self) -> None:
        erase(self.sntrup_sk)
        erase(self.x25519_sk)


class EphemeralRing:
    """Holds the pairs that a server hands out and accepts.

    `wall_clock` (CLOCK_REALTIME) says which half minute it is, as peers see it; `clock` (CLOCK_BOOTTIME, which nobody
    can set and which counts sleep) says how long a pair lives. So a wall clock that is set prolongs no pair's life.
    """

    def __init__(
        self,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        generate: Callable[[], Pair] = make_pair,
    ) -> None:
        self._wall_clock = wall_clock
        self._clock = clock
        self._generate = generate
        self._entries: list[_Entry] = []  # oldest first

    def current(self) -> EphemeralPublicKey:
        """The public keys to hand out now; makes the pair (0.2 ms) where this half minute has none yet."""
        self.expire()
        wall, now = self._wall_clock(), self._clock()
        window = math.floor(wall / EPHEMERAL_PERIOD) * EPHEMERAL_PERIOD
        if self._entries:
            newest = self._entries[-1]
            set_back = now - newest.began >= EPHEMERAL_PERIOD + PERIOD_SLACK
            if window <= newest.window and not set_back:
                return newest.public
        return self._add(window, now - (wall - window))

    def _add(self, window: int, began: float) -> EphemeralPublicKey:
        sntrup_pk, sntrup_sk, x25519_pk, x25519_sk = self._generate()
        public = EphemeralPublicKey(sntrup_pk, x25519_pk)
        secret = EphemeralSecretKey(sntrup_sk, x25519_sk)
        self._entries.append(_Entry(window, began, public, sntrup_sk, x25519_sk, secret))
        while len(self._entries) > MAX_PAIRS:
            self._entries.pop(0).erase()
        return public

    def acceptable(self) -> list[EphemeralSecretKey]:
        """The secret keys of all living pairs, newest first. They are erased in place when their time is over."""
        self.expire()
        return [entry.secret for entry in reversed(self._entries)]

    def expire(self) -> None:
        """Erases every pair whose 120 s are over."""
        now = self._clock()
        alive = []
        for entry in self._entries:
            if now - entry.began >= EPHEMERAL_LIFETIME:
                entry.erase()
            else:
                alive.append(entry)
        self._entries = alive

    def erase(self) -> None:
        """Erases all pairs, at the end of the service."""
        for entry in self._entries:
            entry.erase()
        self._entries = []
