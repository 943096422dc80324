"""OpenSSH's known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from pqtun.protocol.errors import UserError

STANDARD_PORT: Final = 22
MAX_FILE: Final = 16 << 20  # bytes
_SALT_BYTES: Final = 20


@dataclass(frozen=True)
class KnownKey:
    """A line that names the host. ``marker``: "", "cert-authority" or "revoked"; ``where``: file:line."""

    marker: str
    algorithm: str
    blob: bytes
    where: str


def host_name(host: str, port: int, standard: int = STANDARD_PORT) -> str:
    """Return what a host is called in the file: itself, or [host]:port."""
    return host if port == standard else f"[{host}]:{port}"


def find(files: Iterable[str], names: Sequence[str]) -> list[KnownKey]:
    """Return the lines of all files that hold for one of the names (in lower case); what cannot be read is left out."""
    found = []
    for path in files:
        try:
            with open(path, "rb") as source:
                text = source.read(MAX_FILE)
        except OSError:
            continue
        for number, line in enumerate(text.decode("ascii", errors="replace").split("\n"), 1):
            known = _parse(line, names, f"{path}:{number}")
            if known is not None:
                found.append(known)
    return found


def _parse(line: str, names: Sequence[str], where: str) -> KnownKey | None:
    words = line.split()
    marker = ""
    if words and words[0].startswith("@"):
        marker = words.pop(0)[1:]
        if marker not in ("cert-authority", "revoked"):
            return None
    if len(words) < 3 or words[0].startswith("#") or not any(_names(words[0], name) for name in names):
        return None
    try:
        return KnownKey(marker, words[1], base64.b64decode(words[2], validate=True), where)
    except (binascii.Error, ValueError):
        return None


def _names(patterns: str, name: str) -> bool:
    if patterns.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in patterns[3:].split("|"))
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(_digest(salt, name), digest)
    found = False
    for pattern in patterns.lower().split(","):
        negated, bare = pattern.startswith("!"), pattern.removeprefix("!")
        if fnmatchcase(name, bare.replace("[", "[[]")):
            if negated:
                return False
            found = True
    return found


def _digest(salt: bytes, name: str) -> bytes:
    return hmac.new(salt, name.encode(), hashlib.sha1).digest()


def line_of(name: str, algorithm: str, blob: bytes, *, hashed: bool = False) -> str:
    """Return the line for a host's key, with its end."""
    if hashed:
        salt = os.urandom(_SALT_BYTES)
        name = "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, _digest(salt, name)))
    return f"{name} {algorithm} {base64.b64encode(blob).decode()}\n"


def append(path: str, line: str) -> None:
    """Add a line to a file, which is made if there is none, with its directory. Raises UserError."""
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = "\n" + line
            os.write(fd, line.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise UserError(f"Failed to add the host to the list of known hosts ({path}): {error.strerror}") from None
