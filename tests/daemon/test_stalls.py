"""PQConnect peers that have lost too many packets to read more, on a fake clock."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.daemon.liveness import PATIENT_LOST_SECONDS
from pqtun.daemon.stalls import PEER_WINDOW, RECOVERY_SECONDS, Stalls, Step
from pqtun.daemon.upkeep import Own, Upkeep
from pqtun.protocol import control
from pqtun.protocol.constants import EPOCH_SECONDS
from pqtun.protocol.handshake import Session
from pqtun.pump import icmp
from pqtun.pump.engine import Alive, Control, TunnelStats
from tests.daemon.serving import RecordingEngine, connect, echo_reply, said, with_service
from tests.protocol.pqconnect_receiver import PqconnectReceiver

TICK = 0.5


class World:
    """A sender, a path that loses packets, and a PQConnect receiver that answers what it can read of questions."""

    def __init__(self, *, loss: float, seed: int = 1, helped: bool = True) -> None:
        self.now = 0.0
        self.loss = loss
        self.rate = 200  # packets a second; none of them is answered
        self.stalls = Stalls()
        self.steps: list[tuple[float, Step]] = []
        self.read = 0
        self.unread_epochs = 0  # that began when the peer had no room for them
        self.gone = False  # the peer, for good
        self._helped = helped
        self._dice = Random(seed)
        self._peer = PqconnectReceiver(0.0)
        self._expires = float(EPOCH_SECONDS)
        self._counter = self._total = self._epoch = self._received = 0
        self._last: tuple[float | None, float | None] = (None, None)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for _ in range(round(self.rate * TICK)):
                self._send()
                self._last = self.now, self._last[1]
            step = self.stalls.tick(self._stats(), self.now)
            self.steps.append((self.now, step))
            if step is Step.NEXT_EPOCH and self._helped:
                self._begin(self.now)
            if step is not Step.NOTHING and self._send() and self._dice.random() >= self.loss:
                self._received, self._last = self._peer.newest, (self._last[0], self.now)
                self.stalls.answered(self.stalls.token)
            self.now += TICK

    def times(self, step: Step) -> list[float]:
        return [when for when, what in self.steps if what is step]

    def _send(self) -> bool:
        """Whether the peer reads it."""
        while self.now >= self._expires:
            self._begin(self._expires)
        counter, self._counter, self._total = self._counter, self._counter + 1, self._total + 1
        if self.gone or self._dice.random() < self.loss:
            return False
        read = self._peer.read(self._epoch, counter, self.now)
        self.read += read
        return read

    def _begin(self, when: float) -> None:
        self.unread_epochs += not self._peer.has_room(when)
        self._epoch, self._counter, self._expires = self._epoch + 1, 0, when + EPOCH_SECONDS

    def _stats(self) -> TunnelStats:
        used, received = self._last
        return TunnelStats(
            bytes(32),
            IPv4Address("10.43.0.2"),
            ("192.0.2.1", 42424),
            self._epoch,
            self._received,
            created=0.0,
            last_sent=used,
            last_received=received,
            last_used=used,
            confirmed=True,
            mtu=None,
            packets_sent=self._total,
            packets_received=0,
            bytes_sent=0,
            bytes_received=0,
            drops={},
        )


def test_a_peer_that_lost_too_many_packets_is_helped_within_seconds() -> None:
    world = World(loss=0.05)
    world.run(25)
    (helped,) = world.times(Step.NEXT_EPOCH)
    assert 90 / 0.05 / world.rate - 3 < helped < 90 / 0.05 / world.rate + 5
    alone = World(loss=0.05, helped=False)
    alone.run(25)
    assert world.read > 1.5 * alone.read


def test_without_loss_nothing_happens_but_questions() -> None:
    world = World(loss=0.0)
    world.run(100)
    assert not world.times(Step.NEXT_EPOCH)
    assert world.times(Step.ASK)


def test_of_few_packets_nothing_is_asked() -> None:
    world = World(loss=1.0)
    world.rate = 2
    world.run(EPOCH_SECONDS)
    assert {step for _, step in world.steps} == {Step.NOTHING}


def test_who_sends_nothing_is_asked_nothing() -> None:
    world = World(loss=0.0)
    world.run(5)
    world.rate = 0
    world.steps.clear()
    world.run(20)
    assert {step for _, step in world.steps[1:]} == {Step.NOTHING}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.lists(st.tuples(st.sampled_from([0, 0.01, 0.05, 0.2, 0.5]), st.integers(1, 40))))
def test_every_epoch_finds_room(seed: int, weather: list[tuple[float, int]]) -> None:
    """What is taken early is never missing later: nobody waits longer than without help."""
    world = World(loss=0.1, seed=seed)
    for loss, seconds in [*weather, (0.1, 150)]:
        world.loss = loss
        world.run(seconds)
    assert world.unread_epochs == 0


def test_more_is_read_than_without_help() -> None:
    def read(*, helped: bool) -> int:
        world = World(loss=0.05, helped=helped)
        world.run(600)
        return world.read

    assert read(helped=True) > 1.15 * read(helped=False)  # five epochs in two minutes, not four


def test_a_stall_excuses_silence_until_the_next_epoch_and_only_once() -> None:
    world = World(loss=0.0)
    world.run(5)
    world.gone = True
    assert not world.stalls.excuses(world.now)
    world.run(10)
    assert world.stalls.excuses(world.now)
    world.run(EPOCH_SECONDS + 5)
    assert not world.stalls.excuses(world.now)
    world.run(2 * EPOCH_SECONDS)
    assert not world.stalls.excuses(world.now)


def test_answers_to_other_questions() -> None:
    stalls = Stalls()
    assert not stalls.answered(bytes(8))
    assert stalls.answered(stalls.token)


# -- a client's server


@pytest.mark.parametrize(
    ("packets", "after"), [(1, PATIENT_LOST_SECONDS), (PEER_WINDOW, EPOCH_SECONDS + RECOVERY_SECONDS)]
)
def test_a_silent_server_is_given_up_later_if_it_may_be_stalled(packets: int, after: float) -> None:
    """``packets``: that a program sends between two ticks."""
    engine = RecordingEngine()
    session = Session(bytes(32), bytearray(32), bytearray(32), bytearray(32))
    engine.add_tunnel(session, IPv4Address("10.43.0.2"), ("192.0.2.1", 42424))
    own = Own(IPv4Address("10.43.0.1"), 1200, 0)
    upkeep = Upkeep(session.tid, IPv4Address("192.0.2.1"), engine, own, lambda: engine.now)
    begin, lost = engine.now, False
    while not lost:
        engine.now += TICK
        before = engine.tunnels[session.tid]
        engine.tunnels[session.tid] = replace(
            before, last_used=engine.now, last_sent=engine.now, packets_sent=before.packets_sent + packets
        )
        lost = upkeep.tick(engine.tunnels[session.tid], used=True)
    assert after <= engine.now - begin <= after + 2
    assert (engine.tunnels[session.tid].send_epoch > 0) == (packets > 1)


# -- a server's clients


def busy(service, engine, tid: bytes, seconds: int) -> list[int]:
    """The client is sent much for so long; in which second a new epoch began."""
    began = []
    for second in range(seconds):
        engine.now += 1
        before = engine.tunnels[tid]
        engine.tunnels[tid] = replace(
            before, last_used=engine.now, last_sent=engine.now, packets_sent=before.packets_sent + PEER_WINDOW
        )
        service.expire(engine.now)
        if engine.tunnels[tid].send_epoch > before.send_epoch:
            began.append(second)
    return began


@pytest.mark.parametrize("pqtun", [False, True])
def test_a_client_of_a_server_that_hears_nothing(pqtun: bool) -> None:
    def test(service, engine):
        _, session = connect(service)
        service.handle(Alive(session.tid))
        if pqtun:
            said(service, session.tid, control.Hello(1, control.FEATURE_RESUME, 1396))
        began = busy(service, engine, session.tid, 20)
        assert len(began) == (0 if pqtun else 1)

    with_service(test)


def test_a_client_that_answers_is_left_alone() -> None:
    def test(service, engine):
        _, session = connect(service)
        service.handle(Alive(session.tid))
        for _ in range(20):
            engine.sent.clear()
            assert busy(service, engine, session.tid, 1) == []
            for tid, packet in list(engine.sent):
                service.handle(Control(tid, echo_reply(packet)))
        assert icmp.echo_token(echo_reply(engine.sent[-1][1])) is not None

    with_service(test)
