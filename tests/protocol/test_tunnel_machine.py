"""Two ends of a tunnel and a network that loses, reorders, repeats and forges, against a model of what has to come."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pqtun.protocol import cookie
from pqtun.protocol.constants import EPOCH_LIFETIME, EPOCH_SECONDS, MAX_EPOCHS
from pqtun.protocol.errors import MessageError
from pqtun.protocol.limits import EPOCHS_AHEAD, RECEIVE_WINDOW, SKIPPED_BLOCKS
from pqtun.protocol.tunnel import Tunnel

TID, UP, DOWN = b"t" * 32, b"u" * 32, b"d" * 32
KEY, NONCE, THEN = bytes(32), bytes(12), 1000


@dataclass
class Flying:
    """A datagram on its way."""

    to: int
    datagram: bytes
    plaintext: bytes
    life: int  # which life of the server it was sent to, or by

    @property
    def index(self) -> tuple[int, int]:
        return int.from_bytes(self.datagram[34:36], "big"), int.from_bytes(self.datagram[36:40], "big")


@dataclass
class Heard:
    """What an end that receives has to know: epochs and when they came up, and what it has opened."""

    newest: int
    came_up: dict[int, float]
    highest: dict[int, int] = field(default_factory=dict)
    opened: set[tuple[int, int]] = field(default_factory=set)

    def expire(self, now: float) -> None:
        self.came_up = {n: at for n, at in self.came_up.items() if now < at + EPOCH_LIFETIME}

    def step(self, epoch: int, now: float) -> None:
        for number in range(self.newest + 1, epoch + 1):
            self.came_up[number] = now
        self.newest = max(self.newest, epoch)
        for number in sorted(self.came_up)[:-MAX_EPOCHS]:
            del self.came_up[number]

    def verdict(self, epoch: int, counter: int) -> str | None:
        """Why a packet that nobody changed is refused; None if it has to be opened."""
        if not self.came_up:
            return "dead"
        if (epoch, counter) in self.opened and epoch in self.came_up:
            return "replay"
        if epoch not in self.came_up:
            if epoch <= self.newest:
                return "old_epoch"
            return "epoch_ahead" if epoch > self.newest + EPOCHS_AHEAD else None
        return "counter_ahead" if counter >= self.highest.get(epoch, -1) + 1 + RECEIVE_WINDOW else None

    def open(self, epoch: int, counter: int, now: float) -> None:
        self.step(epoch, now)
        self.opened.add((epoch, counter))
        self.highest[epoch] = max(self.highest.get(epoch, -1), counter)


class TwoEnds(RuleBasedStateMachine):
    """End 0 is the client, end 1 the server, which may put its end aside and take it up again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = [0.0, 0.0]  # each end has a clock of its own
        self.ends = [Tunnel(TID, UP, DOWN, 0.0), Tunnel(TID, DOWN, UP, 0.0)]
        self.heard = [Heard(0, {0: 0.0}), Heard(0, {0: 0.0})]
        self.network: list[Flying] = []
        self.used: list[set[tuple[int, int]]] = [set(), set()]
        self.life = 0
        self.number = 0

    def alive(self) -> bool:
        return all(heard.came_up for heard in self.heard)

    def put(self, side: int, plaintext: bytes) -> Flying:
        datagram = self.ends[side].seal(plaintext, self.now[side])
        flying = Flying(1 - side, datagram, plaintext, self.life)
        assert flying.index not in self.used[side], "a key was used twice"
        self.used[side].add(flying.index)
        return flying

    def arrive(self, flying: Flying) -> None:
        heard, index, now = self.heard[flying.to], flying.index, self.now[flying.to]
        expected = heard.verdict(*index)
        if expected is None:
            assert self.ends[flying.to].open(flying.datagram, now) == flying.plaintext
            heard.open(*index, now)
        else:
            with pytest.raises(MessageError) as refused:
                self.ends[flying.to].open(flying.datagram, now)
            assert refused.value.reason == expected

    @precondition(alive)
    @rule(side=st.integers(0, 1), size=st.integers(0, 60))
    def send(self, side: int, size: int) -> None:
        self.number += 1
        self.network.append(self.put(side, self.number.to_bytes(4, "big") + bytes(size)))

    @precondition(alive)
    @rule(side=st.integers(0, 1))
    def talk(self, side: int) -> None:
        self.number += 1
        self.arrive(self.put(side, self.number.to_bytes(4, "big")))

    @precondition(alive)
    @rule(leap=st.integers(1, 5), side=st.integers(0, 1))
    def talk_after_a_leap(self, leap: int, side: int) -> None:
        """The clock of the one that sends is ahead."""
        self.pass_time(side, leap * EPOCH_SECONDS - 1.0)
        if self.alive():
            self.talk(side)

    @precondition(alive)
    @rule(side=st.integers(0, 1), count=st.integers(2, 60))
    def burst(self, side: int, count: int) -> None:
        """Of which only the last is not lost."""
        for _ in range(count):
            flying = self.put(side, b"burst")
        self.network.append(flying)

    @precondition(lambda self: self.network)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        flying = self.network[data.draw(st.integers(0, len(self.network) - 1))]
        if not again:
            self.network.remove(flying)
        self.arrive(flying)

    @precondition(lambda self: self.network)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.network.pop(data.draw(st.integers(0, len(self.network) - 1)))

    @precondition(lambda self: self.network)
    @rule(data=st.data(), bit=st.integers(0, 7), cut=st.booleans())
    def forge(self, data: st.DataObject, bit: int, cut: bool) -> None:
        """Nothing that is changed is opened, and what was not changed still is."""
        flying = self.network[data.draw(st.integers(0, len(self.network) - 1))]
        forged = bytearray(flying.datagram)
        at = data.draw(st.integers(0, len(forged) - 1))
        forged[at] ^= 1 << bit
        end, heard = self.ends[flying.to], self.heard[flying.to]
        before = end.send_epoch, end.recv_epoch, end.next_deadline
        with pytest.raises(MessageError):
            end.open(bytes(forged[:at] if cut else forged), self.now[flying.to])
        assert (end.send_epoch, end.recv_epoch, end.next_deadline) == before
        assert end.recv_epoch == heard.newest

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, EPOCH_SECONDS, 31.0, 59.0, 119.0]))
    def pause(self, seconds: float) -> None:
        for side in (0, 1):
            self.pass_time(side, seconds)

    def pass_time(self, side: int, seconds: float) -> None:
        self.now[side] += seconds
        self.heard[side].expire(self.now[side])
        self.ends[side].expire(self.now[side])

    @precondition(alive)
    @rule(lost=st.booleans())
    def put_aside(self, lost: bool) -> None:
        """The server's end becomes a cookie, which the client returns; or nobody ever hears of it."""
        state = self.ends[1].state(self.now[1])
        assert state.epoch >= max(self.ends[1].recv_epoch, self.ends[1].send_epoch)
        notice = self.put(1, cookie.pack(state, KEY, NONCE, THEN))
        assert notice.index[0] == state.epoch
        if self.heard[0].verdict(*notice.index) is not None or lost:
            self.ends[1].erase()
            self.heard[1].came_up = {}
            return
        self.arrive(notice)
        self.ends[0].step(self.now[0])
        self.heard[0].step(self.heard[0].newest + 1, self.now[0])
        self.ends[1].erase()
        state = cookie.unpack(notice.plaintext, KEY, THEN)
        self.ends[1] = Tunnel(state.tid, state.send_root, state.recv_root, self.now[1], state.epoch + 1)
        self.heard[1] = Heard(state.epoch + 1, {state.epoch + 1: self.now[1]})

    @invariant()
    def ends_know_what_the_model_knows(self) -> None:
        for end, heard in zip(self.ends, self.heard, strict=True):
            assert end.dead == (not heard.came_up)
            if heard.came_up:
                assert end.recv_epoch == heard.newest
                assert end.send_epoch >= heard.newest
                assert end.next_deadline == min(heard.came_up.values()) + EPOCH_LIFETIME

    @invariant()
    def memory_is_bounded(self) -> None:
        for end in self.ends:
            epochs = end._receive._epochs
            assert len(epochs) <= MAX_EPOCHS
            assert sum(len(epoch.blocks) for epoch in epochs.values()) <= SKIPPED_BLOCKS


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
