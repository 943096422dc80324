"""Values of our own choosing within the protocol, each with its reason."""

from typing import Final

# A lost burst of this many packets in one epoch does not stall a tunnel (PQConnect stalls after about 90). Deriving
# that far costs a forger's victim 228 ChaCha20 calls on a copy, about half a millisecond in Python.
RECEIVE_WINDOW: Final = 4096

# Skipped packet keys kept for a tunnel, in blocks of 18 keys: as many as the window, so that nothing that the window
# admitted is lost while the peer keeps to one epoch. Anybody can be a peer of a server: this is what each tunnel can
# cost it, 229 x 576 bytes = 130 KB.
SKIPPED_BLOCKS: Final = RECEIVE_WINDOW // 18 + 2

# A receiver comes up to this many epochs ahead of its newest one: what two minutes of silence can skip.
EPOCHS_AHEAD: Final = 4

# Any packet may have so many blocks derived, which a loss of 288 packets in a row takes. One that is further ahead may
# while its tunnel has derived fewer than FORGED_BLOCKS for forged packets of the last second: they cost 1 % of a core
# in the native engine; without a bound 9000 forged packets a second, 6 Mbit/s, took all of it.
BLOCKS_AHEAD: Final = 16
FORGED_BLOCKS: Final = 20_000.0
