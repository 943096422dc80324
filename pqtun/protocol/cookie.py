"""Cookies: a tunnel's state that the server has handed to the client, sealed (doc/protocol.md section 7)."""

from dataclasses import dataclass, field
from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pqtun.protocol.constants import (
    COOKIE_BYTES,
    COOKIE_LIFETIME,
    COOKIE_NONCE_BYTES,
    COOKIE_PREFIX,
    KEY_BYTES,
    LAST_EPOCH,
    TID_BYTES,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.primitives import Buffer, erase

_STATE = Struct(f">{TID_BYTES}sI{KEY_BYTES}s{KEY_BYTES}s")
_EPOCH = Struct(">I")
_TIMESTAMP = Struct(">Q")
_NONCE_OFFSET = len(COOKIE_PREFIX) + _TIMESTAMP.size
_SEALED_OFFSET = _NONCE_OFFSET + COOKIE_NONCE_BYTES


@dataclass(frozen=True, slots=True)
class TunnelState:
    """What a cookie holds. The roots are those of the epoch after ``epoch``, as the server sends and receives."""

    tid: bytes
    epoch: int
    send_root: bytearray = field(repr=False)
    recv_root: bytearray = field(repr=False)

    def erase(self) -> None:
        """Overwrite the roots, where they are in memory that can be."""
        for root in (self.send_root, self.recv_root):
            if isinstance(root, bytearray):
                erase(root)


def is_cookie(plaintext: bytes) -> bool:
    """Say whether a plaintext or datagram is meant as a cookie."""
    return plaintext.startswith(COOKIE_PREFIX)


def pack(state: TunnelState, key: Buffer, nonce: bytes, timestamp: int) -> bytes:
    """Return the 144-byte cookie. ``nonce`` has 12 bytes and is never used twice under one key."""
    stamp = _TIMESTAMP.pack(timestamp)
    plaintext = bytearray(_STATE.size)
    _STATE.pack_into(plaintext, 0, state.tid, state.epoch, state.send_root, state.recv_root)
    sealed = ChaCha20Poly1305(key).encrypt(nonce, plaintext, stamp)
    erase(plaintext)
    return COOKIE_PREFIX + stamp + nonce + sealed


def nonce(cookie: bytes) -> bytes:
    """Return the nonce (12 bytes) that a cookie says it was made with."""
    return cookie[_NONCE_OFFSET:_SEALED_OFFSET]


def unpack(cookie: bytes, key: Buffer, now: int) -> TunnelState:
    """Return the state in a cookie made under ``key`` at most 120 s before ``now`` (seconds, the packer's clock).

    Its roots are the caller's to erase.
    Raises MessageError: ``length``, ``type``, ``cookie_expired``, ``authentication``, ``epoch_end``.
    """
    if len(cookie) != COOKIE_BYTES:
        raise MessageError("length")
    if not is_cookie(cookie):
        raise MessageError("type")
    (timestamp,) = _TIMESTAMP.unpack_from(cookie, len(COOKIE_PREFIX))
    if not 0 <= now - timestamp <= COOKIE_LIFETIME:
        raise MessageError("cookie_expired")
    state = bytearray(_STATE.size)
    try:
        ChaCha20Poly1305(key).decrypt_into(nonce(cookie), cookie[_SEALED_OFFSET:], _TIMESTAMP.pack(timestamp), state)
        (epoch,) = _EPOCH.unpack_from(state, TID_BYTES)
        if epoch >= LAST_EPOCH:
            raise MessageError("epoch_end")
        return TunnelState(bytes(state[:TID_BYTES]), epoch, state[-2 * KEY_BYTES : -KEY_BYTES], state[-KEY_BYTES:])
    except InvalidTag:
        raise MessageError("authentication") from None
    finally:
        erase(state)
