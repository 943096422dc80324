"""The client's peers and their private addresses, kept across tunnels and restarts (SQLite)."""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from itertools import islice
from math import inf
from pathlib import Path
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.protocol.names import Announcement

log = logging.getLogger(__name__)

MAX_ADDRESSES: Final = 8  # real addresses kept for a peer; more in one answer are left out
MAX_ALIASES_TRIED: Final = 64  # peers with one key that an answer under a new name is compared with
SAVE_INTERVAL: Final = 60.0  # seconds between writes of "last used" for one peer
# A private address is given to somebody else only when no program can still remember it: after a day if there was
# ever a tunnel, soon if there was none (anybody can make this host look up names that announce keys nobody has).
FORGET_AFTER: Final = 24 * 3600.0
FORGET_UNPROVEN_AFTER: Final = 600.0
MAX_PEERS: Final = 0xFFFF  # however large the subnet is: some 50 MB
SEARCH_INTERVAL: Final = 5.0  # seconds between searches of a full book, which take 10 ms of everybody's time
_FIRST_HOST: Final = 2  # .0 is the network, .1 usually ourselves

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS peer (
    number INTEGER PRIMARY KEY,
    keyhash BLOB NOT NULL,
    name TEXT NOT NULL,
    addresses TEXT NOT NULL,
    port INTEGER,
    key_port INTEGER,
    good TEXT,
    last_used REAL NOT NULL
) STRICT
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that this host has met in DNS. ``number`` is its host number in the client's subnet."""

    number: int
    inner: IPv4Address
    keyhash: bytes
    name: str
    addresses: tuple[IPv4Address, ...]
    port: int | None
    key_port: int | None
    good: IPv4Address | None  # the real address where there was a tunnel last
    last_used: float

    @property
    def proven(self) -> bool:
        """Whether there ever was a tunnel."""
        return self.good is not None

    @property
    def candidates(self) -> tuple[IPv4Address, ...]:
        """The real addresses to try, in this order.

        Whoever answers one lookup names new ones; the one where there was a tunnel stays as a way back.
        """
        return self.addresses if self.good is None or self.good in self.addresses else (*self.addresses, self.good)

    @property
    def announcement(self) -> Announcement:
        """What the peer's pq1 name says."""
        return Announcement(self.keyhash, self.port, self.key_port)


class PeerBook:
    """All known peers, by private address and by key hash."""

    def __init__(self, path: Path, own: IPv4Interface, wall_clock: Callable[[], float]) -> None:
        """Open or make the database. A damaged one is put aside and a new one begun. Raises UserError."""
        self._own = own
        self._now = wall_clock
        self._next_number = _FIRST_HOST  # none below it is free
        self._peers: dict[IPv4Address, Peer] = {}
        self._by_hash: dict[bytes, dict[str, IPv4Address]] = {}
        self._forgettable: list[IPv4Address] = []  # longest unused last, as of the latest search
        self._searched = -inf
        try:
            self._db = self._open(path)
        except sqlite3.OperationalError as error:
            raise UserError(f"cannot use {path}: {error}; name a writable directory with --state") from None
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            for extra in ("-wal", "-shm"):  # the damaged file's; they do not fit a new one
                Path(f"{path}{extra}").unlink(missing_ok=True)
            self._peers.clear()  # what could be read before the damage will not be there after a restart
            self._by_hash.clear()
            log.warning("%s is damaged (%s): moved to %s, private addresses begin anew", path, error, aside)
            self._db = self._open(path)

    def _open(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last peers, never the file
            db.execute(_SCHEMA)
            for row in db.execute("SELECT number, keyhash, name, addresses, port, key_port, good, last_used FROM peer"):
                self._load(*row)
        except BaseException:
            db.close()
            raise
        return db

    def _load(
        self,
        number: int,
        keyhash: bytes,
        name: str,
        addresses: str,
        port: int | None,
        key_port: int | None,
        good: str | None,
        last_used: float,
    ) -> None:
        inner = self._inner(number)
        if inner is None:
            return  # the subnet was made smaller
        try:
            real = tuple(IPv4Address(text) for text in json.loads(addresses))
            proven = None if good is None else IPv4Address(good)
        except ValueError as error:
            raise sqlite3.DatabaseError(f"peer {number}: {error}") from None
        self._remember(Peer(number, inner, keyhash, name, real, port, key_port, proven, last_used))

    def _inner(self, number: int) -> IPv4Address | None:
        network = self._own.network
        if not 0 < number < network.num_addresses - 1:
            return None
        inner = network.network_address + number
        return None if inner == self._own.ip else inner

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def by_inner(self, inner: IPv4Address) -> Peer | None:
        """Return the peer that this private address stands for."""
        return self._peers.get(inner)

    def is_inner(self, address: IPv4Address) -> bool:
        """Whether an address is one that this host hands out for peers."""
        return address in self._own.network

    def met(
        self,
        announcement: Announcement,
        name: str,
        addresses: Iterable[IPv4Address],
        in_use: Callable[[IPv4Address], bool],
    ) -> Peer | None:
        """Return the peer that an answer announces, a new one if it is not known yet.

        Known is a peer with this key and name, which may have moved; else one with this key that the answer adds
        nothing to: a second name for one server. Only answers for a peer's own name change where it is, for anybody
        can announce somebody else's key. Two servers that share a key are two peers. None when every private address
        is taken: ``in_use`` says whether something needs one now.
        """
        real = tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES]
        name = name.lower().rstrip(".")
        now = self._now()
        found = self._known(announcement, name, real)
        if found is None:
            number = self._free_number(now, in_use)
            inner = None if number is None else self._inner(number)
            if number is None or inner is None:
                return None
            ports = announcement.port, announcement.key_port
            peer = Peer(number, inner, announcement.keyhash, name, real, *ports, None, now)
        elif found.name == name:
            peer = replace(found, addresses=real, port=announcement.port, key_port=announcement.key_port)
        else:
            peer = found
        if found is not None and peer == found and 0 <= now - found.last_used < SAVE_INTERVAL:
            return found
        peer = replace(peer, last_used=now)
        self._save(peer)
        self._remember(peer)
        return peer

    def _known(self, announcement: Announcement, name: str, real: tuple[IPv4Address, ...]) -> Peer | None:
        names = self._by_hash.get(announcement.keyhash, {})
        if name in names:
            return self._peers[names[name]]
        for inner in islice(names.values(), MAX_ALIASES_TRIED):
            peer = self._peers[inner]
            same_ports = (peer.port, peer.key_port) == (announcement.port, announcement.key_port)
            if same_ports and set(real) <= set(peer.addresses):
                return peer
        return None

    def used(self, inner: IPv4Address, real: IPv4Address) -> None:
        """Note that a peer has a tunnel at a real address and packets flow, so that it keeps its private one."""
        peer, now = self._peers.get(inner), self._now()
        if peer is not None and not (peer.good == real and 0 <= now - peer.last_used < SAVE_INTERVAL):
            peer = replace(peer, good=real, last_used=now)
            self._save(peer)
            self._remember(peer)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _remember(self, peer: Peer) -> None:
        self._peers[peer.inner] = peer
        self._by_hash.setdefault(peer.keyhash, {})[peer.name] = peer.inner

    def _save(self, peer: Peer) -> None:
        values = (
            peer.number,
            peer.keyhash,
            peer.name,
            json.dumps([str(address) for address in peer.addresses]),
            peer.port,
            peer.key_port,
            None if peer.good is None else str(peer.good),
            peer.last_used,
        )
        try:
            self._db.execute("INSERT OR REPLACE INTO peer VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:  # a full disk must not stop the lookups
            log.warning("cannot note a peer in the state directory: %s", error)

    def _free_number(self, now: float, in_use: Callable[[IPv4Address], bool]) -> int | None:
        last = min(self._own.network.num_addresses - 2, MAX_PEERS + _FIRST_HOST)
        for number in range(self._next_number, last + 1):
            inner = self._inner(number)
            if inner is not None and inner not in self._peers:
                self._next_number = number + 1
                return number
        self._next_number = last + 1
        if not self._forgettable and not 0 <= now - self._searched < SEARCH_INTERVAL:
            self._searched = now
            peers = sorted(self._peers.values(), key=lambda peer: (peer.proven, peer.last_used))
            self._forgettable = [peer.inner for peer in peers if self._may_forget(peer, now, in_use)][::-1]
        while self._forgettable:
            peer = self._peers[self._forgettable.pop()]
            if self._may_forget(peer, now, in_use):
                self._forget(peer)
                return peer.number
        return None

    @staticmethod
    def _may_forget(peer: Peer, now: float, in_use: Callable[[IPv4Address], bool]) -> bool:
        patience = FORGET_AFTER if peer.proven else FORGET_UNPROVEN_AFTER
        return now - peer.last_used >= patience and not in_use(peer.inner)

    def _forget(self, peer: Peer) -> None:
        del self._peers[peer.inner]
        del self._by_hash[peer.keyhash][peer.name]
        if not self._by_hash[peer.keyhash]:
            del self._by_hash[peer.keyhash]
