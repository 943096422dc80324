"""The cryptographic primitives of pq1 (doc/protocol.md section 1), each a thin call into a library.

Keys come out in bytearrays of the caller's own, to be erased after use; shared secrets of X25519 alone are bytes.
"""

import ctypes
import hashlib
from struct import Struct
from typing import Any

import pymceliece
import pyntruprime
import pysodium
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pymceliece import mceliece6960119

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
_ZEROS = bytes(KEY_BYTES)
_LONG_TEXT = bytes(2048)  # the widest vectors take 16 or 32 blocks of 64 bytes at a time
_STACK_BYTES = 32 << 10  # far more than the cipher and the interpreter between us and it use
_KDF_INPUT = Struct("<Q8sQ8s")  # block counter and nonce of the first stream, those of the second

# The packages that find these libraries would copy all secrets to memory that nobody erases. Calls of a microsecond
# keep the interpreter's lock (PYFUNCTYPE).
_mceliece: ctypes.CDLL = pymceliece._lib  # type: ignore[attr-defined]
_ntruprime: ctypes.CDLL = pyntruprime._lib
_Bytes = ctypes.c_char_p
_Size = ctypes.c_ulonglong
_Key = ctypes.c_char * KEY_BYTES
_random = ctypes.PYFUNCTYPE(None, _Bytes, ctypes.c_size_t)(("randombytes_buf", pysodium.sodium))
_chacha20 = ctypes.PYFUNCTYPE(ctypes.c_int, _Bytes, _Size, _Bytes, _Bytes)(
    ("crypto_stream_chacha20", pysodium.sodium)  # stream, length, nonce, key
)
_chacha20_xor = ctypes.PYFUNCTYPE(ctypes.c_int, _Bytes, _Bytes, _Size, _Bytes, _Size, _Bytes)(
    ("crypto_stream_chacha20_xor_ic", pysodium.sodium)  # out, in, length, nonce, block counter, key
)
_clear_stack = ctypes.PYFUNCTYPE(None, ctypes.c_size_t)(("sodium_stackzero", pysodium.sodium))
_kem = ctypes.CFUNCTYPE(ctypes.c_int, _Bytes, _Bytes, _Bytes)
_mceliece_enc = _kem(("mceliece_kem_6960119_enc", _mceliece))  # ciphertext, key, public key
_mceliece_dec = _kem(("mceliece_kem_6960119_dec", _mceliece))  # key, ciphertext, secret key
_sure_kem = ctypes.CFUNCTYPE(None, _Bytes, _Bytes, _Bytes)
_sntrup_enc = _sure_kem(("ntruprime_kem_sntrup761_enc", _ntruprime))
_sntrup_dec = _sure_kem(("ntruprime_kem_sntrup761_dec", _ntruprime))
_sntrup_keypair = ctypes.CFUNCTYPE(None, _Bytes, _Bytes)(("ntruprime_kem_sntrup761_keypair", _ntruprime))


def _in_place(buffer: Buffer) -> Any:
    """A buffer as C takes it, not a copy."""
    return buffer if isinstance(buffer, bytes) else (ctypes.c_char * len(buffer)).from_buffer(buffer)


def kdf(n: int, key: Buffer, data: Buffer = b"") -> list[bytearray]:
    """Return the ``n`` 32-byte keys of KDF(n, key, data). ``data`` is empty or 32 bytes (ValueError otherwise)."""
    stream = bytearray(KEY_BYTES * n)
    if data:
        _keystream(_in_place(stream), len(stream), _in_place(key), data)
    else:
        _chacha20(_in_place(stream), len(stream), bytes(8), _in_place(key))
    keys = [stream[i : i + KEY_BYTES] for i in range(0, len(stream), KEY_BYTES)]
    erase(stream)
    return keys


def mix(chain: bytearray, secret: Buffer) -> None:
    """chain = KDF(1, chain, secret), in place."""
    both = _Key.from_buffer(chain)
    _keystream(both, KEY_BYTES, both, secret)


def _keystream(out: Any, length: int, key: Any, data: Buffer) -> None:
    """Write the keys of KDF(n, key, data) to ``out``, which may be where ``key`` is."""
    if len(data) != KEY_BYTES:
        raise ValueError("the input of the KDF is empty or 32 bytes")
    counter, nonce, last_counter, last_nonce = _KDF_INPUT.unpack(data)
    inner = _Key()
    _chacha20_xor(inner, _ZEROS, KEY_BYTES, nonce, counter, key)
    _chacha20_xor(out, bytes(length), length, last_nonce, last_counter, inner)
    inner.raw = _ZEROS


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


class X25519Secret:
    """A secret key made ready: that takes as long as its use. Its copy is erased when the object goes."""

    __slots__ = ("_key",)

    def __init__(self, secret: Buffer) -> None:
        """``secret`` has 32 bytes (ValueError otherwise)."""
        self._key = X25519PrivateKey.from_private_bytes(secret)

    @classmethod
    def generate(cls) -> "X25519Secret":
        """Return a fresh one."""
        secret = random_key()
        made = cls(secret)
        erase(secret)
        return made

    def public(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def shared(self, public: X25519PublicKey) -> bytes:
        """Return the 32-byte shared secret. Raises MessageError("x25519") for a public key of small order."""
        try:
            return self._key.exchange(public)
        except ValueError:
            raise MessageError("x25519") from None


def x25519_point(public: bytes) -> X25519PublicKey:
    """Make a public key of 32 bytes (ValueError otherwise) ready for ``X25519Secret.shared``."""
    return X25519PublicKey.from_public_bytes(public)


def x25519_keypair() -> tuple[bytes, bytearray]:
    """Return a fresh X25519 pair: public and secret key, 32 bytes each (RFC 7748)."""
    secret = random_key()
    return X25519Secret(secret).public(), secret


def random_key() -> bytearray:
    """Return 32 fresh random bytes."""
    key = bytearray(KEY_BYTES)
    _random(_in_place(key), KEY_BYTES)
    return key


def x25519_public(secret: Buffer) -> bytes:
    """Return the X25519 public key of a 32-byte secret key."""
    return X25519Secret(secret).public()


def x25519(secret: Buffer, public: bytes) -> bytes:
    """Return the 32-byte shared secret. Raises MessageError("x25519") for a public key of small order."""
    return X25519Secret(secret).shared(x25519_point(public))


def skem_keypair() -> tuple[bytes, bytes]:
    """Return a fresh Classic McEliece 6960119 pair: public key 1047319, secret key 13948 bytes."""
    public, secret = mceliece6960119.keypair()
    if len(public) != MCELIECE_PK_BYTES or len(secret) != MCELIECE_SK_BYTES:
        raise TypeError("libmceliece makes keys of another size")
    return public, secret


def skem_enc(public: bytes) -> tuple[bytes, bytearray]:
    """Return a Classic McEliece ciphertext (194) and the key in it (32). MessageError("skem") for a bad public key."""
    ciphertext, key = bytearray(MCELIECE_CT_BYTES), bytearray(KEY_BYTES)
    if len(public) != MCELIECE_PK_BYTES or _mceliece_enc(_in_place(ciphertext), _in_place(key), public) != 0:
        raise MessageError("skem")
    return bytes(ciphertext), key


def skem_dec(ciphertext: bytes, secret: Buffer) -> bytearray:
    """Return the 32-byte key in a Classic McEliece ciphertext; a pseudo-random one if it is invalid.

    Raises MessageError("skem") for sizes other than 194 and 13948 bytes.
    """
    key = bytearray(KEY_BYTES)
    sized = len(ciphertext) == MCELIECE_CT_BYTES and len(secret) == MCELIECE_SK_BYTES
    if not sized or _mceliece_dec(_in_place(key), ciphertext, _in_place(secret)) != 0:
        raise MessageError("skem")
    return key


def ekem_keypair() -> tuple[bytes, bytearray]:
    """Return a fresh sntrup761 pair: public key 1158, secret key 1763 bytes."""
    public, secret = bytearray(SNTRUP_PK_BYTES), bytearray(SNTRUP_SK_BYTES)
    _sntrup_keypair(_in_place(public), _in_place(secret))
    return bytes(public), secret


def ekem_enc(public: bytes) -> tuple[bytes, bytearray]:
    """Return an sntrup761 ciphertext (1039) and the key in it (32). MessageError("ekem") for a bad public key."""
    if len(public) != SNTRUP_PK_BYTES:
        raise MessageError("ekem")
    ciphertext, key = bytearray(SNTRUP_CT_BYTES), bytearray(KEY_BYTES)
    _sntrup_enc(_in_place(ciphertext), _in_place(key), public)
    return bytes(ciphertext), key


def ekem_dec(ciphertext: bytes, secret: Buffer) -> bytearray:
    """Return the 32-byte key in an sntrup761 ciphertext; a pseudo-random one if it is invalid.

    Raises MessageError("ekem") for sizes other than 1039 and 1763 bytes.
    """
    if len(ciphertext) != SNTRUP_CT_BYTES or len(secret) != SNTRUP_SK_BYTES:
        raise MessageError("ekem")
    key = bytearray(KEY_BYTES)
    _sntrup_dec(_in_place(key), ciphertext, _in_place(secret))
    return key


def expand(key: bytearray, out: bytearray) -> None:
    """Fill ``out`` with KDF(n, key, "") for n = len(out) / 32, in place, so that both can be erased after use."""
    _chacha20(_in_place(out), len(out), bytes(8), _in_place(key))


def erase(secret: bytearray) -> None:
    """Overwrite a secret with zeros."""
    secret[:] = bytes(len(secret))


def clear_traces() -> None:
    """Overwrite the key that ``seal`` or ``open_sealed`` has left in vector registers and on the stack.

    The registers with zeros, in a long text; of the stack 32 KiB below the caller.
    """
    seal(_ZEROS, b"", _LONG_TEXT)
    _clear_stack(_STACK_BYTES)
