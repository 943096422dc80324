"""The server's host keys: files in OpenSSH's format, made at first start."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncssh

from pqtun.protocol.errors import UserError
from pqtun.shell import keyfile

# Name of the file for each type, in the order in which they are offered; OpenSSH names its own in the same way.
FILES: Final = {
    "ssh-mldsa44-ed25519": "ssh_host_mldsa44_ed25519_key",
    "ssh-ed25519": "ssh_host_ed25519_key",
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """What processes without secrets know of a host key."""

    algorithm: str
    blob: bytes  # RFC 4253 section 6.6


def prepare(directory: Path) -> list[asyncssh.SSHKey]:
    """Return the private host keys, making those that are missing. Called as root.

    Raises UserError: unreadable, damaged or of another type, or others could read or swap them.
    """
    _check_directory(directory)
    keys = []
    for algorithm, name in FILES.items():
        path = directory / name
        if path.exists():
            _check_file(path)
            key = keyfile.load_private(path)
        else:
            key = asyncssh.generate_private_key(algorithm, comment=f"root@{os.uname().nodename}")
            keyfile.save_public(keyfile.beside(path), key, replace=True)
            keyfile.save_private(path, key)
        if key.get_algorithm() != algorithm:
            raise UserError(f"{path} is a key of type {key.get_algorithm()}, not {algorithm}: move it away")
        keys.append(key)
    return keys


def _check_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise UserError(f"cannot use the host key directory {directory}: {error.strerror}; see --host-keys") from None
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UserError(
            f"others may write to the host key directory {directory}: make it root's own (chown root, chmod 755)"
        )


def _check_file(path: Path) -> None:
    """Whoever owns the file may change it, which is not what the check of private keys in general is about."""
    found = path.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"others may read or change the host key {path}: make it root's own (chown root, chmod 600)")


def public(key: asyncssh.SSHKey) -> PublicKey:
    """Return the public part of a key."""
    return PublicKey(key.get_algorithm(), key.public_data)
