"""What IPv4 and IPv6 have in common above them: the layout of transport headers, and one's-complement sums. Pure.

One's-complement sums (RFC 1071) are taken modulo 65535: since 2**16 = 1 (mod 65535), a whole buffer read as one
big-endian number is congruent to the sum of its 16-bit words. A remainder 0 stands for the sum 0xffff, because no
header here is all zeros; so a checksum is ``-sum % 65535``, which is what complementing the folded sum gives.
"""

from struct import Struct
from typing import Final

TCP: Final = 6
UDP: Final = 17
DCCP: Final = 33
UDP_LITE: Final = 136

# Where the checksum over the pseudo-header stands (RFC 9293, 768, 4340, 3828), and how long the header is.
CHECKSUM_AT: Final = {TCP: 16, UDP: 6, DCCP: 6, UDP_LITE: 6}
HEADER_BYTES: Final = {TCP: 20, UDP: 8, DCCP: 12, UDP_LITE: 8}

WORD: Final = Struct("!H")


def ones_sum(data: bytes | bytearray) -> int:
    """Return the sum of the 16-bit big-endian words of ``data`` modulo 65535; an odd last byte is padded with 0."""
    total = int.from_bytes(data, "big") % 65535
    return total << 8 if len(data) & 1 else total


def adjust(packet: bytearray, at: int, change: int) -> None:
    """Change the checksum at ``at``, given by how much (RFC 1624): minus what the sum of what it covers changed by."""
    (old,) = WORD.unpack_from(packet, at)
    WORD.pack_into(packet, at, (old + change) % 65535)
