"""Memory of what lets a new tunnel continue an old one (doc/protocol.md section 8, ``resume``). Pure."""

from hmac import compare_digest
from itertools import takewhile
from typing import Final

from pqtun.protocol.control import resume_proof
from pqtun.protocol.primitives import erase

# All tunnels that a server can have (tenants are bounded alike), live ones included: 10 MB when full.
MAX_RESUMABLE: Final = 65_536

# How long after its death a tunnel can be continued: a night's sleep, and a day's (protocol.md section 8).
RESUMABLE_SECONDS: Final = 24 * 3600.0

# Tunnels that have not said Hello yet: anybody can make some, a PQConnect client never says it. Apart from the others,
# which they can so not push out; so many are made within 4 s at most (HANDSHAKES_PER_SECOND).
MAX_NEW: Final = 8192
NEW_SECONDS: Final = 120.0  # for which a client goes on saying Hello, and some more


class ResumptionMemory:
    """The resumption secret of each tunnel, by its id. ``now`` is in seconds, of one clock that counts sleep.

    Each secret is used once; it is overwritten when it is used, forgotten or too old.
    """

    def __init__(self, limit: int = MAX_RESUMABLE, new_limit: int = MAX_NEW) -> None:
        self._limit = limit
        self._new_limit = new_limit
        self._new: dict[bytes, tuple[bytearray, float]] = {}  # with the time of the handshake; oldest first
        self._live: dict[bytes, bytearray] = {}
        self._gone: dict[bytes, tuple[bytearray, float]] = {}  # with the time of death; longest dead first

    def __len__(self) -> int:
        return len(self._new) + len(self._live) + len(self._gone)

    def offer(self, tid: bytes, secret: bytes | bytearray, now: float) -> bytes | None:
        """Take a copy of a new tunnel's secret; ``keep`` tells that the client will want it.

        Returns the id of the tunnel that had to be forgotten for it, if any: the oldest that did not say Hello.
        """
        forgotten: bytes | None = None
        if len(self._new) >= self._new_limit:
            forgotten = next(iter(self._new))
            self.forget(forgotten)
        self._new[tid] = bytearray(secret), now
        return forgotten

    def keep(self, tid: bytes) -> bytes | None:
        """The client of this tunnel knows how to resume.

        Returns the id of the tunnel that had to be forgotten for it, if any: the longest dead one, or the oldest.
        """
        if tid not in self._new:
            return None
        forgotten: bytes | None = None
        if len(self._live) + len(self._gone) >= self._limit:
            forgotten = next(iter(self._gone or self._live))
            self.forget(forgotten)
        self._live[tid] = self._new.pop(tid)[0]
        return forgotten

    def died(self, tid: bytes, now: float) -> bool:
        """Take note that a tunnel is gone; say whether it can be continued, for ``RESUMABLE_SECONDS`` from now on."""
        secret = self._live.pop(tid, None)
        if secret is None:
            self.forget(tid)
            return False
        self._gone[tid] = secret, now
        return True

    def claim(self, tid: bytes, proof: bytes, successor: bytes) -> bool | None:
        """Say whether ``proof`` shows that tunnel ``successor`` continues ``tid``, which then is forgotten.

        None if there is no such tunnel to continue; false, and nothing has changed, if the proof is wrong.
        """
        secret = self._find(tid)
        if secret is None or tid == successor:
            return None
        if not compare_digest(resume_proof(secret, successor), proof):
            return False
        self.forget(tid)
        return True

    def forget(self, tid: bytes) -> None:
        """Erase what is known of a tunnel."""
        secret = self._find(tid)
        if secret is not None:
            erase(secret)
            self._new.pop(tid, None)
            self._live.pop(tid, None)
            self._gone.pop(tid, None)

    def expire(self, now: float) -> list[bytes]:
        """Erase what is too old; return the tunnels that died too long ago to be continued."""
        expired = _since(self._gone, now - RESUMABLE_SECONDS)
        for tid in [*expired, *_since(self._new, now - NEW_SECONDS)]:
            self.forget(tid)
        return expired

    def erase(self) -> None:
        """Erase everything, at the end of the service."""
        for tid in [*self._new, *self._live, *self._gone]:
            self.forget(tid)

    def _find(self, tid: bytes) -> bytearray | None:
        secret = self._live.get(tid)
        if secret is None:
            entry = self._gone.get(tid) or self._new.get(tid)
            secret = None if entry is None else entry[0]
        return secret


def _since(entries: dict[bytes, tuple[bytearray, float]], before: float) -> list[bytes]:
    """Return those from the beginning that are as old. Who takes the first from a dict ever again looks at all gaps."""
    return [tid for tid, _ in takewhile(lambda entry: entry[1][1] <= before, entries.items())]
