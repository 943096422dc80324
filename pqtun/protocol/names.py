"""pq1 names: how a server's key hash and ports stand in DNS (doc/protocol.md section 2)."""

import re
from dataclasses import dataclass

from pqtun.protocol import base32
from pqtun.protocol.constants import HASH_CHARS, KEY_BYTES, LABEL_PREFIX, PORT_CHARS


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a pq1 label says: the 32-byte key hash and, if present, the two UDP ports."""

    keyhash: bytes
    port: int | None = None
    key_port: int | None = None


def parse_label(label: str) -> Announcement | None:
    """Return what one DNS label announces, None if it is no pq1 label."""
    if not label.isascii():  # some letters outside ASCII have an ASCII lower case
        return None
    data = label.lower()
    if not data.startswith(LABEL_PREFIX):
        return None
    data = data[len(LABEL_PREFIX) :]
    try:
        if len(data) == HASH_CHARS:
            return Announcement(base32.decode(data))
        if len(data) == HASH_CHARS + 2 * PORT_CHARS:
            keyhash = base32.decode(data[:HASH_CHARS])
            port = int.from_bytes(base32.decode(data[HASH_CHARS : HASH_CHARS + PORT_CHARS]), "big")
            key_port = int.from_bytes(base32.decode(data[HASH_CHARS + PORT_CHARS :]), "big")
            return Announcement(keyhash, port or None, key_port or None)  # port 0 says nothing
    except base32.Base32Error:
        return None
    return None


def parse_name(name: str) -> Announcement | None:
    """Return what the first pq1 label of a DNS name (text form, trailing dot or not) announces, None without one."""
    for label in name.split("."):
        announcement = parse_label(label)
        if announcement is not None:
            return announcement
    return None


def make_label(keyhash: bytes, port: int | None = None, key_port: int | None = None) -> str:
    """Return the pq1 label for a 32-byte key hash; with both ports or neither.

    Raises ValueError for a hash of another size, one port without the other, or a port outside 1 to 65535.
    """
    if len(keyhash) != KEY_BYTES:
        raise ValueError("the key hash has 32 bytes")
    if (port is None) != (key_port is None):
        raise ValueError("both ports or neither")
    label = LABEL_PREFIX + base32.encode(keyhash)
    if port is not None and key_port is not None:
        for number in (port, key_port):
            if not 1 <= number <= 0xFFFF:
                raise ValueError("a port is a number from 1 to 65535")
            label += base32.encode(number.to_bytes(2, "big"))
    return label


_PORT_TEXT = re.compile(r"\s*p\s*=\s*([0-9]{1,5})\s*", re.ASCII)
_KEY_SERVER_TEXT = re.compile(r"\s*ip\s*=\s*([0-9A-Fa-f.:]{2,45})\s*;\s*p\s*=\s*([0-9]{1,5})\s*", re.ASCII)


def parse_port_text(text: str) -> int | None:
    """Return the crypto-server port of a TXT record such as ``p=42424``, None if it is no such record."""
    match = _PORT_TEXT.fullmatch(text)
    return _port(match[1]) if match else None


def parse_key_server_text(text: str) -> tuple[str, int] | None:
    """Return address and port of a TXT record such as ``ip=203.0.113.5;p=42425``, None if it is no such record.

    The address is returned as written; the caller checks that it is one.
    """
    match = _KEY_SERVER_TEXT.fullmatch(text)
    if not match:
        return None
    port = _port(match[2])
    return (match[1], port) if port is not None else None


def _port(digits: str) -> int | None:
    number = int(digits)
    return number if 1 <= number <= 0xFFFF else None
