"""DNSCurve's base32 (doc/protocol.md section 2): one little-endian integer, 5 bits a character from the low end."""

_DIGITS = "0123456789bcdfghjklmnpqrstuvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


class Base32Error(ValueError):
    """The text is not the base32 encoding of whole bytes."""


def encode(data: bytes) -> str:
    """Return the base32 text of ``data``: ceil(8 * len / 5) characters."""
    number = int.from_bytes(data, "little")
    characters = (8 * len(data) + 4) // 5
    return "".join(_DIGITS[(number >> (5 * i)) & 31] for i in range(characters))


def decode(text: str) -> bytes:
    """Return the bytes that ``text`` encodes, upper and lower case alike (DNS names are case-insensitive).

    Raises Base32Error for a character outside the alphabet, a length that no whole number of bytes has, and bits
    that do not fit the bytes.
    """
    if not text.isascii():  # some letters outside ASCII have an ASCII lower case
        raise Base32Error("character outside the alphabet")
    number = 0
    for position, character in enumerate(text.lower()):
        value = _VALUES.get(character)
        if value is None:
            raise Base32Error("character outside the alphabet")
        number |= value << (5 * position)
    size = 5 * len(text) // 8
    if (8 * size + 4) // 5 != len(text):
        raise Base32Error("length fits no whole number of bytes")
    if number >> (8 * size):
        raise Base32Error("more bits than the bytes hold")
    return number.to_bytes(size, "little")
