"""What the book of peers does about damaged, older and unusable databases."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pqtun.daemon.peers import Peer, PeerBook
from pqtun.protocol.errors import UserError
from pqtun.protocol.names import Announcement
from tests.daemon.test_peers import A6, KEY, OTHER_KEY, OWN, A, B, Clock, nobody

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be read as one" * 40, b"SQLite format 3\0" + b"x" * 4000]
)
def test_a_damaged_file_is_put_aside(tmp_path, clock, content):
    path = tmp_path / "peers.sqlite"
    path.write_bytes(content)
    book = PeerBook(path, OWN, clock)
    assert book.met(KEY, "pq1k.example.net", [A], None, nobody) is not None
    book.close()
    assert (tmp_path / "peers.damaged").read_bytes() == content


def test_no_directory(tmp_path, clock):
    with pytest.raises(UserError, match="--state"):
        PeerBook(tmp_path / "none" / "peers.sqlite", OWN, clock)


def test_after_damage_only_what_is_on_disk_counts(tmp_path, clock):
    """Damage behind the first rows: what was read before it must not get addresses that a restart gives to others."""
    path = tmp_path / "peers.sqlite"
    book = PeerBook(path, OWN, clock)
    for number in range(500):
        book.met(Announcement(number.to_bytes(32, "big")), f"pq1{number}.example.net", [A], None, nobody)
    book.close()
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half:] = b"\xaa" * (len(content) - half)
    path.write_bytes(content)
    left = tmp_path / "peers.sqlite-wal"
    left.write_bytes(b"")
    book = PeerBook(path, OWN, clock)
    assert (tmp_path / "peers.damaged").read_bytes() == content
    assert len(book) == 0
    book.met(KEY, "pq1k.example.net", [A], None, nobody)
    book.close()
    book = PeerBook(path, OWN, clock)
    assert [peer.name for peer in book] == ["pq1k.example.net"]
    book.close()


OLD_SCHEMA = """
CREATE TABLE peer (
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


def make_old(path, clock):
    """A database as pqtun made it before it knew IPv6."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(OLD_SCHEMA)
        row = (7, KEY.keyhash, "pq1k.example.net", '["192.0.2.1"]', 42424, 42425, "192.0.2.1", clock.now)
        db.execute("INSERT INTO peer VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.commit()


def test_an_older_database_goes_on(tmp_path, clock):
    path = tmp_path / "peers.sqlite"
    make_old(path, clock)
    for inside in (False, True):
        book = PeerBook(path, OWN, clock)
        (peer,) = book
        assert peer == Peer(
            7, IPv4Address("10.43.0.7"), KEY.keyhash, "pq1k.example.net", (A,), 42424, 42425, A, clock.now, inside
        )
        book.learned(peer.inner, True)
        book.close()
    assert not (tmp_path / "peers.damaged").exists()


# -- a full disk -----------------------------------------------------------------------------------------------------


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def full(code, text="database or disk is full"):
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class FullDisk:
    """Connections to files fail as on a full disk, except where they only read."""

    def __init__(self, monkeypatch, error):
        self.error = error
        self.real = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", self)

    def __call__(self, path, **options):
        if path == ":memory:" or "immutable=1" in str(path):
            return self.real(path, **options)
        raise self.error


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_SHMSIZE])
def test_a_start_on_a_full_disk(tmp_path, clock, monkeypatch, caplog, code):
    path = tmp_path / "peers.sqlite"
    FullDisk(monkeypatch, full(code))
    book = PeerBook(path, OWN, clock)
    peer = book.met(KEY, "pq1k.example.net", [A], [A6], nobody)
    book.used(peer.inner, A)
    book.learned(peer.inner, True)
    assert len(book) == 1
    book.close()
    assert len(warnings(caplog)) == 1
    assert "no room" in warnings(caplog)[0]
    assert not path.exists()


def test_a_full_disk_can_still_be_read(tmp_path, clock, monkeypatch, caplog):
    path = tmp_path / "peers.sqlite"
    make_old(path, clock)
    FullDisk(monkeypatch, full(sqlite3.SQLITE_FULL))
    book = PeerBook(path, OWN, clock)
    assert [(str(peer.inner), peer.good, peer.ipv6_inside) for peer in book] == [("10.43.0.7", A, False)]
    assert str(book.met(OTHER_KEY, "pq1o.example.net", [A], None, nobody).inner) == "10.43.0.2"
    book.close()
    assert len(warnings(caplog)) == 1


def test_what_cannot_be_read_on_a_full_disk_is_left_alone(tmp_path, clock, monkeypatch):
    path = tmp_path / "peers.sqlite"
    path.write_bytes(b"not a database, but long enough to be read as one" * 40)
    FullDisk(monkeypatch, full(sqlite3.SQLITE_FULL))
    book = PeerBook(path, OWN, clock)
    assert len(book) == 0
    assert book.met(KEY, "pq1k.example.net", [A], None, nobody) is not None
    book.close()


def test_a_disk_that_fills_up_later_is_told_once(tmp_path, clock, monkeypatch, caplog):
    book = PeerBook(tmp_path / "peers.sqlite", OWN, clock)

    class Full:
        fails = True

        def __init__(self, db):
            self.db = db

        def close(self):
            self.db.close()

        def execute(self, *arguments):
            if self.fails:
                raise full(sqlite3.SQLITE_FULL)
            return self.db.execute(*arguments)

    disk = Full(book._db)
    monkeypatch.setattr(book, "_db", disk)
    for number in range(5):
        assert book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], None, nobody) is not None
    assert len(warnings(caplog)) == 1
    disk.fails = False
    book.met(KEY, "well", [A], None, nobody)
    disk.fails = True
    book.met(KEY, "worse", [B], None, nobody)
    assert len(warnings(caplog)) == 2
    book.close()


ON_A_FULL_DISK = """
import logging, os, pathlib, sqlite3, sys
from ipaddress import IPv4Address, IPv4Interface
from pqtun.daemon.peers import PeerBook
from pqtun.protocol.names import Announcement

logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
state, old = pathlib.Path(sys.argv[1]), sys.argv[2] == "old"

def book():
    return PeerBook(state / "peers.sqlite", IPv4Interface("10.43.0.1/16"), lambda: 1e9)

def met(book, number):
    return book.met(Announcement(bytes([number]) * 32), f"n{number}", [IPv4Address("192.0.2.1")], None, lambda _: False)

if old:
    with_one = book()
    met(with_one, 0)
    with_one.close()
with open(state / "filler", "wb", buffering=0) as filler:
    try:
        while filler.write(bytes(512)):
            pass
    except OSError:
        pass
    if sys.argv[2] == "files":
        filler.truncate(0)
        for number in range(100000):
            try:
                (state / str(number)).touch()
            except OSError:
                break
full = book()
print("known", len(full), "new", met(full, 1).inner)
full.close()
"""


@pytest.mark.root
@pytest.mark.parametrize(("case", "known"), [("new", 0), ("old", 1), ("files", 0)])
def test_a_disk_that_is_full_indeed(tmp_path, case, known):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=50", "none", tmp_path], check=True)
    try:
        command = [sys.executable, "-c", ON_A_FULL_DISK, tmp_path, case]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    warning, result = done.stdout.splitlines()
    assert warning.startswith("WARNING no room for")
    assert result == f"known {known} new 10.43.0.{2 + known}"
    assert (done.returncode, done.stderr) == (0, "")
