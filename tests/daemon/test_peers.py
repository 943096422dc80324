import sqlite3
from contextlib import closing
from ipaddress import IPv4Address, IPv4Interface, IPv6Address

import pytest

from pqtun.daemon import peers
from pqtun.daemon.peers import PeerBook
from pqtun.protocol.names import Announcement

OWN = IPv4Interface("10.43.0.1/16")
KEY, OTHER_KEY = Announcement(b"k" * 32, 42424, 42425), Announcement(b"o" * 32)
A6, B6 = (IPv6Address(f"2001:db8::{n}") for n in (1, 2))
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
    first = book.met(KEY, "pq1k.example.net", [A], None, nobody)
    second = book.met(OTHER_KEY, "pq1o.example.net", [A], None, nobody)
    assert (str(first.inner), str(second.inner)) == ("10.43.0.2", "10.43.0.3")
    assert book.met(KEY, "PQ1K.example.net.", [A], None, nobody) == first
    assert book.by_inner(first.inner) == first
    assert book.by_inner(IPv4Address("10.43.9.9")) is None
    assert book.is_inner(first.inner)
    assert not book.is_inner(A)


def test_a_server_that_moved_keeps_its_private_address(book):
    first = book.met(KEY, "pq1k.example.net", [A], None, nobody)
    moved = book.met(KEY, "pq1k.example.net", [B], None, nobody)
    assert moved.inner == first.inner
    assert moved.addresses == (B,)


def test_a_new_order_of_addresses_is_not_written_down(book):
    first = book.met(KEY, "pq1k.example.net", [A, B], [A6, B6], nobody)
    book._db.close()
    for real4, real6 in (([B, A], None), ([A, B], [B6, A6]), (None, [A6, B6])):
        assert book.met(KEY, "pq1k.example.net", real4, real6, nobody) == first
    assert not book._save_failed


def test_where_there_was_a_tunnel_stays_a_candidate(book):
    first = book.met(KEY, "pq1k.example.net", [A], None, nobody)
    assert first.candidates == (A,)
    book.used(first.inner, A)
    many = [IPv4Address(int(C) + n) for n in range(peers.MAX_ADDRESSES)]
    assert book.met(KEY, "pq1k.example.net", many, None, nobody).candidates == (*many, A)
    assert book.met(KEY, "pq1k.example.net", [B, A], None, nobody).candidates == (B, A)
    book.used(first.inner, B)
    assert book.met(KEY, "pq1k.example.net", [A], None, nobody).candidates == (A, B)


def test_another_name_for_the_same_server_shares_its_private_address(book):
    first = book.met(KEY, "pq1k.example.net", [A, B], None, nobody)
    assert book.met(KEY, "pq1k.example.org", [B], None, nobody) == first


def test_only_its_own_name_moves_a_peer(book):
    first = book.met(KEY, "pq1k.example.net", [A], None, nobody)
    other_ports = Announcement(KEY.keyhash, 1, 2)
    for announcement, addresses in ((KEY, [C, A]), (KEY, [C]), (other_ports, [A])):
        stranger = book.met(announcement, f"pq1k.{len(book)}.example.org", addresses, None, nobody)
        assert stranger.inner != first.inner
    assert book.by_inner(first.inner) == first
    assert len(book) == 3  # [C] alone adds nothing to [C, A]


def test_two_servers_with_one_key_are_two_peers(book):
    first = book.met(KEY, "pq1k.one.example.net", [A], None, nobody)
    second = book.met(KEY, "pq1k.two.example.net", [B], None, nobody)
    assert first.inner != second.inner
    assert book.met(KEY, "pq1k.one.example.net", [A], None, nobody).inner == first.inner


def test_restart(tmp_path, clock, book):
    first = book.met(KEY, "pq1k.example.net", [A, B], None, nobody)
    book.met(OTHER_KEY, "pq1o.example.net", [C], None, nobody)
    book.close()
    again = PeerBook(tmp_path / "peers.sqlite", OWN, clock)
    assert again.by_inner(first.inner) == first
    assert len(again) == 2
    third = again.met(Announcement(b"n" * 32), "pq1n.example.net", [A], None, nobody)
    assert str(third.inner) == "10.43.0.4"
    again.close()
    elsewhere = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("172.16.0.1/24"), clock)
    assert str(elsewhere.met(KEY, "pq1k.example.net", [A], None, nobody).inner) == "172.16.0.2"
    elsewhere.close()


def test_a_smaller_subnet_leaves_out_what_does_not_fit(tmp_path, clock):
    path = tmp_path / "peers.sqlite"
    book = PeerBook(path, OWN, clock)
    for number in range(10):
        book.met(Announcement(bytes([number]) * 32), f"pq1{number}.example.net", [A], None, nobody)
    book.close()
    small = PeerBook(path, IPv4Interface("10.43.0.1/29"), clock)
    assert {str(peer.inner) for peer in small} == {f"10.43.0.{n}" for n in range(2, 7)}
    small.close()


def test_the_own_address_is_never_given_away(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.3/29"), clock)
    given = [book.met(Announcement(bytes([n]) * 32), f"n{n}", [A], None, nobody) for n in range(5)]
    assert [str(peer.inner)[-1] for peer in given if peer] == ["2", "4", "5", "6"]
    assert given[4] is None
    book.close()


def test_a_full_subnet_forgets_the_longest_unused_only(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/29"), clock)
    given = []
    for number in range(5):
        clock.now += 1
        given.append(book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], None, nobody))
        book.used(given[-1].inner, A)
    newcomer = Announcement(b"n" * 32)
    clock.now += peers.FORGET_UNPROVEN_AFTER
    assert book.met(newcomer, "new", [A], None, nobody) is None
    clock.now += peers.FORGET_AFTER
    book.used(given[0].inner, A)
    assert book.met(newcomer, "new", [A], None, lambda inner: inner == given[1].inner).inner == given[2].inner
    assert book.by_inner(given[0].inner).keyhash == given[0].keyhash
    assert book.by_inner(given[1].inner).keyhash == given[1].keyhash
    assert len(book) == 5
    book.close()


def test_peers_without_a_tunnel_ever_are_forgotten_soon(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/29"), clock)
    given = [book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], None, nobody) for number in range(5)]
    book.used(given[0].inner, A)
    newcomer = Announcement(b"n" * 32)
    assert book.met(newcomer, "new", [A], None, nobody) is None
    clock.now += peers.FORGET_UNPROVEN_AFTER
    assert book.met(newcomer, "new", [A], None, nobody).inner == given[1].inner
    assert book.by_inner(given[0].inner).keyhash == given[0].keyhash
    book.close()


def test_use_is_written_seldom(book, clock, tmp_path):
    peer = book.met(KEY, "pq1k.example.net", [A], None, nobody)

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
    assert book.met(KEY, "pq1k.example.net", many, None, nobody).addresses == tuple(many[: peers.MAX_ADDRESSES])


def test_peers_are_bounded_in_a_subnet_of_any_size(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(peers, "MAX_PEERS", 5)
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.0.0.1/8"), clock)
    for number in range(20):
        book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], None, nobody)
    assert len(book) <= 6
    clock.now += peers.FORGET_UNPROVEN_AFTER
    assert book.met(KEY, "new", [A], None, nobody) is not None
    assert len(book) <= 6
    book.close()


def test_a_full_book_is_not_searched_for_each_lookup(tmp_path, clock):
    """Who makes this host look up invented names must not stop its worker."""
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/24"), clock)
    for number in range(253):
        book.met(Announcement(bytes([number]) * 32), f"n{number}", [A], None, nobody)
    asked = []

    def nothing_in_use(inner):
        asked.append(inner)
        return False

    for number in range(100):
        assert book.met(KEY, f"more{number}", [A], None, nothing_in_use) is None
    assert not asked
    clock.now += peers.FORGET_UNPROVEN_AFTER
    for number in range(100):
        assert book.met(Announcement(bytes([number, 254]) * 16), f"late{number}", [A], None, nothing_in_use) is not None
    assert len(asked) == 100
    for number in range(100):
        assert book.met(Announcement(bytes([number, 253]) * 16), f"last{number}", [A], None, lambda _: True) is None
    book.close()


def test_a_flood_of_invented_names_keeps_others_out_for_seconds_only(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/24"), clock)
    server = book.met(KEY, "server", [A], None, nobody)
    book.used(server.inner, A)
    given = {}
    for number in range(2000):
        clock.now += peers.FORGET_UNPROVEN_AFTER / 200
        peer = book.met(Announcement(number.to_bytes(32, "big")), f"n{number}", [A], None, nobody)
        # Whoever looked a name up has had its private address for itself for that long.
        assert clock.now - given.get(peer.inner, 0.0) >= peers.FORGET_UNPROVEN_AFTER
        given[peer.inner] = clock.now
    assert book.by_inner(server.inner).keyhash == KEY.keyhash
    assert len(book) == 253
    book.close()


def test_an_unproven_peer_that_is_looked_up_again_or_in_use_keeps_its_address(tmp_path, clock):
    book = PeerBook(tmp_path / "peers.sqlite", IPv4Interface("10.43.0.1/29"), clock)
    given = [book.met(Announcement(bytes([n]) * 32), f"n{n}", [A], None, nobody) for n in range(5)]
    clock.now += peers.FORGET_UNPROVEN_AFTER - 1
    assert book.met(Announcement(bytes(32)), "n0", [A], None, nobody) == given[0]
    clock.now += 1
    new = book.met(KEY, "new", [A], None, lambda inner: inner == given[1].inner)
    assert new.inner == given[2].inner
    clock.now += 1
    assert book.met(KEY, "newer", [B], None, nobody).inner == given[3].inner
    assert [book.by_inner(peer.inner).name for peer in given] == ["n0", "n1", "new", "newer", "n4"]
    book.close()


# -- IPv6 ------------------------------------------------------------------------------------------------------------


def test_addresses_of_both_families(book):
    first = book.met(KEY, "pq1k.example.net", [A], None, nobody)
    assert book.met(KEY, "pq1k.example.net", None, [A6, B6], nobody).addresses == (A, A6, B6)
    assert book.met(KEY, "pq1k.example.net", [B], None, nobody).addresses == (B, A6, B6)
    assert book.met(KEY, "pq1k.example.net", None, None, nobody).addresses == (B, A6, B6)
    assert book.met(KEY, "pq1k.example.net", None, [], nobody).addresses == (B,)
    assert book.met(KEY, "pq1k.example.net", [], [B6], nobody).addresses == (B6,)
    assert book.by_inner(first.inner).inner == first.inner
    book.used(first.inner, A6)
    assert book.by_inner(first.inner).candidates == (B6, A6)


def test_a_server_with_ipv6_only(book):
    peer = book.met(KEY, "pq1k.example.net", [], None, nobody)
    assert peer.addresses == ()
    assert book.met(KEY, "pq1k.example.net", None, [A6], nobody).addresses == (A6,)
    other = book.met(OTHER_KEY, "pq1o.example.net", None, [A6], nobody)
    assert (other.addresses, other.inner != peer.inner) == ((A6,), True)


def test_an_answer_without_an_address_makes_no_peer_and_finds_none_by_another_name(book):
    for nothing in ([], None):
        assert book.met(KEY, "pq1k.example.net", None, nothing, nobody) is None
    first = book.met(KEY, "pq1k.example.net", [A], None, nobody)
    for nothing in ([], None):
        assert book.met(KEY, "pq1k.example.org", None, nothing, nobody) is None
        assert book.met(KEY, "pq1k.example.net", None, nothing, nobody) == first
    assert book.met(KEY, "pq1k.example.org", [], None, nobody).inner != first.inner


def test_another_name_shares_a_private_address_with_either_family(book):
    first = book.met(KEY, "pq1k.example.net", [A], [A6], nobody)
    assert book.met(KEY, "pq1k.example.org", None, [A6], nobody) == first
    assert book.met(KEY, "pq1k.example.org", [A], [A6], nobody) == first
    assert book.met(KEY, "pq1k.example.org", None, [B6], nobody).inner != first.inner


@pytest.mark.parametrize("address", ["fe80::1", "ff02::1", "::ffff:192.0.2.1"])
def test_ipv6_addresses_that_name_no_one_host_are_left_out(book, address):
    assert book.met(KEY, "pq1k.example.net", [A], [IPv6Address(address), A6], nobody).addresses == (A, A6)


def test_no_more_than_a_few_real_addresses_of_each_family(book):
    many4 = [IPv4Address(int(A) + n) for n in range(50)]
    many6 = [IPv6Address(int(A6) + n) for n in range(50)]
    kept = (*many4[: peers.MAX_ADDRESSES], *many6[: peers.MAX_ADDRESSES])
    assert book.met(KEY, "pq1k.example.net", many4, many6, nobody).addresses == kept


def test_what_was_learned_is_kept(tmp_path, clock, book):
    peer = book.met(KEY, "pq1k.example.net", [A], [A6], nobody)
    assert peer.ipv6_inside is False
    book.learned(peer.inner, True)
    book.used(peer.inner, A6)
    book.learned(IPv4Address("10.43.9.9"), True)
    clock.now += 100
    assert book.met(KEY, "pq1k.example.net", [B], None, nobody).ipv6_inside is True
    book.close()
    again = PeerBook(tmp_path / "peers.sqlite", OWN, clock)
    found = again.by_inner(peer.inner)
    assert (found.addresses, found.good, found.ipv6_inside) == ((B, A6), A6, True)
    again.learned(peer.inner, False)
    again.close()
    again = PeerBook(tmp_path / "peers.sqlite", OWN, clock)
    assert [peer.ipv6_inside for peer in again] == [False]
    again.close()
