"""The request that a user signs to log in (RFC 4252 section 7), parsed strictly: root verifies what is in it. Pure."""

from dataclasses import dataclass
from struct import Struct
from typing import Final

MSG_USERAUTH_REQUEST: Final = 50
SERVICE: Final = b"ssh-connection"
METHOD: Final = b"publickey"
MAX_USER: Final = 256  # bytes
MAX_KEY: Final = 16 << 10  # bytes; a certificate with mldsa keys, principals and options has 7,000
MAX_SIGNATURE: Final = 8 << 10  # bytes; one of a security key over mldsa would have 2,600
_SESSION_ID_BYTES: Final = (32, 48, 64)  # SHA-256, SHA-384, SHA-512
_LENGTH: Final = Struct(">I")


class RequestError(Exception):
    """What was signed is no request to log in, or another one."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a signature stands for."""

    session_id: bytes
    user: str
    algorithm: str
    key: bytes


def parse(signed: bytes) -> Request:
    """Return what is in the signed bytes. Raises RequestError."""
    session_id, rest = _string(signed, 64)
    if len(session_id) not in _SESSION_ID_BYTES:
        raise RequestError("no session identifier")
    if rest[:1] != bytes([MSG_USERAUTH_REQUEST]):
        raise RequestError("another message")
    user, rest = _string(rest[1:], MAX_USER)
    service, rest = _string(rest, 64)
    method, rest = _string(rest, 64)
    if (service, method, rest[:1]) != (SERVICE, METHOD, b"\1"):
        raise RequestError("another service or method")
    algorithm, rest = _string(rest[1:], 64)
    key, rest = _string(rest, MAX_KEY)
    if rest:
        raise RequestError("something follows")
    if key_type(key) != algorithm:
        raise RequestError("key and algorithm differ")
    try:
        return Request(session_id, user.decode(), algorithm.decode("ascii"), key)
    except UnicodeDecodeError:
        raise RequestError("no text") from None


def key_type(blob: bytes) -> bytes:
    """Return the name that a public key or certificate begins with (RFC 4253 section 6.6). Raises RequestError."""
    return _string(blob, 64)[0]


def _string(data: bytes, most: int) -> tuple[bytes, bytes]:
    """A string (RFC 4251 section 5) and what follows it."""
    if len(data) < _LENGTH.size:
        raise RequestError("truncated")
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    if length > most or end > len(data):
        raise RequestError("truncated, or too long")
    return data[_LENGTH.size : end], data[end:]
