"""All keys of one direction of a tunnel, and which of them an end has at a time (doc/protocol.md section 6)."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pqtun.protocol.primitives import kdf

BLOCK = 18
EPOCH_LIFETIME = 120.0


class Name(NamedTuple):
    """What a key is: of which direction, "root", "chain" or "packet", and its place."""

    direction: str
    kind: str
    epoch: int
    number: int = 0


class Chain:
    """Every key that follows from a root."""

    def __init__(self, direction: str, root: bytes) -> None:
        self.direction = direction
        self.keys: dict[Name, bytes] = {self.root(0): root}

    def root(self, epoch: int) -> Name:
        return Name(self.direction, "root", epoch)

    def chain(self, epoch: int, block: int) -> Name:
        return Name(self.direction, "chain", epoch, block)

    def packet(self, epoch: int, counter: int) -> Name:
        return Name(self.direction, "packet", epoch, counter)

    def derive(self, blocks_of: Iterable[int]) -> None:
        """Know the keys of epochs with so many blocks each."""
        for epoch, blocks in enumerate(blocks_of):
            root, chain = kdf(2, self.keys[self.root(epoch)])
            self.keys[self.root(epoch + 1)] = bytes(root)
            for block in range(blocks):
                self.keys[self.chain(epoch, block)] = bytes(chain)
                chain, *packets = kdf(1 + BLOCK, chain)
                for counter, key in enumerate(packets, block * BLOCK):
                    self.keys[self.packet(epoch, counter)] = bytes(key)
            self.keys[self.chain(epoch, blocks)] = bytes(chain)

    def cipher(self, epoch: int, counter: int) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(self.keys[self.packet(epoch, counter)])


class Sending:
    """What the sender of a chain has."""

    def __init__(self, chain: Chain) -> None:
        self.keys = chain
        self.epoch = 0
        self.counter = 0

    def step(self, epoch: int) -> None:
        if epoch > self.epoch:
            self.epoch, self.counter = epoch, 0

    def live(self) -> set[Name]:
        blocks = -(-self.counter // BLOCK)
        unused = range(self.counter, blocks * BLOCK)
        return {
            self.keys.root(self.epoch + 1),
            self.keys.chain(self.epoch, blocks),
            *(self.keys.packet(self.epoch, counter) for counter in unused),
        }


class Receiving:
    """What the receiver of a chain has. Nothing here reaches the bounds of what is kept."""

    def __init__(self, chain: Chain, now: float) -> None:
        self.keys = chain
        self.newest = 0
        self._came_up = {0: now}
        self._derived: Counter[int] = Counter()
        self._used: set[Name] = set()

    def step(self, epoch: int, now: float) -> None:
        for number in range(self.newest + 1, epoch + 1):
            self._came_up[number] = now
        self.newest = max(self.newest, epoch)

    def receive(self, epoch: int, counter: int, now: float) -> None:
        self.step(epoch, now)
        self._derived[epoch] = max(self._derived[epoch], 1 + counter // BLOCK)
        self._used.add(self.keys.packet(epoch, counter))

    def live(self, now: float) -> set[Name]:
        epochs = [epoch for epoch, came_up in self._came_up.items() if now < came_up + EPOCH_LIFETIME]
        if not epochs:
            return set()
        live = {self.keys.root(self.newest + 1)}
        for epoch in epochs:
            derived = self._derived[epoch]
            live.add(self.keys.chain(epoch, derived))
            live |= {self.keys.packet(epoch, counter) for counter in range(derived * BLOCK)}
        return live - self._used
