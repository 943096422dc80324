"""Cookie keys: they seal tunnels that are put aside, and open each returned cookie once (doc/protocol.md section 7).

Pure. ``now`` is in seconds, of one clock that counts sleep.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pqtun.protocol import cookie
from pqtun.protocol.constants import COOKIE_LIFETIME, COOKIE_NONCE_BYTES
from pqtun.protocol.errors import MessageError
from pqtun.protocol.primitives import erase, random_key

# A key seals for the first half of its life, so that every cookie has 60 s at least to come back.
KEY_PERIOD: Final = 60.0

# Cookies of one key: all tunnels that a server can have, once a minute.
MAX_COOKIES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Seal:
    """What a cookie is made with; the key is not the caller's to keep."""

    key: bytearray = field(repr=False)
    nonce: bytes
    timestamp: int


@dataclass(slots=True)
class _Key:
    made: float
    key: bytearray = field(repr=False)
    made_cookies: int = 0
    outstanding: dict[bytes, bytes] = field(default_factory=dict)  # tid by nonce, of those that were not returned


class CookieKeys:
    """Knows each cookie that it made and that was not returned: there is no other way to be accepted."""

    def __init__(self, limit: int = MAX_COOKIES, generate: Callable[[], bytearray] = random_key) -> None:
        self._limit = limit
        self._generate = generate
        self._keys: list[_Key] = []  # oldest first

    def seal(self, tid: bytes, now: float) -> Seal | None:
        """Return what to make the cookie of a tunnel with; None if too many were made within a minute."""
        if not self._keys or self._keys[-1].made + KEY_PERIOD <= now:
            self._keys.append(_Key(now, self._generate()))
        newest = self._keys[-1]
        if newest.made_cookies >= self._limit:
            return None
        nonce = newest.made_cookies.to_bytes(COOKIE_NONCE_BYTES, "big")
        newest.made_cookies += 1
        newest.outstanding[nonce] = tid
        return Seal(newest.key, nonce, int(now))

    def open(self, returned: bytes, now: float) -> cookie.TunnelState:
        """Return the tunnel in a returned cookie, which is not accepted again. Its roots are the caller's to erase.

        Raises MessageError: ``cookie_unknown`` (never made, returned before, too old) and the reasons of
        ``cookie.unpack``.
        """
        nonce = cookie.nonce(returned)
        reason = MessageError("cookie_unknown")
        for key in reversed(self._keys):
            if nonce in key.outstanding and now < key.made + COOKIE_LIFETIME:
                try:
                    state = cookie.unpack(returned, key.key, int(now))
                except MessageError as refused:
                    reason = refused
                    continue
                del key.outstanding[nonce]
                return state
        raise reason

    def expire(self, now: float) -> list[bytes]:
        """Erase keys that are 120 s old; return the tunnels whose cookies can no longer come back."""
        lost: list[bytes] = []
        while self._keys and self._keys[0].made + COOKIE_LIFETIME <= now:
            key = self._keys.pop(0)
            erase(key.key)
            lost += key.outstanding.values()
        return lost

    def erase(self) -> None:
        """Erase all keys, at the end of the service."""
        for key in self._keys:
            erase(key.key)
        self._keys.clear()
