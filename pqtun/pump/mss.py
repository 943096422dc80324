"""The maximum segment size that TCP connections begin with (RFC 9293 section 3.7.1). Pure."""

from typing import Final

from pqtun.protocol.errors import MessageError
from pqtun.pump.inner import FRAGMENT_OFFSET, IPV4_HEADER_BYTES, MORE_FRAGMENTS, is_ipv6, largest
from pqtun.pump.inner6 import DESTINATION_OPTIONS, IPV6_HEADER_BYTES, upper_layer
from pqtun.pump.transport import CHECKSUM_AT, HEADER_BYTES, TCP, WORD, adjust

_SYN: Final = 0x02
_FLAGS_AT: Final = 13
_END: Final = 0
_NOTHING: Final = 1
_MSS: Final = 2
_MSS_BYTES: Final = 4


def clamped(packet: bytes | bytearray, mtu: int) -> bytes | bytearray:
    """Return a packet such that no segment of its connection will exceed ``mtu`` bytes with its headers.

    That is the packet itself, but for a SYN or SYN-ACK whose maximum segment size is larger; there it is lowered and
    the checksum adjusted. It is never raised, and options that make no sense stay. IPv6 takes 1280 bytes at least.
    Padding is not looked at.
    """
    at = _syn(packet)
    if at is None:
        return packet
    headers = HEADER_BYTES[TCP] + (IPV6_HEADER_BYTES if is_ipv6(packet) else IPV4_HEADER_BYTES)
    most = largest(packet, mtu) - headers
    option, end = at + HEADER_BYTES[TCP], at + (packet[at + 12] >> 4) * 4
    changed = None
    while option + 1 < end and packet[option] != _END:
        if packet[option] == _NOTHING:
            option += 1
            continue
        length = packet[option + 1]
        if length < 2 or option + length > end:
            break
        if packet[option] == _MSS and length == _MSS_BYTES:
            (said,) = WORD.unpack_from(packet, option + 2)
            if said > most:
                changed = changed or bytearray(packet)
                WORD.pack_into(changed, option + 2, most)
                # An option may begin at an odd place: its bytes then count in the other halves of two words.
                adjust(changed, at + CHECKSUM_AT[TCP], (said - most) << (8 if (option - at) & 1 else 0))
        option += length
    return changed or packet


def _syn(packet: bytes | bytearray) -> int | None:
    """Where the TCP header of a SYN begins; None if it is none, is in fragments, or ends too early."""
    if is_ipv6(packet):
        at = _transport6(packet)
    elif len(packet) >= IPV4_HEADER_BYTES and packet[0] >> 4 == 4 and packet[9] == TCP:
        whole = not WORD.unpack_from(packet, 6)[0] & (MORE_FRAGMENTS | FRAGMENT_OFFSET)
        at = (packet[0] & 15) * 4 if whole and packet[0] & 15 >= IPV4_HEADER_BYTES // 4 else None
    else:
        at = None
    if at is None or len(packet) < at + HEADER_BYTES[TCP] or not packet[at + _FLAGS_AT] & _SYN:
        return None
    total = IPV6_HEADER_BYTES + WORD.unpack_from(packet, 4)[0] if is_ipv6(packet) else WORD.unpack_from(packet, 2)[0]
    return at if at + (packet[at + 12] >> 4) * 4 <= total <= len(packet) else None


def _transport6(packet: bytes | bytearray) -> int | None:
    if len(packet) < IPV6_HEADER_BYTES or packet[6] not in (TCP, DESTINATION_OPTIONS):
        return None
    try:
        protocol, at, fragment = upper_layer(packet)
    except MessageError:
        return None
    return at if protocol == TCP and fragment is None else None
