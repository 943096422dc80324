"""asyncssh made ready for pqtun: the algorithms that the shell speaks, by name, and their registration.

`prepare` comes before any other `import asyncssh`: that import looks for two libraries that pqtun has no use for, which
forks a compiler and ldconfig (40 ms), and loads X.509, which the shell does not speak. The names here cost nothing.
"""

import functools
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from pqtun.protocol.errors import UserError

KEX: Final = (
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512",
    "sntrup761x25519-sha512@openssh.com",
)
"""Key exchanges, in order: all hybrids of a post-quantum KEM and X25519."""

CLASSICAL_KEX: Final = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group-exchange-sha256",
)
"""Key exchanges that a quantum computer breaks: for a client that names them."""

CIPHERS: Final = ("aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")
"""Ciphers, all with authentication; first the one that asyncssh is four times faster with (a processor with AES)."""

MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")
"""Never used, as no cipher of `CIPHERS` needs one; RFC 4253 (7.1) has peers part who have none in common."""

COMPRESSION: Final = ("none",)
"""Compression unless asked for (`-C`)."""

KEY_ALGORITHMS: Final = ("ssh-mldsa44-ed25519", "ssh-ed25519", "sk-ssh-ed25519@openssh.com")
"""Key types; each has one signature algorithm, of the same name."""

CERTIFICATE_ALGORITHMS: Final = (
    "ssh-mldsa44-ed25519-cert",
    "ssh-ed25519-cert-v01@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
)
"""Certificates of those keys (OpenSSH's PROTOCOL.certkeys)."""

HOST_KEY_ALGORITHMS: Final = (*CERTIFICATE_ALGORITHMS, *KEY_ALGORITHMS)
"""What a client takes from a server; the post-quantum key comes first among certificates and among keys."""

SIGNATURE_ALGORITHMS: Final = KEY_ALGORITHMS
"""Signatures of users (asyncssh's `signature_algs`, where certificates have no place)."""

PUBLIC_KEY_ALGORITHMS: Final = (*CERTIFICATE_ALGORITHMS, *KEY_ALGORITHMS)
"""What a user may log in with (PubkeyAcceptedAlgorithms)."""

CLASSICAL_SIGNATURES: Final = (
    "rsa-sha2-512",
    "rsa-sha2-256",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
)
"""Signatures of old servers and keys: for a client that names them."""


@functools.cache
def prepare() -> None:
    """Imports asyncssh and registers what it lacks: sntrup761x25519, ssh-mldsa44-ed25519, thrift. May be repeated."""
    _import_asyncssh()
    from pqtun.shell import mldsa, packets, sntrup

    sntrup.register()
    mldsa.register()
    packets.register()


def _import_asyncssh() -> None:
    import ctypes.util

    find_library = ctypes.util.find_library
    absent = {"asyncssh.crypto.x509"} - sys.modules.keys()
    ctypes.util.find_library = lambda name: None
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None makes an import fail
    try:
        import asyncssh  # noqa: F401
    finally:
        ctypes.util.find_library = find_library
        for name in absent:
            del sys.modules[name]


def choose(option: str, text: str, ours: Sequence[str], named: Sequence[str] = ()) -> tuple[str, ...]:
    """The algorithms that an ssh_config(5) list selects, in order.

    `ours` are the default, `named` may be had by name only. A list replaces the default; after `+` it is appended,
    after `^` put in front, after `-` its patterns are removed. Names that are neither in `ours` nor in `named` are
    passed over, as configurations are shared with programs that know more. UserError if nothing is left.
    """
    sign, names = (text[0], text[1:]) if text[:1] in "+-^" and text else ("", text)
    patterns = [name for name in names.split(",") if name]
    if sign == "-":
        chosen = [name for name in ours if not any(fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        found = [name for pattern in patterns for name in (*ours, *named) if fnmatchcase(name, pattern)]
        head, tail = {"": ([], []), "+": (ours, []), "^": ([], ours)}[sign]
        chosen = [*head, *found, *tail]
    if not chosen:
        raise UserError(f"{option}={text} leaves no algorithm that pqtun knows; it knows {', '.join((*ours, *named))}")
    return tuple(dict.fromkeys(chosen))
