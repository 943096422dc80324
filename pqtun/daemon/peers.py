"""The client's peers and their private addresses, kept across tunnels and restarts (SQLite)."""

import json
import logging
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_address
from itertools import islice
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.protocol.names import Announcement

log = logging.getLogger(__name__)

MAX_ADDRESSES: Final = 8  # real addresses of each family kept for a peer; more in one answer are left out
MAX_ALIASES_TRIED: Final = 64  # peers with one key that an answer under a new name is compared with
SAVE_INTERVAL: Final = 60.0  # seconds between writes of "last used" for one peer
# A private address is given to somebody else only when no program can still remember it: after a day if there was
# ever a tunnel, soon if there was none: anybody can make this host look up names that announce keys nobody has. To
# keep others out of a /16 then takes 3,000 such lookups a second, more than the DNS proxy can do. Answers live for 5 s
# (pqtun.dns.answer.TTL), and a program that keeps trying keeps the address in use.
FORGET_AFTER: Final = 24 * 3600.0
FORGET_UNPROVEN_AFTER: Final = 20.0
MAX_PEERS: Final = 0xFFFF  # however large the subnet is: some 50 MB
MAX_IN_USE_TRIED: Final = 64  # unproven peers that are found in use while one lookup seeks a place
SEARCH_INTERVAL: Final = 5.0  # seconds between searches of a full book, which take 10 ms of everybody's time
_LEAST_ROOM: Final = 1 << 20  # bytes that SQLite needs to open its files, many times over
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
    last_used REAL NOT NULL,
    ipv6_inside INTEGER NOT NULL DEFAULT 0
) STRICT
"""
# Columns that a database of an older version does not have.
_ADDED: Final = {"ipv6_inside": "INTEGER NOT NULL DEFAULT 0"}
_COLUMNS: Final = "number, keyhash, name, addresses, port, key_port, good, last_used, ipv6_inside"

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that this host has met in DNS. ``number`` is its host number in the client's subnet."""

    number: int
    inner: IPv4Address
    keyhash: bytes
    name: str
    addresses: tuple[Address, ...]
    port: int | None
    key_port: int | None
    good: Address | None  # the real address where there was a tunnel last
    last_used: float
    ipv6_inside: bool = False  # whether it said last that it takes IPv6 inside the tunnel

    @property
    def proven(self) -> bool:
        """Whether there ever was a tunnel."""
        return self.good is not None

    @property
    def candidates(self) -> tuple[Address, ...]:
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
        """Open or make the database. Raises UserError.

        A damaged one is put aside and a new one begun. Where the disk has no room, what can be read of it holds, and
        what is new is kept in memory only.
        """
        self._own = own
        self._now = wall_clock
        self._next_number = _FIRST_HOST  # none below it is free
        self._peers: dict[IPv4Address, Peer] = {}
        self._by_hash: dict[bytes, dict[str, IPv4Address]] = {}
        self._unproven: OrderedDict[IPv4Address, float] = OrderedDict()  # when they were met last, longest ago first
        self._forgettable: list[IPv4Address] = []  # longest unused last, as of the latest search
        self._searched = -inf
        self._save_failed = False
        try:
            self._db = self._open(path)
        except sqlite3.OperationalError as error:
            self._db = self._open_in_memory(path, error)
        except sqlite3.DatabaseError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            for extra in ("-wal", "-shm"):  # the damaged file's; they do not fit a new one
                Path(f"{path}{extra}").unlink(missing_ok=True)
            log.warning("%s is damaged (%s): moved to %s, private addresses begin anew", path, error, aside)
            try:
                self._db = self._open(path)
            except sqlite3.OperationalError as full:
                self._db = self._open_in_memory(path, full)

    def _open(self, path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last peers, never the file
            db.execute(_SCHEMA)
            present = {row[1] for row in db.execute("PRAGMA table_info(peer)")}
            for column in _ADDED.keys() - present:
                db.execute(f"ALTER TABLE peer ADD COLUMN {column} {_ADDED[column]}")
            self._load(db, _COLUMNS)
        except BaseException:
            db.close()
            raise
        return db

    def _open_in_memory(self, path: Path, error: sqlite3.OperationalError) -> sqlite3.Connection:
        """Return a database that lasts as long as this process. Raises UserError if room on disk is not what lacks."""
        if not _lacks_room(path, error):
            raise UserError(f"cannot use {path}: {error}; name a writable directory with --state") from None
        log.warning(
            "no room for %s (%s): private addresses of new servers are forgotten at the next start", path, error
        )
        try:
            # As if on a medium that is read only: its log of latest changes would take room to read.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as old:
                columns = {row[1] for row in old.execute("PRAGMA table_info(peer)")}
                self._load(old, ", ".join(name if name in columns else f"0 AS {name}" for name in _COLUMNS.split(", ")))
        except sqlite3.Error:
            self._clear()
        db = sqlite3.connect(":memory:", isolation_level=None)
        db.execute(_SCHEMA)
        return db

    def _load(self, db: sqlite3.Connection, columns: str) -> None:
        """Read all peers, none if one is damaged: it would not be there after a restart."""
        try:
            for row in db.execute(f"SELECT {columns} FROM peer"):
                self._load_peer(*row)
            self._unproven = OrderedDict(sorted(self._unproven.items(), key=itemgetter(1)))
        except BaseException:
            self._clear()
            raise

    def _load_peer(
        self,
        number: int,
        keyhash: bytes,
        name: str,
        addresses: str,
        port: int | None,
        key_port: int | None,
        good: str | None,
        last_used: float,
        ipv6_inside: int,
    ) -> None:
        inner = self._inner(number)
        if inner is None:
            return  # the subnet was made smaller
        try:
            real = tuple(ip_address(text) for text in json.loads(addresses))
            proven = None if good is None else ip_address(good)
        except (ValueError, TypeError) as error:
            raise sqlite3.DatabaseError(f"peer {number}: {error}") from None
        peer = Peer(number, inner, keyhash, name, real, port, key_port, proven, last_used, bool(ipv6_inside))
        self._remember(peer, last_used)

    def _clear(self) -> None:
        self._peers.clear()
        self._by_hash.clear()
        self._unproven.clear()

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

    def is_inner(self, address: Address) -> bool:
        """Whether an address is one that this host hands out for peers."""
        return address in self._own.network

    def met(
        self,
        announcement: Announcement,
        name: str,
        real4: Iterable[IPv4Address] | None,
        real6: Iterable[IPv6Address] | None,
        in_use: Callable[[IPv4Address], bool],
    ) -> Peer | None:
        """Return the peer that an answer announces, a new one if it is not known yet.

        ``real4``, ``real6``: the real addresses that the answer names; None if it says nothing of that family, and what
        is known holds.

        Known is a peer with this key and name, which may have moved; else one with this key that the answer adds
        nothing to: a second name for one server. Only answers for a peer's own name change where it is, for anybody
        can announce somebody else's key. Two servers that share a key are two peers.

        None when every private address is taken (``in_use`` says whether something needs one now). None too when the
        peer is unknown and the answer says no more than that it has no IPv6 address: that is no reason for a new one.
        """
        now = self._now()
        name = name.lower().rstrip(".")
        given4 = None if real4 is None else tuple(dict.fromkeys(real4))[:MAX_ADDRESSES]
        given6 = None if real6 is None else tuple(filter(_is_reachable, dict.fromkeys(real6)))[:MAX_ADDRESSES]
        given: tuple[Address, ...] = (*(given4 or ()), *(given6 or ()))
        found = self._known(announcement, name, given)
        if found is None:
            if given4 is None and not given6:
                return None
            number = self._free_number(now, in_use)
            inner = None if number is None else self._inner(number)
            if number is None or inner is None:
                return None
            ports = announcement.port, announcement.key_port
            peer = Peer(number, inner, announcement.keyhash, name, given, *ports, None, now)
        elif found.name == name:
            addresses: tuple[Address, ...] = (
                *(_of_family(4, found.addresses) if given4 is None else given4),
                *(_of_family(6, found.addresses) if given6 is None else given6),
            )
            if set(addresses) == set(found.addresses):
                addresses = found.addresses  # DNS gives them in turns; that is nothing to write down
            peer = replace(found, addresses=addresses, port=announcement.port, key_port=announcement.key_port)
        else:
            peer = found
        if found is not None and peer == found and 0 <= now - found.last_used < SAVE_INTERVAL:
            self._touch(found.inner, now)
            return found
        peer = replace(peer, last_used=now)
        self._save(peer)
        self._remember(peer, now)
        return peer

    def _known(self, announcement: Announcement, name: str, real: tuple[Address, ...]) -> Peer | None:
        names = self._by_hash.get(announcement.keyhash, {})
        if name in names:
            return self._peers[names[name]]
        for inner in islice(names.values(), MAX_ALIASES_TRIED if real else 0):
            peer = self._peers[inner]
            same_ports = (peer.port, peer.key_port) == (announcement.port, announcement.key_port)
            if same_ports and set(real) <= set(peer.addresses):
                return peer
        return None

    def used(self, inner: IPv4Address, real: Address) -> None:
        """Note that a peer has a tunnel at a real address and packets flow, so that it keeps its private one."""
        peer, now = self._peers.get(inner), self._now()
        if peer is not None and not (peer.good == real and 0 <= now - peer.last_used < SAVE_INTERVAL):
            self._change(replace(peer, good=real, last_used=now), now)

    def learned(self, inner: IPv4Address, ipv6_inside: bool) -> None:
        """Note whether a peer takes IPv6 inside the tunnel, as it says itself."""
        peer = self._peers.get(inner)
        if peer is not None and peer.ipv6_inside != ipv6_inside:
            self._change(replace(peer, ipv6_inside=ipv6_inside), self._now())

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _change(self, peer: Peer, now: float) -> None:
        self._save(peer)
        self._remember(peer, now)

    def _remember(self, peer: Peer, now: float) -> None:
        self._peers[peer.inner] = peer
        self._by_hash.setdefault(peer.keyhash, {})[peer.name] = peer.inner
        if peer.proven:
            self._unproven.pop(peer.inner, None)
        else:
            self._unproven[peer.inner] = now
            self._unproven.move_to_end(peer.inner)

    def _touch(self, inner: IPv4Address, now: float) -> None:
        if inner in self._unproven:
            self._unproven[inner] = now
            self._unproven.move_to_end(inner)

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
            peer.ipv6_inside,
        )
        places = ", ".join("?" * len(values))
        try:
            self._db.execute(f"INSERT OR REPLACE INTO peer ({_COLUMNS}) VALUES ({places})", values)
        except sqlite3.Error as error:  # a full disk must not stop the lookups
            if not self._save_failed:
                log.warning("cannot note peers in the state directory: %s", error)
            self._save_failed = True
        else:
            self._save_failed = False

    def _free_number(self, now: float, in_use: Callable[[IPv4Address], bool]) -> int | None:
        last = min(self._own.network.num_addresses - 2, MAX_PEERS + _FIRST_HOST)
        for number in range(self._next_number, last + 1):
            inner = self._inner(number)
            if inner is not None and inner not in self._peers:
                self._next_number = number + 1
                return number
        self._next_number = last + 1
        peer = self._forgettable_unproven(now, in_use) or self._forgettable_proven(now, in_use)
        if peer is None:
            return None
        self._forget(peer)
        return peer.number

    def _forgettable_unproven(self, now: float, in_use: Callable[[IPv4Address], bool]) -> Peer | None:
        for _ in range(min(len(self._unproven), MAX_IN_USE_TRIED)):
            inner, met = next(iter(self._unproven.items()))
            if 0 <= now - met < FORGET_UNPROVEN_AFTER:
                return None
            if not in_use(inner):
                return self._peers[inner]
            self._touch(inner, now)
        return None

    def _forgettable_proven(self, now: float, in_use: Callable[[IPv4Address], bool]) -> Peer | None:
        def may_forget(peer: Peer) -> bool:
            return peer.proven and now - peer.last_used >= FORGET_AFTER and not in_use(peer.inner)

        if not self._forgettable and not 0 <= now - self._searched < SEARCH_INTERVAL:
            self._searched = now
            peers = sorted(filter(may_forget, self._peers.values()), key=lambda peer: peer.last_used, reverse=True)
            self._forgettable = [peer.inner for peer in peers]
        while self._forgettable:
            peer = self._peers[self._forgettable.pop()]
            if may_forget(peer):
                return peer
        return None

    def _forget(self, peer: Peer) -> None:
        del self._peers[peer.inner]
        self._unproven.pop(peer.inner, None)
        del self._by_hash[peer.keyhash][peer.name]
        if not self._by_hash[peer.keyhash]:
            del self._by_hash[peer.keyhash]


def _of_family(version: int, addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(address for address in addresses if address.version == version)


def _is_reachable(address: IPv6Address) -> bool:
    """Whether an address names one host for everybody: not one that takes an interface, and no IPv4 one in disguise."""
    return not (address.is_link_local or address.is_multicast or address.ipv4_mapped)


def _lacks_room(path: Path, error: sqlite3.OperationalError) -> bool:
    """Whether an error at opening a database means that the disk is full, or does not take what it should."""
    code = error.sqlite_errorcode & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return True
    try:
        left = os.statvfs(path.parent)
    except OSError:
        return False
    return left.f_favail == 0 < left.f_files or left.f_bavail * left.f_frsize < _LEAST_ROOM
