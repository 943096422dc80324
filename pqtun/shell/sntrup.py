"""Key exchange sntrup761x25519-sha512 for asyncssh, with the KEM of libntruprime.

Source: draft-ietf-sshm-ntruprime-ssh. asyncssh brings the hybrid itself and wants a KEM class; its own one needs
liboqs, which Debian does not have.
"""

from hashlib import sha512
from typing import Final

from asyncssh.crypto import Curve25519DH
from asyncssh.kex import register_kex_alg
from asyncssh.kex_dh import _KexHybridECDH

from pqtun.protocol.constants import KEY_BYTES, SNTRUP_CT_BYTES, SNTRUP_PK_BYTES, SNTRUP_SK_BYTES

NAMES: Final = (b"sntrup761x25519-sha512", b"sntrup761x25519-sha512@openssh.com")
"""The standard's name, and the one of before it; the two are the same."""


class Sntrup761:
    """One side's KEM in one key exchange, as asyncssh asks for it. A fresh key pair each time."""

    pubkey_bytes = SNTRUP_PK_BYTES
    privkey_bytes = SNTRUP_SK_BYTES
    ciphertext_bytes = SNTRUP_CT_BYTES
    secret_bytes = KEY_BYTES

    def __init__(self, alg_name: bytes) -> None:
        """`alg_name` is what asyncssh calls the KEM; there is one here."""
        self._secret: bytearray | None = None

    def __repr__(self) -> str:
        return "Sntrup761()"

    def get_public(self) -> bytes:
        """Makes the key pair (the client's side); its public key, 1158 bytes."""
        from pqtun.protocol.primitives import ekem_keypair

        public, self._secret = ekem_keypair()
        return public

    def encaps(self, peer_public: bytes) -> tuple[bytes, bytes]:
        """A fresh secret (32 bytes) and its ciphertext (1039). ValueError for a public key of another size."""
        from pqtun.protocol.primitives import ekem_enc, erase

        ciphertext, key = ekem_enc(peer_public)
        secret = bytes(key)
        erase(key)
        return secret, ciphertext

    def decaps(self, ciphertext: bytes) -> bytes:
        """The secret (32 bytes) in a ciphertext; a pseudo-random one if it is invalid. ValueError for another size."""
        from pqtun.protocol.primitives import ekem_dec, erase

        if self._secret is None:
            raise ValueError("no key pair has been made")
        key = ekem_dec(ciphertext, self._secret)
        secret = bytes(key)
        erase(key)
        return secret


def register() -> None:
    """Adds both names to asyncssh's key exchanges. Not to its defaults: pqtun always says which it wants."""
    for name in NAMES:
        register_kex_alg(name, _KexHybridECDH, sha512, (Sntrup761, b"sntrup761", Curve25519DH), False)
