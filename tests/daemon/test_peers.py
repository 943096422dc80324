import sqlite3
from contextlib import closing
from ipaddress import IPv4Address, IPv4Interface

import pytest

from pqtun.daemon import peers
from pqtun.daemon.peers import PeerBook
from pqtun.protocol.errors import UserError
from pqtun.protocol.names import Announcement

OWN = IPv4Interface("10.43.0.1/16")
KEY, OTHER_KEY = Announcement(b"k" * 32, 42424, 42425), Announcement(b"o" * 32)
A, B, C = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    made = PeerBook(tmp_path / "peers.sqlite", OWN, clock)
    yield made
    made.close()


def nobody(_):
    return False


def test_addresses_are_given_in_turn_and_kept(book):
    first = book.met(KEY, "pq1k.example.net", [A], nobody)
    second = book.met(OTHER_KEY, "pq1o.example.net", [A], nobody)
    assert (str(first.inner), str(second.inner)) == ("10.43.0.2", "10.43.0.3")
    assert book.met(KEY, "PQ1K.example.net.", [A], nobody) == first
    assert book.by_inner(first.inner) == first
    assert book.by_inner(IPv4Address("10.43.9.9")) is None
    assert book.is_inner(first.inner)
    assert not book.is_inner(A)


def test_a_server_that_moved_keeps_its_private_address(book):
    first = book.met(KEY, "pq1k.example.net", [A], nobody)
    moved = book.met(KEY, "pq1k.example.net", [B], nobody)
    assert moved.inner == first.inner
    assert moved.addresses == (B,)


def test_where_there_was_a_tunnel_stays_a_candidate(book):
    first = book.met(KEY, "pq1k.example.net", [A], nobody)
    assert first.candidates == (A,)
    book.used(first.inner, A)
    many = [IPv4Address(int(C) + n) for n in range(peers.MAX_ADDRESSES)]
    assert book.met(KEY, "pq1k.example.net", many, nobody).candidates == (*many, A)
    assert book.met(KEY, "pq1k.example.net", [B, A], nobody).candidates == (B, A)
    book.used(first.inner, B)
    assert book.met(KEY, "pq1k.example.net", [A], nobody).candidates == (A, B)


def test_another_name_for_the_same_server_shares_its_private_address(book):
    first = book.met(KEY, "pq1k.example.net", [A, B], nobody)
    assert book.met(KEY, "pq1k.example.org", [B], nobody) == first


def test_only_its_own_name_moves_a_peer(book):
    first = book.met(KEY, "pq1k.example.net", [A], nobody)
    other_ports = Announcement(KEY.keyhash, 1, 2)
    for announcement, addresses in ((KEY, [C, A]), (KEY, [C]), (other_ports, [A])):
        stranger = book.met(announcement, f"pq1k.{len(book)}.example.org", addresses, nobody)
        assert stranger.inner != first.inner
    assert book.by_inner(first.inner) == first
    assert len(book) == 3  # [C] alone adds nothing to [C, A]


def test_two_servers_with_one_key_are_two_peers(book):
    first = book.met(KEY, "pq1k.one.example.net", [A], nobody)
    second = book.met(KEY, "pq1k.two.example.net", [B], nobody)
    assert first.inner != second.inner
    assert book.met(KEY, "pq1k.one.example.net", [A], nobody).inner == first.inner


def test_restart(tmp_path, clock, book):
    first = book.met(KEY, "pq1k.example.net", [A, B], nobody)
    book.met(OTHER_KEY, "pq1o.example.net", [C], nobody)
    book.close()
    again = PeerBook(tmp_path / "peers.sqlite", OWN, clock)
    assert again.by_inner(first.inner) == first
    assert len(again) == 2
    third = again.met(Announcement(b"n" * 32), "pq1n.example.net", [A], nobody)
    assert str(third.inner) == "10.43.0.4"
    again.close()
    elsewhere = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("172.16.0.1/24"), clock)
    assert str(elsewhere.met(KEY, "pq1k.example.net", [A], nobody).inner) == "172.16.0.2"
    elsewhere.close()


def test_a_smaller_subnet_leaves_out_what_does_not_fit(tmp_path, clock):
    path = tmp_path / "peers.sqlite"
    book = PeerBook(path, OWN, clock)
    for number in range(10):
        book.met(Announcement(bytes([number]) * 32), f"pq1{number}.example.net", [A], nobody)
    book.close()
    small = PeerBook(path, IPv4Interface("10.43.0.1/29"), clock)
    assert {str(peer.inner) for peer in small} == {f"10.43.0.{n}" for n in range(2, 7)}
    small.close()


def test_the_own_address_is_never_given_away(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.3/29"), clock)
    given = [book.met(Announcement(bytes([n]) * 32), f"n{n}", [A], nobody) for n in range(5)]
    assert [str(peer.inner)[-1] for peer in given if peer] == ["2", "4", "5", "6"]
    assert given[4] is None
    book.close()


def test_a_full_subnet_forgets_the_longest_unused_only(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/29"), clock)
    given = []
    for number in range(5):
        clock.now += 1
        given.append(book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], nobody))
        book.used(given[-1].inner, A)
    newcomer = Announcement(b"n" * 32)
    clock.now += peers.FORGET_UNPROVEN_AFTER
    assert book.met(newcomer, "new", [A], nobody) is None
    clock.now += peers.FORGET_AFTER
    book.used(given[0].inner, A)
    assert book.met(newcomer, "new", [A], lambda inner: inner == given[1].inner).inner == given[2].inner
    assert book.by_inner(given[0].inner).keyhash == given[0].keyhash
    assert book.by_inner(given[1].inner).keyhash == given[1].keyhash
    assert len(book) == 5
    book.close()


def test_peers_without_a_tunnel_ever_are_forgotten_soon(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/29"), clock)
    given = [book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], nobody) for number in range(5)]
    book.used(given[0].inner, A)
    newcomer = Announcement(b"n" * 32)
    assert book.met(newcomer, "new", [A], nobody) is None
    clock.now += peers.FORGET_UNPROVEN_AFTER
    assert book.met(newcomer, "new", [A], nobody).inner == given[1].inner
    assert book.by_inner(given[0].inner).keyhash == given[0].keyhash
    book.close()


def test_use_is_written_seldom(book, clock, tmp_path):
    peer = book.met(KEY, "pq1k.example.net", [A], nobody)

    def stored():
        with closing(sqlite3.connect(tmp_path / "peers.sqlite")) as db:
            return db.execute("SELECT last_used FROM peer").fetchone()[0]

    clock.now += 10
    book.used(peer.inner, A)
    assert stored() == clock.now  # the first use makes it a proven one
    clock.now += 10
    book.used(peer.inner, A)
    assert stored() == clock.now - 10
    clock.now += 100
    book.used(peer.inner, A)
    assert stored() == clock.now
    clock.now -= 5000  # the wall clock was set back
    book.used(peer.inner, A)
    assert stored() == clock.now


def test_no_more_than_a_few_real_addresses(book):
    many = [IPv4Address(int(A) + n) for n in range(50)]
    assert book.met(KEY, "pq1k.example.net", many, nobody).addresses == tuple(many[: peers.MAX_ADDRESSES])


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be read as one" * 40, b"SQLite format 3\0" + b"x" * 4000]
)
def test_a_damaged_file_is_put_aside(tmp_path, clock, content):
    path = tmp_path / "peers.sqlite"
    path.write_bytes(content)
    book = PeerBook(path, OWN, clock)
    assert book.met(KEY, "pq1k.example.net", [A], nobody) is not None
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
        book.met(Announcement(number.to_bytes(32, "big")), f"pq1{number}.example.net", [A], nobody)
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
    book.met(KEY, "pq1k.example.net", [A], nobody)
    book.close()
    book = PeerBook(path, OWN, clock)
    assert [peer.name for peer in book] == ["pq1k.example.net"]
    book.close()


def test_peers_are_bounded_in_a_subnet_of_any_size(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(peers, "MAX_PEERS", 5)
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.0.0.1/8"), clock)
    for number in range(20):
        book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], nobody)
    assert len(book) <= 6
    clock.now += peers.FORGET_UNPROVEN_AFTER
    assert book.met(KEY, "new", [A], nobody) is not None
    assert len(book) <= 6
    book.close()


def test_a_full_book_is_not_searched_for_each_lookup(tmp_path, clock):
    """Who makes this host look up invented names must not stop its worker."""
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/24"), clock)
    for number in range(253):
        book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], nobody)
    asked = []

    def nothing_in_use(inner):
        asked.append(inner)
        return False

    for number in range(100):
        assert book.met(KEY, f"more{number}", [A], nothing_in_use) is None
    assert not asked
    clock.now += peers.FORGET_UNPROVEN_AFTER
    for number in range(100):
        assert book.met(Announcement(bytes([number, 254]) * 16), f"late{number}", [A], nothing_in_use) is not None
    assert len(asked) == 253 + 100
    book.close()
