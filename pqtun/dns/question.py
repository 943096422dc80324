"""The header and question of a DNS message, read from its bytes (RFC 1035 section 4.1). Pure."""

import struct
from typing import Final

HEADER_BYTES: Final = 12
QR: Final = 0x80  # third byte: 1 for an answer
TC: Final = 0x02
_OPCODE: Final = 0x78
_RD: Final = 0x01
_RA: Final = 0x80  # fourth byte
_CD: Final = 0x10
_RCODE: Final = 0x0F
_SERVFAIL: Final = 2
# Errors that some servers send as a bare header, without repeating the question.
_BARE_RCODES: Final = frozenset((1, 2, 4, 5))
_AXFR: Final = 252
_IXFR: Final = 251
_MAX_NAME_BYTES: Final = 255


def question_section(message: bytes) -> bytes | None:
    """Return the bytes of the question section; None if there is more than one question, or none that can be read."""
    if len(message) < HEADER_BYTES:
        return None
    count = message[4] << 8 | message[5]
    if count == 0:
        return b""
    position = HEADER_BYTES
    while count == 1 and position < min(len(message), HEADER_BYTES + _MAX_NAME_BYTES):
        length = message[position]
        if length == 0:
            end = position + 5
            return bytes(message[HEADER_BYTES:end]) if end <= len(message) else None
        if length > 63:  # the first name of a message has nothing before it to point to
            return None
        position += 1 + length
    return None


def same_question(asked: bytes, answered: bytes) -> bool:
    """Whether two question sections ask the same; letters of the name in any case (0x20 randomisation)."""
    return asked == answered or (asked[-4:] == answered[-4:] and asked[:-4].lower() == answered[:-4].lower())


def is_answer(query: bytes, asked: bytes, message: bytes) -> bool:
    """Whether ``message`` answers ``query`` (at least a header) with the question section ``asked``.

    The ID has to be the same, and the question too, except in a bare error without records.
    """
    if len(message) < HEADER_BYTES or message[:2] != query[:2] or not message[2] & QR:
        return False
    answered = question_section(message)
    if answered is None:
        return False
    if answered == b"" and message[3] & _RCODE in _BARE_RCODES and record_count(message) == 0:
        return True
    return same_question(asked, answered)


def is_query_opcode(message: bytes) -> bool:
    """Whether the opcode is QUERY, the one that looks names up. ``message`` has at least 3 bytes."""
    return not message[2] & _OPCODE


def is_transfer(question: bytes) -> bool:
    """Whether a question section asks for a zone transfer (RFC 5936, RFC 1995)."""
    return len(question) >= 4 and int.from_bytes(question[-4:-2], "big") in (_AXFR, _IXFR)


def record_count(message: bytes) -> int:
    """Return how many records the header claims, the question not counted. ``message`` has at least 12 bytes."""
    return sum(struct.unpack_from("!3H", message, 6))


def empty_answer(message: bytes) -> bytes:
    """Return an answer without records to a query, or in place of an answer. ``message`` has at least 12 bytes.

    It says SERVFAIL; in place of a truncated answer it is a truncated one, so that the program asks by TCP.
    """
    question = question_section(message) or b""
    first = QR | message[2] & (_OPCODE | TC | _RD)
    second = message[3] & (_RA | _CD)
    if not message[2] & QR:
        first &= ~TC
        second |= _RA if message[2] & _RD else 0
    if not first & TC:
        second |= _SERVFAIL
    return message[:2] + struct.pack("!2B4H", first, second, 1 if question else 0, 0, 0, 0) + question
