"""What a client needs to continue a tunnel in a new one (doc/protocol.md section 8)."""

from typing import Final

from pqtun.protocol import control
from pqtun.protocol.handshake import Session
from pqtun.protocol.primitives import erase

TICKET_SECONDS: Final = 24 * 3600.0  # the server remembers a tunnel for so long after its end
MAX_TICKETS: Final = 4  # of one peer: the tunnel that was up last, and attempts after it which nobody answered here


class Ticket:
    """A tunnel's id and its resumption secret (32 bytes), which encrypts nothing."""

    __slots__ = ("_secret", "expires", "tid")

    def __init__(self, session: Session, now: float) -> None:
        """Copy what is needed; the session may be erased. ``now`` in seconds, on a clock that counts sleep."""
        self.tid = session.tid
        self._secret = bytearray(session.resume_secret)
        self.expires = now + TICKET_SECONDS

    def resume(self, tid: bytes) -> control.Resume:
        """Return what tells the server that the new tunnel ``tid`` continues this one."""
        return control.Resume(self.tid, control.resume_proof(self._secret, tid))

    def erase(self) -> None:
        """Overwrite the secret."""
        erase(self._secret)


class Tickets:
    """A peer's tickets, the one that is worth most first."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def expire(self, now: float) -> None:
        """Erase those that the server has forgotten."""
        for ticket in [ticket for ticket in self._tickets if ticket.expires <= now]:
            self._tickets.remove(ticket)
            ticket.erase()

    def resumptions(self, tid: bytes) -> list[control.Resume]:
        """Return what the new tunnel ``tid`` continues: the first that the server knows gives the private address."""
        return [ticket.resume(tid) for ticket in self._tickets]

    def keep(self, ticket: Ticket) -> None:
        """Take a ticket: that of the tunnel that is up, then those of attempts which the server may have heard of."""
        self._tickets.append(ticket)
        if len(self._tickets) > MAX_TICKETS:
            self._tickets.pop(1).erase()

    def erase(self) -> None:
        """Overwrite all secrets and forget them."""
        for ticket in self._tickets:
            ticket.erase()
        self._tickets.clear()
