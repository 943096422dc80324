"""The cryptographic primitives of pq1 (doc/protocol.md section 1), each a thin call into a library."""

import ctypes
import hashlib
from typing import cast

import pysodium
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pymceliece import mceliece6960119
from pyntruprime import sntrup761

from pqtun.protocol.constants import (
    KEY_BYTES,
    MCELIECE_CT_BYTES,
    MCELIECE_PK_BYTES,
    MCELIECE_SK_BYTES,
    SNTRUP_CT_BYTES,
    SNTRUP_PK_BYTES,
    SNTRUP_SK_BYTES,
    TAG_BYTES,
)
from pqtun.protocol.errors import MessageError

Buffer = bytes | bytearray | memoryview

ZERO_NONCE = bytes(12)  # every AEAD key is used for one message only


def chacha20_stream(key: Buffer, nonce: bytes, counter: int, length: int) -> bytes:
    """Return ``length`` bytes of the original ChaCha20: 32-byte key, 8-byte nonce, 64-bit block counter."""
    stream = pysodium.crypto_stream_chacha20_xor_ic(bytes(length), nonce, counter, bytes(key))
    return cast(bytes, stream)


def kdf(n: int, key: Buffer, data: bytes = b"") -> list[bytes]:
    """Return the ``n`` 32-byte keys of KDF(n, key, data). ``data`` is empty or 32 bytes (ValueError otherwise)."""
    if data:
        if len(data) != KEY_BYTES:
            raise ValueError("the input of the KDF is empty or 32 bytes")
        key = chacha20_stream(key, data[8:16], int.from_bytes(data[:8], "little"), KEY_BYTES)
        nonce, counter = data[24:32], int.from_bytes(data[16:24], "little")
    else:
        nonce, counter = bytes(8), 0
    stream = chacha20_stream(key, nonce, counter, KEY_BYTES * n)
    return [stream[i : i + KEY_BYTES] for i in range(0, KEY_BYTES * n, KEY_BYTES)]


def hash32(data: Buffer) -> bytes:
    """H(x): SHAKE256 with 32 bytes of output (FIPS 202)."""
    return hashlib.shake_256(data).digest(KEY_BYTES)


def seal(key: Buffer, ad: Buffer, message: Buffer) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439) under the zero nonce: ciphertext, then the 16-byte tag."""
    return ChaCha20Poly1305(key).encrypt(ZERO_NONCE, message, ad)


def open_sealed(key: Buffer, ad: Buffer, sealed: Buffer) -> bytes:
    """Return the plaintext of ciphertext || tag. Raises MessageError("authentication") if the tag is wrong."""
    if len(sealed) < TAG_BYTES:
        raise MessageError("authentication")
    try:
        return ChaCha20Poly1305(key).decrypt(ZERO_NONCE, sealed, ad)
    except InvalidTag:
        raise MessageError("authentication") from None


def x25519_keypair() -> tuple[bytes, bytes]:
    """Return a fresh X25519 pair: public and secret key, 32 bytes each (RFC 7748)."""
    secret = X25519PrivateKey.generate()
    return secret.public_key().public_bytes_raw(), secret.private_bytes_raw()


def x25519_public(secret: Buffer) -> bytes:
    """Return the X25519 public key of a 32-byte secret key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def x25519(secret: Buffer, public: Buffer) -> bytes:
    """Return the 32-byte shared secret. Raises MessageError("x25519") for a public key of small order."""
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(bytes(public)))
    except ValueError:
        raise MessageError("x25519") from None


def skem_keypair() -> tuple[bytes, bytes]:
    """Return a fresh Classic McEliece 6960119 pair: public key 1047319, secret key 13948 bytes."""
    public, secret = mceliece6960119.keypair()
    return _sized(public, MCELIECE_PK_BYTES), _sized(secret, MCELIECE_SK_BYTES)


def skem_enc(public: bytes) -> tuple[bytes, bytes]:
    """Return a Classic McEliece ciphertext (194) and the key in it (32). MessageError("skem") for a bad public key."""
    try:
        ciphertext, key = mceliece6960119.enc(public)
    except Exception:  # pymceliece raises bare Exception
        raise MessageError("skem") from None
    return _sized(ciphertext, MCELIECE_CT_BYTES), _sized(key, KEY_BYTES)


def skem_dec(ciphertext: bytes, secret: bytes) -> bytes:
    """Return the 32-byte key in a Classic McEliece ciphertext; a pseudo-random one if it is invalid.

    Raises MessageError("skem") for sizes other than 194 and 13948 bytes.
    """
    try:
        return _sized(mceliece6960119.dec(ciphertext, secret), KEY_BYTES)
    except Exception:  # pymceliece raises bare Exception
        raise MessageError("skem") from None


def ekem_keypair() -> tuple[bytes, bytes]:
    """Return a fresh sntrup761 pair: public key 1158, secret key 1763 bytes."""
    public, secret = sntrup761.keypair()
    return _sized(public, SNTRUP_PK_BYTES), _sized(secret, SNTRUP_SK_BYTES)


def ekem_enc(public: bytes) -> tuple[bytes, bytes]:
    """Return an sntrup761 ciphertext (1039) and the key in it (32). MessageError("ekem") for a bad public key."""
    try:
        ciphertext, key = sntrup761.enc(public)
    except Exception:  # pyntruprime raises bare Exception
        raise MessageError("ekem") from None
    return _sized(ciphertext, SNTRUP_CT_BYTES), _sized(key, KEY_BYTES)


def ekem_dec(ciphertext: bytes, secret: bytes) -> bytes:
    """Return the 32-byte key in an sntrup761 ciphertext; a pseudo-random one if it is invalid.

    Raises MessageError("ekem") for sizes other than 1039 and 1763 bytes.
    """
    try:
        return _sized(sntrup761.dec(ciphertext, secret), KEY_BYTES)
    except Exception:  # pyntruprime raises bare Exception
        raise MessageError("ekem") from None


def _sized(value: object, size: int) -> bytes:
    """Hold an untyped library to its word."""
    if not isinstance(value, bytes) or len(value) != size:
        raise TypeError("a cryptographic library returned a value of another size")
    return value


def expand(key: bytearray, out: bytearray) -> None:
    """Fill ``out`` with KDF(n, key, "") for n = len(out) / 32, in place, so that both can be erased after use."""
    c_out = (ctypes.c_char * len(out)).from_buffer(out)
    c_key = (ctypes.c_char * KEY_BYTES).from_buffer(key)
    pysodium.sodium.crypto_stream_chacha20(c_out, ctypes.c_ulonglong(len(out)), bytes(8), c_key)


def erase(secret: bytearray) -> None:
    """Overwrite a secret with zeros."""
    secret[:] = bytes(len(secret))
