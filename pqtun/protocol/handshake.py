"""The 0-RTT handshake (doc/protocol.md section 5). Labels I1 to I8 and R1 to R8 name its steps everywhere."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from pqtun.protocol import primitives
from pqtun.protocol.constants import (
    HANDSHAKE,
    HANDSHAKE_BYTES,
    MCELIECE_CT_BYTES,
    TAG_BYTES,
    X25519_BYTES,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.keytree import ServerPublicKey
from pqtun.protocol.primitives import X25519Secret, erase, hash32, kdf, mix, open_sealed, seal, x25519_point


@dataclass(frozen=True, slots=True)
class EphemeralPublicKey:
    """A server's public keys of this half minute: sntrup761 (1158 bytes) and X25519 (32 bytes)."""

    sntrup_pk: bytes = field(repr=False)
    x25519_pk: bytes


@dataclass(frozen=True, slots=True)
class EphemeralSecretKey:
    """The secret half: sntrup761 (1763 bytes) and X25519 (32 bytes)."""

    sntrup_sk: bytes | bytearray = field(repr=False)
    x25519_sk: bytes | bytearray = field(repr=False)
    x25519: X25519Secret = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the X25519 key ready."""
        object.__setattr__(self, "x25519", X25519Secret(self.x25519_sk))


@dataclass(frozen=True, slots=True)
class ServerSecretKey:
    """A server's long-term secret key: Classic McEliece (13948 bytes) and X25519 (32 bytes)."""

    mceliece_sk: bytes = field(repr=False)
    x25519_sk: bytes = field(repr=False)
    x25519: X25519Secret = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the X25519 key ready."""
        object.__setattr__(self, "x25519", X25519Secret(self.x25519_sk))


@dataclass(slots=True)
class Session:
    """What a handshake yields at one end: 32 bytes each. ``resume_secret`` proves a resumption and encrypts nothing.

    Whoever has put it to use erases it.
    """

    tid: bytes
    send_root: bytearray = field(repr=False)
    recv_root: bytearray = field(repr=False)
    resume_secret: bytearray = field(repr=False)

    def erase(self) -> None:
        """Overwrite every secret."""
        erase(self.send_root)
        erase(self.recv_root)
        erase(self.resume_secret)


class HandshakeMessage(NamedTuple):
    """The fields of a handshake datagram, as they are on the wire."""

    c0: bytes
    sealed_x25519: bytes  # c1 || t1
    sealed_sntrup: bytes  # c3 || t3


_C1 = 2 + MCELIECE_CT_BYTES
_C3 = _C1 + X25519_BYTES + TAG_BYTES


def parse(datagram: bytes) -> HandshakeMessage:
    """Cut a handshake datagram (1299 bytes). Raises MessageError for another type or size."""
    if datagram[:2] != HANDSHAKE:
        raise MessageError("type")
    if len(datagram) != HANDSHAKE_BYTES:
        raise MessageError("length")
    return HandshakeMessage(datagram[2:_C1], datagram[_C1:_C3], datagram[_C3:])


@dataclass(slots=True)
class InitiatorSecrets:
    """Every random choice of an initiator; made fresh by ``draw``, given only to check known answers."""

    c0: bytes
    k0: bytearray = field(repr=False)
    x25519: X25519Secret
    c2: bytes = field(repr=False)
    k3: bytearray = field(repr=False)

    @classmethod
    def draw(cls, server: ServerPublicKey, ephemeral: EphemeralPublicKey) -> "InitiatorSecrets":
        """Encapsulate to the server's McEliece and sntrup761 keys and make an X25519 pair."""
        c0, k0 = primitives.skem_enc(server.mceliece_pk)  # I1
        x25519 = X25519Secret.generate()  # I2
        c2, k3 = primitives.ekem_enc(ephemeral.sntrup_pk)  # I5
        return cls(c0, k0, x25519, c2, k3)


def initiate(server: ServerPublicKey, ephemeral: EphemeralPublicKey) -> tuple[bytes, Session]:
    """Return the datagram for the server (1299 bytes) and the client's session.

    Raises MessageError if a key of the server is unusable (an X25519 key of small order).
    """
    return compose(InitiatorSecrets.draw(server, ephemeral), server, ephemeral)


def compose(secrets: InitiatorSecrets, server: ServerPublicKey, ephemeral: EphemeralPublicKey) -> tuple[bytes, Session]:
    """The deterministic part of ``initiate``. Erases the keys in ``secrets``."""
    chain, transcript = secrets.k0, secrets.c0  # I1
    try:
        sealed_x25519 = seal(chain, transcript, secrets.x25519.public())  # I2
        transcript = hash32(transcript + sealed_x25519)
        mix(chain, secrets.x25519.shared(x25519_point(server.x25519_pk)))  # I3
        mix(chain, secrets.x25519.shared(x25519_point(ephemeral.x25519_pk)))  # I4
        sealed_sntrup = seal(chain, transcript, secrets.c2)  # I5
        mix(chain, secrets.k3)  # I6
        transcript = hash32(transcript + sealed_sntrup)
        tid, ti, tr, rs = kdf(4, chain, transcript)  # I7
    finally:
        erase(chain)
        erase(secrets.k3)
    datagram = HANDSHAKE + secrets.c0 + sealed_x25519 + sealed_sntrup  # I8
    return datagram, Session(bytes(tid), send_root=ti, recv_root=tr, resume_secret=rs)


def respond(message: HandshakeMessage, long_term: ServerSecretKey, ephemerals: Iterable[EphemeralSecretKey]) -> Session:
    """Return the server's session for a parsed handshake datagram, trying each ephemeral key in the order given.

    Raises MessageError if the message does not authenticate under any key. The caller keeps the replay memory (``c0``
    of accepted handshakes).
    """
    chain, transcript = primitives.skem_dec(message.c0, long_term.mceliece_sk), message.c0  # R1
    try:
        client_x25519 = x25519_point(open_sealed(chain, transcript, message.sealed_x25519))  # R2
        transcript = hash32(transcript + message.sealed_x25519)
        mix(chain, long_term.x25519.shared(client_x25519))  # R3
        for ephemeral in ephemerals:
            session = _finish(message, ephemeral, client_x25519, chain[:], transcript)
            if session is not None:
                return session
    finally:
        erase(chain)
    raise MessageError("ephemeral_key")


def _finish(
    message: HandshakeMessage,
    ephemeral: EphemeralSecretKey,
    client_x25519: X25519PublicKey,
    chain: bytearray,
    transcript: bytes,
) -> Session | None:
    """R4 to R8, None if the message was not made for this ephemeral key. Erases ``chain``."""
    try:
        mix(chain, ephemeral.x25519.shared(client_x25519))  # R4
        c2 = open_sealed(chain, transcript, message.sealed_sntrup)  # R5
        k3 = primitives.ekem_dec(c2, ephemeral.sntrup_sk)  # R6
        mix(chain, k3)
        erase(k3)
        transcript = hash32(transcript + message.sealed_sntrup)
        tid, ti, tr, rs = kdf(4, chain, transcript)  # R7
        return Session(bytes(tid), send_root=tr, recv_root=ti, resume_secret=rs)  # R8
    except MessageError:
        return None
    finally:
        erase(chain)
