"""Tunnels that continue others, are put aside and come back, and move."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from pqtun.daemon import server
from pqtun.daemon.confirm import ASK_AGAIN
from pqtun.daemon.resumption import RESUMABLE_SECONDS
from pqtun.protocol import control
from pqtun.protocol.constants import COOKIE_LIFETIME
from pqtun.pump import icmp
from pqtun.pump.engine import Alive, Control, Datagram, Dead, Roamed, Wanted
from pqtun.pump.limits import HELD_SECONDS
from tests.daemon.serving import (
    CLIENT,
    COOKIE_EPOCH,
    RECV_ROOT,
    SEND_ROOT,
    SOURCE,
    answers,
    connect,
    echo_reply,
    greeted,
    resume,
    said,
    with_service,
)

ELSEWHERE = ("2001:db8::9", 1234)
FIRST = IPv4Address("10.42.0.2")
HELLO = control.Hello(1, control.FEATURE_RESUME, 1396)


def die(service, engine, session):
    engine.remove_tunnel(session.tid)
    service.handle(Dead(session.tid))


def counters(service):
    return service.status()["handshakes"]


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [False, True])
def test_a_new_tunnel_takes_the_old_ones_address(dead):
    def test(service, engine):
        old = greeted(service, engine)
        if dead:
            die(service, engine, old)
            engine.now += RESUMABLE_SECONDS - 1
            service.expire(engine.now)
        _, new = connect(service)
        provisional = engine.tunnels[new.tid].inner
        assert provisional != FIRST
        said(service, new.tid, HELLO, resume(old, new))
        assert list(engine.tunnels) == [new.tid]
        assert engine.tunnels[new.tid].inner == FIRST
        assert counters(service)["resumed"] == 1
        others = {engine.tunnels[connect(service)[1].tid].inner for _ in range(4)}
        assert provisional in others  # free again

    with_service(test)


def test_the_client_repeats_what_was_not_answered():
    def test(service, engine):
        old = greeted(service, engine)
        _, new = connect(service)
        engine.sent.clear()
        for _ in range(2):
            said(service, new.tid, HELLO, resume(old, new))
            assert HELLO in answers(engine, new.tid)
            assert engine.tunnels[new.tid].inner == FIRST
        assert {name: count for name, count in counters(service).items() if "resume" in name} == {"resumed": 1}

    with_service(test)


def test_a_tunnel_that_died_before_its_word_was_read_continues_nothing():
    """Its events come in order; the engine is ahead of them."""

    def test(service, engine):
        old = greeted(service, engine)
        die(service, engine, old)
        new = greeted(service, engine)
        engine.remove_tunnel(new.tid)
        said(service, new.tid, HELLO, resume(old, new))
        service.handle(Dead(new.tid))
        last = greeted(service, engine)
        said(service, last.tid, resume(new, last))
        assert engine.tunnels[last.tid].inner == FIRST

    with_service(test)


def test_a_secret_serves_once():
    def test(service, engine):
        old = greeted(service, engine)
        new = greeted(service, engine)
        said(service, new.tid, resume(old, new))
        _, late = connect(service)
        said(service, late.tid, HELLO, resume(old, late))
        assert engine.tunnels[new.tid].inner == FIRST
        assert engine.tunnels[late.tid].inner != FIRST
        assert counters(service)["resume_unknown"] == 1
        _, newest = connect(service)
        said(service, newest.tid, HELLO, resume(new, newest))  # but its successor has one of its own
        assert engine.tunnels[newest.tid].inner == FIRST

    with_service(test)


def test_a_wrong_proof_changes_nothing():
    def test(service, engine):
        old = greeted(service, engine)
        _, new = connect(service)
        proof = resume(old, new).proof
        for wrong in (proof[:-1] + bytes([proof[-1] ^ 1]), resume(new, old).proof, bytes(32)):
            said(service, new.tid, HELLO, control.Resume(old.tid, wrong))
        assert set(engine.tunnels) == {old.tid, new.tid}
        assert counters(service)["resume_proof"] == 3
        said(service, new.tid, HELLO, resume(old, new))
        assert engine.tunnels[new.tid].inner == FIRST

    with_service(test)


def test_a_tunnel_does_not_continue_itself():
    def test(service, engine):
        session = greeted(service, engine)
        said(service, session.tid, resume(session, session))
        assert session.tid in engine.tunnels
        assert counters(service)["resume_unknown"] == 1

    with_service(test)


def test_of_several_the_first_gives_the_address_and_all_end():
    """Handshakes of which the client heard nothing may all have made tunnels."""

    def test(service, engine):
        old, attempt, other = (greeted(service, engine) for _ in range(3))
        die(service, engine, old)
        _, new = connect(service)
        unknown = control.Resume(bytes(32), bytes(32))
        said(service, new.tid, HELLO, unknown, resume(old, new), resume(attempt, new))
        assert set(engine.tunnels) == {new.tid, other.tid}
        assert engine.tunnels[new.tid].inner == FIRST
        said(service, new.tid, resume(other, new))
        assert set(engine.tunnels) == {new.tid}
        assert engine.tunnels[new.tid].inner == FIRST
        assert len({engine.tunnels[connect(service)[1].tid].inner for _ in range(4)}) == 4

    with_service(test)


def test_after_a_day_it_is_forgotten():
    def test(service, engine):
        old = greeted(service, engine)
        die(service, engine, old)
        engine.now += RESUMABLE_SECONDS
        service.expire(engine.now)
        service.handle(Wanted(FIRST))
        assert engine.dropped == [(FIRST, True)]
        _, new = connect(service)
        said(service, new.tid, HELLO, resume(old, new))
        assert engine.tunnels[new.tid].inner != FIRST
        assert counters(service)["resume_unknown"] == 1

    with_service(test)


def test_who_said_no_hello_or_goodbye_is_forgotten():
    def test(service, engine):
        _, silent = connect(service)
        _, plain = connect(service)
        said(service, plain.tid, control.Hello(1, 0, 1396))
        gone = greeted(service, engine)
        for session in (silent, plain):
            die(service, engine, session)
        said(service, gone.tid, control.Bye(0))
        _, new = connect(service)
        said(service, new.tid, HELLO, *(resume(session, new) for session in (silent, plain, gone)))
        assert counters(service)["resume_unknown"] == 3
        for host in (2, 3, 4):
            service.handle(Wanted(IPv4Address(f"10.42.0.{host}")))
        assert len(engine.dropped) == 3

    with_service(test)


def test_packets_to_a_client_that_may_return_are_held():
    def test(service, engine):
        old = greeted(service, engine)
        die(service, engine, old)
        service.handle(Wanted(FIRST))
        assert engine.dropped == []

    with_service(test)


def test_what_is_held_for_one_client_does_not_reach_the_next():
    """Nor are its senders left without an answer once the address is nobody's."""

    def test(service, engine):
        for gone_for_good in (False, True):
            old = greeted(service, engine)
            inner = engine.tunnels[old.tid].inner
            die(service, engine, old)
            service.handle(Wanted(inner))
            engine.dropped.clear()
            if gone_for_good:
                engine.now += RESUMABLE_SECONDS
                service.expire(engine.now)
            else:
                tids = [connect(service)[1].tid for _ in range(5)]
                assert engine.tunnels[tids[-1]].inner == inner
            assert engine.dropped == [(inner, True)]
            engine.dropped.clear()
            engine.now += HELD_SECONDS
            service.expire(engine.now)
            assert (engine.held, engine.dropped) == ([], [])

    with_service(test)


def test_an_address_that_nothing_is_sent_to_is_not_held_for():
    """The engine holds for some addresses only, and the clients that are away may be many."""

    def test(service, engine):
        die(service, engine, greeted(service, engine))
        for _ in range(3):
            service.handle(Wanted(FIRST))
            engine.now += HELD_SECONDS
            service.expire(engine.now)
            assert engine.held.pop() == (FIRST, True)
            assert engine.dropped == []
        engine.now += HELD_SECONDS
        service.expire(engine.now)
        assert engine.dropped == [(FIRST, False)]

    with_service(test)


@pytest.mark.parametrize("pqtun", [False, True])
def test_a_client_that_is_back_gets_what_was_held(pqtun):
    """The engine has sent it, and there is nothing to be held or dropped any more."""

    def test(service, engine):
        old = greeted(service, engine) if pqtun else fill(service, engine)[0]
        if pqtun:
            die(service, engine, old)
        else:
            service._evict(engine.now)
        service.handle(Wanted(FIRST))
        if pqtun:
            greeted(service, engine, source=SOURCE)
            _, new = connect(service)
            said(service, new.tid, HELLO, resume(old, new))
        else:
            service.handle(Datagram(engine.cookies[old.tid], SOURCE))
        assert engine.tunnels[new.tid if pqtun else old.tid].inner == FIRST
        for _ in range(3):
            engine.now += HELD_SECONDS
            service.expire(engine.now)
        assert (engine.held, engine.dropped) == ([], [])

    with_service(test)


def test_an_address_that_waits_is_given_last():
    def test(service, engine):
        old = greeted(service, engine)
        die(service, engine, old)
        tids = [connect(service)[1].tid for _ in range(4)]
        assert FIRST not in [engine.tunnels[tid].inner for tid in tids]
        assert service.status()["reserved_addresses"] == 1
        die(service, engine, old)  # nothing
        _, needy = connect(service)
        assert engine.tunnels[needy.tid].inner == FIRST
        assert counters(service)["resume_address_taken"] == 1
        said(service, needy.tid, HELLO, resume(old, needy))
        assert counters(service)["resume_unknown"] == 1

    with_service(test)


def test_secrets_are_overwritten():
    def test(service, engine):
        sessions = [greeted(service, engine) for _ in range(2)]
        kept = [service._resumption._live[session.tid] for session in sessions]
        assert [bytes(secret) for secret in kept] != [bytes(32)] * 2
        said(service, sessions[1].tid, control.Bye(0))
        assert kept[0] != bytes(32)
        assert kept[1] == bytes(32)
        service.close()
        assert kept[0] == bytes(32)

    with_service(test)


# -- put aside -------------------------------------------------------------------------------------


def fill(service, engine, number=5):
    """PQConnect clients: heard, in the order of last use, and never a Hello."""
    sessions = [connect(service)[1] for _ in range(number)]
    for place, session in enumerate(sessions):
        figures = {"last_received": engine.now, "last_used": engine.now + place}
        engine.tunnels[session.tid] = replace(engine.tunnels[session.tid], **figures)
        service.handle(Alive(session.tid))
    engine.sent.clear()
    return sessions


def test_a_pqconnect_client_gets_a_cookie_and_comes_back():
    def test(service, engine):
        first, *others = fill(service, engine)
        _, new = connect(service)
        assert list(engine.cookies) == [first.tid]
        assert engine.tunnels[new.tid].inner == FIRST  # no other was free
        die(service, engine, others[0])
        cookie = engine.cookies.pop(first.tid)
        service.handle(Datagram(cookie, ELSEWHERE))
        back = engine.tunnels[first.tid]
        assert (str(back.inner), back.endpoint, back.confirmed) == ("10.42.0.3", ELSEWHERE, False)
        assert engine.epochs[first.tid] == (COOKIE_EPOCH + 1, SEND_ROOT, RECV_ROOT)
        assert counters(service)["cookie_accepted"] == 1

    with_service(test)


def test_the_same_private_address_if_it_is_still_free():
    def test(service, engine):
        sessions = fill(service, engine, 40)
        tid = sessions[0].tid
        service._evict(engine.now)  # three of forty
        assert list(engine.cookies) == [session.tid for session in sessions[:3]]
        service.handle(Wanted(FIRST))
        assert engine.dropped == []
        # PQConnect puts its next tunnel packet behind the cookie.
        service.handle(Datagram(engine.cookies[tid] + b"\2\0" + bytes(100), SOURCE))
        assert engine.tunnels[tid].inner == FIRST

    with_service(test, "10.42.0.1/26")


def test_a_replayed_cookie_restores_nothing():
    def test(service, engine):
        tid = fill(service, engine)[0].tid
        connect(service)
        cookie = engine.cookies[tid]
        forged = cookie[:-1] + bytes([cookie[-1] ^ 1])
        for wrong in (forged, cookie[:143], b"pqccookE" + bytes(136), b"pqccookE"):
            service.handle(Datagram(wrong, SOURCE))
            assert tid not in engine.tunnels
        service.handle(Datagram(cookie, SOURCE))
        assert tid in engine.tunnels
        die(service, engine, connect(service)[1])
        engine.remove_tunnel(tid)
        service.handle(Dead(tid))
        service.handle(Datagram(cookie, SOURCE))
        assert tid not in engine.tunnels
        assert counters(service)["cookie_accepted"] == 1

    with_service(test)


def test_a_cookie_ends_with_its_key():
    def test(service, engine):
        tid = fill(service, engine)[0].tid
        service._evict(engine.now)
        engine.now += COOKIE_LIFETIME
        service.expire(engine.now)
        service.handle(Wanted(FIRST))
        assert engine.dropped == [(FIRST, True)]
        service.handle(Datagram(engine.cookies[tid], SOURCE))
        assert tid not in engine.tunnels
        assert counters(service)["cookie_unknown"] == 1

    with_service(test)


def test_a_pqtun_client_is_told_to_come_back():
    def test(service, engine):
        old = greeted(service, engine)
        others = [greeted(service, engine) for _ in range(4)]
        for session in others:
            engine.tunnels[session.tid] = replace(engine.tunnels[session.tid], last_used=engine.now + 1)
        engine.sent.clear()
        _, new = connect(service)
        assert answers(engine, old.tid) == [control.Bye(control.BYE_MAKING_ROOM)]
        assert set(engine.tunnels) == {*(session.tid for session in others), new.tid}
        assert not engine.cookies

    with_service(test)


def test_an_evicted_pqtun_client_finds_its_address_again():
    def test(service, engine):
        sessions = [greeted(service, engine) for _ in range(40)]
        service._evict(engine.now)
        _, back = connect(service)
        said(service, back.tid, HELLO, resume(sessions[0], back))
        assert engine.tunnels[back.tid].inner == FIRST

    with_service(test, "10.42.0.1/26")


# -- whether a peer is where it says ---------------------------------------------------------------


def test_a_peer_that_never_said_hello_is_asked_by_an_echo():
    def test(service, engine):
        _, session = connect(service)
        assert engine.sent == []  # nothing has come from there yet
        service.handle(Alive(session.tid))
        ((tid, question),) = engine.sent
        assert tid == session.tid
        service.handle(Control(tid, icmp.echo_request(CLIENT, bytes(8))))
        service.handle(Control(tid, echo_reply(icmp.echo_request(CLIENT, bytes(8)))))
        assert not engine.tunnels[tid].confirmed
        service.handle(Control(tid, echo_reply(question)))
        assert engine.tunnels[tid].confirmed
        engine.sent.clear()
        engine.now += 60
        service.expire(engine.now)
        assert engine.sent == []

    with_service(test)


def test_a_peer_that_said_hello_is_asked_by_a_ping():
    def test(service, engine):
        tid = greeted(service, engine).tid
        hello, ping = answers(engine, tid)
        assert hello == HELLO
        said(service, tid, control.Pong(ping.data))
        assert engine.tunnels[tid].confirmed
        assert counters(service)["confirmed"] == 1

    with_service(test)


def test_after_a_move_only_the_new_place_counts():
    def test(service, engine):
        tid = greeted(service, engine).tid
        _, before = answers(engine, tid)
        engine.tunnels[tid] = replace(engine.tunnels[tid], endpoint=ELSEWHERE)
        service.handle(Roamed(tid, ELSEWHERE))
        (ping,) = answers(engine, tid)
        said(service, tid, before if isinstance(before, control.Pong) else control.Pong(before.data))
        assert not engine.tunnels[tid].confirmed
        said(service, tid, control.Pong(ping.data))
        assert engine.tunnels[tid].confirmed

    with_service(test)


def test_an_unanswered_question_is_repeated_some_times():
    def test(service, engine):
        tid = greeted(service, engine).tid
        _, ping = answers(engine, tid)
        asked = 0
        for _ in range(600):
            engine.now += 1
            service.expire(engine.now)
            repeated = answers(engine, tid)
            assert repeated in ([], [ping])
            asked += len(repeated)
        assert asked == len(ASK_AGAIN)
        said(service, tid, control.Ping(bytes(8)))  # it is there after all
        assert answers(engine, tid) == [control.Pong(bytes(8))]
        service.expire(engine.now)
        assert answers(engine, tid) == [ping]

    with_service(test)


def test_a_tunnel_that_is_gone_is_not_asked():
    def test(service, engine):
        sessions = [greeted(service, engine) for _ in range(4)]
        die(service, engine, sessions[0])
        said(service, sessions[1].tid, control.Bye(0))
        said(service, sessions[3].tid, resume(sessions[2], sessions[3]))
        service.handle(Roamed(sessions[0].tid, ELSEWHERE))
        engine.sent.clear()
        engine.now += server.EXPIRE_SECONDS
        service.expire(engine.now)
        assert {tid for tid, _ in engine.sent} == {sessions[3].tid}
        assert len(service._confirmations) == 1

    with_service(test)
