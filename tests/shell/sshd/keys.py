"""Keys and certificates for tests, made by ssh-keygen or by asyncssh where Debian 12's is too old."""

from __future__ import annotations

import base64
import hashlib
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pqtun.shell.sshd.certificates import string

SECURITY_KEY = "sk-ssh-ed25519@openssh.com"
APPLICATION = b"ssh:"


def blob_of(line: str) -> bytes:
    """The blob of "type base64 comment"."""
    return base64.b64decode(line.split()[1])


@dataclass(frozen=True)
class KeyFile:
    """An ed25519 key pair on disk."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> KeyFile:
        keygen("-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))
        return cls(path)

    @property
    def line(self) -> str:
        return Path(f"{self.path}.pub").read_text().strip()

    @property
    def blob(self) -> bytes:
        return blob_of(self.line)

    def certify(self, key: KeyFile, *options: str, principals: str | None = "alice", identity: str = "the id") -> bytes:
        """A certificate of another key by this one, as ssh-keygen makes it with these options."""
        given = ["-n", principals] if principals is not None else []
        keygen("-s", str(self.path), "-I", identity, *given, *options, str(key.path) + ".pub")
        return blob_of(Path(f"{key.path}-cert.pub").read_text())


def keygen(*arguments: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True, timeout=20)


class SecurityKey:
    """What a FIDO key of type ed25519-sk does, in software (PROTOCOL.u2f of OpenSSH)."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.blob = string(SECURITY_KEY.encode()) + string(public) + string(APPLICATION)
        self.line = f"{SECURITY_KEY} {base64.b64encode(self.blob).decode()} token"

    def sign(self, message: bytes, flags: int) -> bytes:
        extra = struct.pack(">BI", flags, 7)
        signed = hashlib.sha256(APPLICATION).digest() + extra + hashlib.sha256(message).digest()
        return string(SECURITY_KEY.encode()) + string(self._private.sign(signed)) + extra


def certificate(key: Any, ca: Any, **options: Any) -> bytes:
    """A certificate of one asyncssh key by another."""
    made = ca.generate_user_certificate(key, "the id", **{"principals": ["alice"], **options})
    return bytes(made.public_data)
