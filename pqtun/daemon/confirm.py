"""Questions that show whether a peer is reached where its packets say that they come from.

Anybody who has a tunnel can forge a source. Only who gets our packets there can tell the random token in one of them.
Pure. ``now`` is in seconds, of one clock.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from os import urandom
from typing import Final

from pqtun.pump.engine import Endpoint

TOKEN_BYTES: Final = 8

# When an unanswered question is asked again. The first ones are for lost packets, the others for a path that is cut
# for a while. A peer that never answers (a PQConnect host that drops echo requests) stays within its budget.
ASK_AGAIN: Final = (1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(slots=True)
class _Question:
    token: bytes
    endpoint: Endpoint
    asked: float  # when it was asked last
    repeated: int = 0


class Confirmations:
    """At most one question of each tunnel: the tunnels bound them."""

    def __init__(self, random: Callable[[int], bytes] = urandom) -> None:
        self._random = random
        self._questions: dict[bytes, _Question] = {}

    def __len__(self) -> int:
        return len(self._questions)

    def ask(self, tid: bytes, endpoint: Endpoint, now: float) -> bytes:
        """Return the token to send; no answer to an earlier one counts any more."""
        token = self._random(TOKEN_BYTES)
        self._questions[tid] = _Question(token, endpoint, now)
        return token

    def again(self, tid: bytes, now: float) -> tuple[bytes, Endpoint] | None:
        """Return the token to send once more at once, and where; None if nothing is open."""
        question = self._questions.get(tid)
        if question is None:
            return None
        question.asked, question.repeated = now, 0
        return question.token, question.endpoint

    def due(self, now: float) -> list[tuple[bytes, bytes, Endpoint]]:
        """Return the tunnels and tokens to ask for again now, and where."""
        due = []
        for tid, question in self._questions.items():
            if question.repeated < len(ASK_AGAIN) and question.asked + ASK_AGAIN[question.repeated] <= now:
                question.asked = now
                question.repeated += 1
                due.append((tid, question.token, question.endpoint))
        return due

    def revive(self, tid: bytes) -> None:
        """The peer is there: a question that was given up may be asked again."""
        question = self._questions.get(tid)
        if question is not None and question.repeated >= len(ASK_AGAIN):
            question.repeated = 0

    def answered(self, tid: bytes, token: bytes) -> Endpoint | None:
        """Return where the peer is reached, None if that was not asked."""
        question = self._questions.get(tid)
        if question is None or not compare_digest(question.token, token):
            return None
        del self._questions[tid]
        return question.endpoint

    def forget(self, tid: bytes) -> None:
        """The tunnel is gone."""
        self._questions.pop(tid, None)
