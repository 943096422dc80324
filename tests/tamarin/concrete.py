"""What a model's terms are in bytes: doc/protocol.md section 1 once more, with none of the project's own code."""

import hashlib
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from tests.tamarin.models import Term


def _stream(key: bytes, nonce: bytes, counter: bytes, length: int) -> bytes:
    """The counter's lower half must be far from its end: the library carries nothing to the upper one."""
    return Cipher(ChaCha20(key, counter + nonce), None).encryptor().update(bytes(length))


def kdf(n: int, key: bytes, data: bytes) -> bytes:
    if data:
        key = _stream(key, data[8:16], data[:8], 32)
        return _stream(key, data[24:], data[16:24], 32 * n)
    return _stream(key, bytes(8), bytes(8), 32 * n)


def value(term: Term, known: Mapping[str, bytes]) -> bytes:
    """``known`` has what cannot be computed: variables, and ciphertexts of KEMs as terms. Raises KeyError."""
    if str(term) in known:
        return known[str(term)]
    match term.name, term.arguments:
        case "<>", parts:
            return b"".join(value(part, known) for part in parts)
        case "h", (data,):
            return hashlib.shake_256(value(data, known)).digest(32)
        case "mac", (key, data):
            return hashlib.blake2b(value(data, known), key=value(key, known)).digest()[:32]
        case "kdf", (key, data, Term(number)):
            made = b"" if data == Term("'none'") else value(data, known)
            return kdf(int(number.strip("'")), value(key, known), made)[-32:]
        case "aead", (key, Term("'zero'"), ad, message):
            return ChaCha20Poly1305(value(key, known)).encrypt(bytes(12), value(message, known), value(ad, known))
        case "^", (Term("'g'"), secret):
            return X25519PrivateKey.from_private_bytes(value(secret, known)).public_key().public_bytes_raw()
        case "^", (point, secret):
            public = X25519PublicKey.from_public_bytes(value(point, known))
            return X25519PrivateKey.from_private_bytes(value(secret, known)).exchange(public)
        case "'01 00'" | "'02 00'", ():
            return bytes.fromhex(term.name.strip("'"))
    raise KeyError(str(term))
