"""TinySSH's key directory: the host's Ed25519 key as two files of raw bytes.

Source: what tinysshd-makekey of TinySSH 20250126 (Debian 13) writes: `ed25519.pk` (public key, 32 bytes, mode 644) and
`.ed25519.sk` (seed, then public key, 64 bytes, mode 600).
"""

import os
import stat
from pathlib import Path
from secrets import token_hex
from typing import Final

import asyncssh
from asyncssh.packet import SSHPacket

from pqtun.protocol.errors import UserError
from pqtun.shell.keyfile import ExistsError, check_name, write

PUBLIC_NAME: Final = "ed25519.pk"
SECRET_NAME: Final = ".ed25519.sk"
KEY_BYTES: Final = 32
SECRET_BYTES: Final = 64


def load(directory: Path) -> asyncssh.SSHKey:
    """The private key in a directory. UserError: missing, of another size, readable by others, halves that do not fit.

    The public file may be missing, as the secret one holds its bytes.
    """
    secret = _read(directory / SECRET_NAME, SECRET_BYTES, secret=True)
    seed, public = secret[:KEY_BYTES], secret[KEY_BYTES:]
    key = _key(seed)
    if _public(key) != public:
        raise UserError(f"{directory / SECRET_NAME} is damaged: its public half belongs to another key")
    path = directory / PUBLIC_NAME
    if path.exists() and _read(path, KEY_BYTES, secret=False) != public:
        raise UserError(f"{path} does not belong to {directory / SECRET_NAME}: restore both from one backup")
    return key


def save(directory: Path, key: asyncssh.SSHKey) -> None:
    """Makes the directory and writes both files. It must not exist, as for tinysshd-makekey (ExistsError).

    UserError for keys of another type than ssh-ed25519, the only one that TinySSH has.
    """
    if key.get_algorithm() != "ssh-ed25519":
        raise UserError(f"TinySSH has ssh-ed25519 keys only, this one is {key.get_algorithm()}")
    seed, public = _seed(key), _public(key)
    check_name(directory)
    fresh = directory.with_name(f".{directory.name}.new-{token_hex(8)}")
    try:
        if directory.exists():
            raise ExistsError(f"{directory} already exists: choose another name, or remove it first")
        fresh.mkdir(0o700)
        try:
            write(fresh / SECRET_NAME, seed + public, 0o600, replace=False)
            write(fresh / PUBLIC_NAME, public, 0o644, replace=False)
            fresh.chmod(0o755)  # as tinysshd-makekey has it
            fresh.rename(directory)
        finally:
            _remove(fresh)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror}") from None


def _key(seed: bytes) -> asyncssh.SSHKey:
    from asyncssh.eddsa import _Ed25519Key

    return _Ed25519Key.make_private((seed,))


def _public(key: asyncssh.SSHKey) -> bytes:
    return SSHPacket(key.encode_ssh_public()).get_string()


def _seed(key: asyncssh.SSHKey) -> bytes:
    packet = SSHPacket(key.encode_ssh_private())
    packet.get_string()
    return packet.get_string()[:KEY_BYTES]


def _read(path: Path, size: int, *, secret: bool) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(size + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if secret and mode & 0o077:
        raise UserError(f"{path} is a secret that others may read (mode {mode:04o}): run `chmod 600 {path}`")
    if len(data) != size:
        raise UserError(f"{path} has {'more' if len(data) > size else 'less'} than {size} bytes: it is no TinySSH key")
    return data


def _remove(fresh: Path) -> None:
    if fresh.exists():
        for file in fresh.iterdir():
            file.unlink()
        fresh.rmdir()
