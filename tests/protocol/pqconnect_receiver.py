"""Which packets PQConnect 1.2 can read: what its tunnel.py (EpochChain, ReceiveChain) does, without the keys."""

from __future__ import annotations

from pqtun.protocol.constants import EPOCH_LIFETIME, KEYS_PER_BLOCK, MAX_EPOCHS

MAX_CHAIN_LEN = 5 * KEYS_PER_BLOCK


class _Epoch:
    def __init__(self, came_up: float) -> None:
        self.came_up = came_up
        self.derived = KEYS_PER_BLOCK
        self.keys = set(range(KEYS_PER_BLOCK))

    def take(self, counter: int) -> bool:
        while not self.keys or (counter > max(self.keys) and len(self.keys) < MAX_CHAIN_LEN):
            self.keys |= set(range(self.derived, self.derived + KEYS_PER_BLOCK))
            self.derived += KEYS_PER_BLOCK
        if counter not in self.keys:
            return False
        self.keys.remove(counter)
        return True


class PqconnectReceiver:
    """Its receiving side of one tunnel; ``newest`` is the epoch that it then sends in."""

    def __init__(self, now: float) -> None:
        self.newest = 0
        self._epochs = {0: _Epoch(now)}

    def read(self, epoch: int, counter: int, now: float) -> bool:
        """Whether it can read that packet, which is then used up."""
        self._epochs = {n: e for n, e in self._epochs.items() if e.came_up + EPOCH_LIFETIME > now}
        while self._epochs and epoch > self.newest and len(self._epochs) < MAX_EPOCHS:
            self.newest += 1
            self._epochs[self.newest] = _Epoch(now)
        return epoch in self._epochs and self._epochs[epoch].take(counter)

    def has_room(self, now: float) -> bool:
        """Whether it can read the epoch after the newest."""
        return sum(epoch.came_up + EPOCH_LIFETIME > now for epoch in self._epochs.values()) < MAX_EPOCHS
