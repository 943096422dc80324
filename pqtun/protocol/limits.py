"""Values of our own choosing within the protocol, each with its reason."""

from typing import Final

# A lost burst of this many packets in one epoch does not stall a tunnel until the next epoch (PQConnect stalls after
# about 90): 0.2 s of the most that one core seals. Deriving that far takes 1.5 ms in the native engine, 10 in Python.
RECEIVE_WINDOW: Final = 1 << 16

# Skipped packet keys kept for a tunnel, in blocks of 18 keys: those of the latest 4096 packets, far more than a network
# reorders. Anybody can be a peer of a server: this is what each tunnel can cost it, 229 x 576 bytes = 130 KB.
SKIPPED_BLOCKS: Final = 4096 // 18 + 2

# Those of all tunnels of an engine together: 75 MB. When there are more, a tunnel that derives new ones keeps only so
# many: one for each epoch, as if no packet were ever late. What hostile peers hoard so costs the others no memory.
ALL_BLOCKS: Final = 1 << 17
SKIPPED_WHEN_SHORT: Final = 5

# A receiver comes up to this many epochs ahead of its newest one: what two minutes of silence can skip.
EPOCHS_AHEAD: Final = 4

# Any packet may have so many blocks derived, which a loss of 288 packets in a row takes. For those that are further
# ahead a tunnel derives AHEAD_BUDGET blocks a second, several times what a million packets a second need of which every
# second one is lost. Those of forged packets count FORGED_PRICE times, so that they cost 1 % of a core in the native
# engine. Without a bound 9000 forged packets a second, 6 Mbit/s, took all of it.
BLOCKS_AHEAD: Final = 16
AHEAD_BUDGET: Final = 200_000.0
FORGED_PRICE: Final = 10.0

# Prefixes of outer addresses, for limits that are one source's: as many address bits as one customer usually has.
IPV4_PREFIX_BYTES: Final = 3
IPV6_PREFIX_BYTES: Final = 7
