"""Looks after the PQConnect clients of a server that hear nothing more (``pqtun.daemon.stalls``)."""

from ipaddress import IPv4Address
from typing import Final

from pqtun.daemon.stalls import Stalls, Step
from pqtun.daemon.tenants import Tenants
from pqtun.pump.engine import Engine
from pqtun.pump.icmp import echo_request

WATCHED: Final = 64  # those used last: more cannot lose 90 packets each within seconds on one server's link


class Listeners:
    """The tunnels of clients that did not say Hello."""

    def __init__(self, engine: Engine, own: IPv4Address) -> None:
        self._engine = engine
        self._own = own
        self._known: set[bytes] = set()
        self._watched: dict[bytes, Stalls] = {}

    def add(self, tid: bytes) -> None:
        """A client was heard."""
        self._known.add(tid)

    def answered(self, tid: bytes, token: bytes) -> None:
        """Take an answer to an echo, which need not be one of here."""
        if tid in self._watched:
            self._watched[tid].answered(token)

    def tick(self, tenants: Tenants, now: float) -> None:
        """Do what is due, once a second."""
        self._known = {tid for tid in self._known if (tenant := tenants.get(tid)) is not None and not tenant.pqtun}
        tunnels = self._engine.stats(WATCHED).tunnels if self._known else []
        before, self._watched = self._watched, {}
        for stats in tunnels:
            if stats.tid not in self._known:
                continue
            stalls = self._watched[stats.tid] = before.get(stats.tid) or Stalls()
            step = stalls.tick(stats, now)
            if step is Step.NEXT_EPOCH:
                self._engine.next_epoch(stats.tid)
            if step is not Step.NOTHING:
                self._engine.send_inner(stats.tid, echo_request(self._own, stalls.token))
