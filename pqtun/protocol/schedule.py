"""The key schedule of one direction: a chain of epochs, each a chain of packet keys (doc/protocol.md section 6).

Secrets live in bytearrays that are overwritten when their time is over. The receiving side follows one rule: what a
packet asks for is derived on a copy, and the copy is kept only once the packet has authenticated.
"""

from collections.abc import Iterator
from itertools import islice
from math import inf
from typing import Final

from pqtun.protocol.constants import (
    EPOCH_LIFETIME,
    EPOCH_SECONDS,
    KEY_BYTES,
    KEYS_PER_BLOCK,
    LAST_COUNTER,
    LAST_EPOCH,
    MAX_EPOCHS,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.limits import (
    AHEAD_BUDGET,
    ALL_BLOCKS,
    BLOCKS_AHEAD,
    EPOCHS_AHEAD,
    FORGED_PRICE,
    RECEIVE_WINDOW,
    SKIPPED_BLOCKS,
    SKIPPED_WHEN_SHORT,
)
from pqtun.protocol.primitives import Buffer, erase, expand

_BLOCK_BYTES: Final = KEYS_PER_BLOCK * KEY_BYTES
_STREAM_BYTES: Final = KEY_BYTES + _BLOCK_BYTES
_ZERO_KEY: Final = bytes(KEY_BYTES)


def _split_root(root: bytearray) -> tuple[bytearray, bytearray]:
    """next_root, chain_key = KDF(2, root). Erasing ``root`` is the caller's."""
    both = bytearray(2 * KEY_BYTES)
    expand(root, both)
    halves = both[:KEY_BYTES], both[KEY_BYTES:]
    erase(both)
    return halves


def _first_split(root: Buffer) -> tuple[bytearray, bytearray]:
    copy = bytearray(root)
    keys = _split_root(copy)
    erase(copy)
    return keys


def _next_block(chain_key: bytearray) -> bytearray:
    """Move ``chain_key`` on in place and return the 18 packet keys before it, 576 bytes."""
    stream = bytearray(_STREAM_BYTES)
    expand(chain_key, stream)
    memoryview(chain_key)[:] = memoryview(stream)[:KEY_BYTES]  # a slice of a bytearray would be one more copy
    block = stream[KEY_BYTES:]
    erase(stream)
    return block


class SendSchedule:
    """Hands out each packet key once. Epochs follow the clock: 30 s each, starting when the one before ended.

    An epoch whose counter has ended is over sooner; the peer follows.
    """

    def __init__(self, root: Buffer, now: float, epoch: int = 0) -> None:
        self.epoch = epoch
        self.counter = 0
        self.expires = now + EPOCH_SECONDS
        self._next_root, self._chain_key = _first_split(root)
        self._block = bytearray()
        self._offset = 0

    @property
    def next_root(self) -> bytearray:
        """The root of the epoch after this one: the schedule's own, which it erases."""
        return self._next_root

    def due(self, now: float) -> bool:
        """Whether ``advance`` has something to do."""
        return now >= self.expires or self.counter > LAST_COUNTER

    def advance(self, now: float) -> None:
        """Move to the epoch of ``now``, after 2^32 packets to the next. MessageError("epoch_end") after epoch 65535."""
        while now >= self.expires:
            self._step(self.expires)
        if self.counter > LAST_COUNTER:
            self._step(now)

    def begin_next(self, now: float) -> None:
        """Begin the next epoch, unless its time has come anyway or this is the last one."""
        if not self.due(now) and self.epoch < LAST_EPOCH:
            self._step(now)

    def step_up_to(self, epoch: int, now: float) -> None:
        """Follow the peer, whose clock may be ahead of ours."""
        while self.epoch < epoch:
            self._step(min(now, self.expires))

    def next_key(self) -> tuple[int, memoryview]:
        """Return the counter and a view of its packet key; the caller overwrites the view after use.

        Call ``advance`` first where it is ``due``.
        """
        if self._offset == len(self._block):
            self._block = _next_block(self._chain_key)
            self._offset = 0
        counter = self.counter
        offset = self._offset
        self.counter = counter + 1
        self._offset = offset + KEY_BYTES
        return counter, memoryview(self._block)[offset : offset + KEY_BYTES]

    def erase(self) -> None:
        """Overwrite every secret."""
        erase(self._next_root)
        erase(self._chain_key)
        erase(self._block)

    def _step(self, start: float) -> None:
        if self.epoch >= LAST_EPOCH:
            raise MessageError("epoch_end")
        root = self._next_root
        erase(self._chain_key)
        erase(self._block)
        self._next_root, self._chain_key = _split_root(root)
        erase(root)
        self._block, self._offset = bytearray(), 0
        self.epoch += 1
        self.counter = 0
        self.expires = start + EPOCH_SECONDS


class KeyBlocks:
    """Counts the blocks of packet keys that all tunnels of an engine keep."""

    __slots__ = ("in_use",)

    def __init__(self) -> None:
        self.in_use = 0


class _ReceiveEpoch:
    """One epoch of the receiving side: its chain key and the blocks that still hold unused packet keys."""

    def __init__(self, number: int, chain_key: bytearray, came_up: float) -> None:
        self.number = number
        self.came_up = came_up
        self.chain_key = chain_key
        self.expected = 0  # one past the highest counter that authenticated
        self.derived = 0  # number of blocks derived so far
        self.blocks: dict[int, bytearray] = {}  # a used key is all zeros

    def erase(self) -> None:
        erase(self.chain_key)
        for block in self.blocks.values():
            erase(block)
        self.blocks.clear()

    def keep(self, ahead: "_Ahead") -> None:
        """Make what was derived on a copy this epoch's own state."""
        self.chain_key[:] = ahead.chain_key
        erase(ahead.chain_key)
        self.blocks.update(ahead.blocks)
        self.derived = ahead.derived

    def forget(self, blocks: int) -> None:
        """Erase so many of the blocks, the oldest first."""
        for number in list(islice(self.blocks, blocks)):
            erase(self.blocks.pop(number))

    def use(self, counter: int, key: memoryview) -> bool:
        """Erase the key of a packet that authenticated, and its block with the last of its keys; say if it was that."""
        key[:] = _ZERO_KEY
        if counter >= self.expected:
            self.expected = counter + 1
        number = counter // KEYS_PER_BLOCK
        if self.blocks[number].count(0) < _BLOCK_BYTES:
            return False
        del self.blocks[number]
        return True


class _Ahead:
    """Blocks of one epoch derived on a copy of its chain key, up to the one that a packet asked for.

    Only the latest are kept; so many that it makes no difference to what ``bound_skipped`` leaves.
    """

    def __init__(self, epoch: _ReceiveEpoch, last_block: int) -> None:
        self.chain_key = epoch.chain_key[:]
        self.derived = last_block + 1
        self.skipped = last_block - epoch.derived
        self.blocks: dict[int, bytearray] = {}
        for number in range(epoch.derived, last_block + 1):
            block = _next_block(self.chain_key)
            if number + SKIPPED_BLOCKS < last_block:
                erase(block)
            else:
                self.blocks[number] = block

    def erase(self) -> None:
        erase(self.chain_key)
        for block in self.blocks.values():
            erase(block)


class Candidate:
    """The key for one arriving packet, with whatever had to be derived for it.

    Exactly one of ``accept`` (the packet authenticated) and ``reject`` must be called.
    """

    __slots__ = ("_ahead", "_counter", "_epoch", "_new_epochs", "_next_root", "_schedule", "key")

    def __init__(
        self,
        schedule: "ReceiveSchedule",
        epoch: _ReceiveEpoch,
        counter: int,
        key: memoryview,
        ahead: _Ahead | None,
        new_epochs: list[_ReceiveEpoch],
        next_root: bytearray | None,
    ) -> None:
        self._schedule = schedule
        self._epoch = epoch
        self._counter = counter
        self.key = key
        self._ahead = ahead
        self._new_epochs = new_epochs
        self._next_root = next_root

    def accept(self) -> None:
        """Keep what was derived and erase the packet key."""
        if self._ahead is not None:
            self._epoch.keep(self._ahead)
        if self._next_root is not None:
            self._schedule.bring_up(self._new_epochs, self._next_root)
        block_used_up = self._epoch.use(self._counter, self.key)
        if self._ahead is not None:
            self._schedule.bound_skipped()
        elif block_used_up:
            self._schedule.count_blocks()

    def reject(self) -> None:
        """Erase what was derived; the schedule is as it was before."""
        if self._ahead is not None:
            self._schedule.forged(self._ahead.skipped)
            self._ahead.erase()
        for epoch in self._new_epochs:
            epoch.erase()
        if self._next_root is not None:
            erase(self._next_root)


class ReceiveSchedule:
    """Finds the key of an arriving packet. Keeps at most 5 epochs, each for 120 s after it came up."""

    def __init__(self, root: Buffer, now: float, epoch: int = 0, all_blocks: KeyBlocks | None = None) -> None:
        self._next_root, chain_key = _first_split(root)
        self._all_blocks = all_blocks or KeyBlocks()
        self._counted = 0  # blocks of ours that it knows of
        self._epochs = {epoch: _ReceiveEpoch(epoch, chain_key, now)}  # oldest first
        self.newest = epoch
        self.deadline = now + EPOCH_LIFETIME  # when the oldest epoch is to be erased; infinite when dead
        self._budget = AHEAD_BUDGET, now  # blocks that may be derived for packets far ahead, at that time

    @property
    def dead(self) -> bool:
        """Whether all epochs are gone, so that nothing can be received any more."""
        return not self._epochs

    def candidate(self, number: int, counter: int, now: float) -> Candidate:
        """Return the key for the packet ``counter`` of epoch ``number``, without changing state.

        Raises MessageError: ``dead``, ``old_epoch``, ``epoch_ahead``, ``counter_ahead``, ``replay`` (used already, or
        so late that its key was evicted), ``ahead_budget`` (too much was derived for packets that are far ahead).
        """
        epoch = self._epochs.get(number)
        block_number, index = divmod(counter, KEYS_PER_BLOCK)
        new_epochs: list[_ReceiveEpoch] = []
        next_root: bytearray | None = None
        if epoch is None:
            if not self._epochs:
                raise MessageError("dead")
            if number < self.newest:
                raise MessageError("old_epoch")
            if number > self.newest + EPOCHS_AHEAD:
                raise MessageError("epoch_ahead")
            if counter >= RECEIVE_WINDOW:
                raise MessageError("counter_ahead")
            self._spend(block_number, now)
            new_epochs, next_root = self._epochs_ahead(number, now)
            epoch = new_epochs[-1]
        elif counter >= epoch.expected + RECEIVE_WINDOW:
            raise MessageError("counter_ahead")
        else:
            self._spend(block_number - epoch.derived, now)
        ahead: _Ahead | None = None
        block = epoch.blocks.get(block_number)
        if block is None:
            if block_number < epoch.derived:
                raise MessageError("replay")
            ahead = _Ahead(epoch, block_number)
            block = ahead.blocks[block_number]
        key = memoryview(block)[index * KEY_BYTES : (index + 1) * KEY_BYTES]
        if key == _ZERO_KEY:
            raise MessageError("replay")
        return Candidate(self, epoch, counter, key, ahead, new_epochs, next_root)

    def bring_up(self, epochs: list[_ReceiveEpoch], next_root: bytearray) -> None:
        """Make epochs that were derived on a copy this schedule's own; the oldest go when there are more than 5."""
        erase(self._next_root)
        self._next_root = next_root
        for epoch in epochs:
            self._epochs[epoch.number] = epoch
            self.newest = epoch.number
        while len(self._epochs) > MAX_EPOCHS:
            self._drop(next(iter(self._epochs)))

    def forged(self, blocks: int) -> None:
        """Charge the rest of the price of blocks that were derived for a packet that did not authenticate."""
        if blocks > BLOCKS_AHEAD:
            left, since = self._budget
            self._budget = left - blocks * (FORGED_PRICE - 1), since

    def bound_skipped(self) -> None:
        """Erase skipped packet keys beyond the bounds, those of the oldest epochs first."""
        self.count_blocks()
        bound = SKIPPED_BLOCKS if self._all_blocks.in_use <= ALL_BLOCKS else SKIPPED_WHEN_SHORT
        excess = self._counted - bound
        if excess <= 0:
            return
        for epoch in self._epochs.values():
            blocks = min(excess, len(epoch.blocks))
            epoch.forget(blocks)
            excess -= blocks
        self.count_blocks()

    def count_blocks(self) -> None:
        """Tell the count of all tunnels how many blocks this one keeps now."""
        kept = sum(len(epoch.blocks) for epoch in self._epochs.values())
        self._all_blocks.in_use += kept - self._counted
        self._counted = kept

    def root_of(self, epoch: int) -> bytearray:
        """Return a copy of the root of an epoch after the newest; to be erased by the caller."""
        root = self._next_root[:]
        for _ in range(self.newest + 1, epoch):
            next_root, chain_key = _split_root(root)
            erase(root)
            erase(chain_key)
            root = next_root
        return root

    def step(self, now: float) -> None:
        """Bring up one more epoch without a packet, as a cookie asks for (section 7)."""
        self.bring_up(*self._epochs_ahead(self.newest + 1, now))

    def expire(self, now: float) -> None:
        """Erase epochs that came up 120 s ago or earlier."""
        for number in [n for n, epoch in self._epochs.items() if epoch.came_up + EPOCH_LIFETIME <= now]:
            self._drop(number)
        if not self._epochs:
            erase(self._next_root)

    def erase(self) -> None:
        """Overwrite every secret; the schedule is dead afterwards."""
        for number in list(self._epochs):
            self._drop(number)
        erase(self._next_root)

    def _spend(self, blocks: int, now: float) -> None:
        """Take what is about to be derived from the budget, unless it is little."""
        if blocks > BLOCKS_AHEAD:
            left, since = self._budget
            left = min(AHEAD_BUDGET, left + max(now - since, 0.0) * AHEAD_BUDGET)
            enough = blocks <= left
            self._budget = left - blocks if enough else left, max(since, now)
            if not enough:
                raise MessageError("ahead_budget")

    def _drop(self, number: int) -> None:
        self._epochs.pop(number).erase()
        self.count_blocks()
        self.deadline = min((e.came_up for e in self._epochs.values()), default=inf) + EPOCH_LIFETIME

    def _epochs_ahead(self, number: int, now: float) -> tuple[list[_ReceiveEpoch], bytearray]:
        if number > LAST_EPOCH:
            raise MessageError("epoch_end")
        epochs = list(self._derive_epochs(number, now))
        return [epoch for epoch, _ in epochs], epochs[-1][1]

    def _derive_epochs(self, number: int, now: float) -> Iterator[tuple[_ReceiveEpoch, bytearray]]:
        root = self._next_root
        for n in range(self.newest + 1, number + 1):
            next_root, chain_key = _split_root(root)
            if root is not self._next_root:
                erase(root)
            root = next_root
            yield _ReceiveEpoch(n, chain_key, now), next_root
