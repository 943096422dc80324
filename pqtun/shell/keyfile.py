"""Private and public keys and certificates in files, in OpenSSH's format and with its rules.

Sources: OpenSSH's PROTOCOL.key, ssh-keygen(1), ssh(1). `ssh.prepare` comes first, so that every key type is known.
"""

import os
import stat
from base64 import b64decode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

import asyncssh
from asyncssh.packet import PacketDecodeError, SSHPacket

from pqtun.protocol.errors import UserError

MAX_FILE_BYTES: Final = 1 << 20
"""No file of keys is longer (as in OpenSSH)."""

PASSPHRASE_TRIES: Final = 3
"""How often a person is asked (as in OpenSSH)."""

CIPHER: Final = "aes256-ctr"
ROUNDS: Final = 24
"""Of bcrypt, for a passphrase: OpenSSH 10's number; 0.15 s."""

Passphrase = Callable[[Path], str]
"""Asks for the passphrase of a file; "" gives up."""

_MAGIC: Final = b"openssh-key-v1\0"
_ARMOUR: Final = (b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----")
_OTHERS: Final = 0o077
_TYPE_NAMES: Final = {
    "ssh-mldsa44-ed25519": ("MLDSA44-ED25519", 512),
    "ssh-ed25519": ("ED25519", 256),
    "sk-ssh-ed25519@openssh.com": ("ED25519-SK", 256),
    "sk-ecdsa-sha2-nistp256@openssh.com": ("ECDSA-SK", 256),
    "ssh-ed448": ("ED448", 456),
    "ssh-rsa": ("RSA", 0),  # 0: of many sizes
    "ssh-dss": ("DSA", 0),
}


class EncryptedError(UserError):
    """A private key is encrypted, and there is nobody to ask or no passphrase was given."""


class ExistsError(UserError):
    """A file is in the place of one that was to be written."""


# --- reading ---


def load_private(path: Path, passphrase: Passphrase | None = None) -> asyncssh.SSHKey:
    """The private key in a file of any format that asyncssh reads.

    `passphrase` is called if the file is encrypted, up to three times. EncryptedError if it is None or gives up,
    UserError if the file cannot be read, may be read by others, holds no private key, or the passphrase is wrong.
    """
    data = _read(path, secret=True)
    if not is_encrypted(data):
        return _import_private(path, data, None)
    if passphrase is None:
        raise EncryptedError(f"{path} is encrypted: its passphrase is needed")
    for _ in range(PASSPHRASE_TRIES):
        text = passphrase(path)
        if not text:
            raise EncryptedError(f"{path} is encrypted, and no passphrase was given")
        try:
            return _import_private(path, data, text)
        except asyncssh.KeyEncryptionError:
            continue
    raise UserError(f"wrong passphrase for {path}, or its encryption is one that pqtun does not know")


def _import_private(path: Path, data: bytes, passphrase: str | None) -> asyncssh.SSHKey:
    try:
        key = asyncssh.import_private_key(data, passphrase)
        outer = _clear_public_key(data)
    except asyncssh.KeyEncryptionError:
        raise
    except (ValueError, TypeError, OverflowError):  # what asyncssh's decoders raise, with texts about no one's file
        raise UserError(f"{path} does not hold a private key in a format that pqtun reads") from None
    if outer is not None and outer.public_data != key.public_data:
        raise UserError(f"{path} is damaged: its public part belongs to another key")
    key.set_filename(path)
    return key


def is_encrypted(data: bytes) -> bool:
    """Whether a private key file says that it is encrypted. False for what is no private key file."""
    blob = _openssh_blob(data)
    if blob is None:
        return b"ENCRYPTED" in data
    try:
        return SSHPacket(blob[len(_MAGIC) :]).get_string() != b"none"
    except PacketDecodeError:
        return False


def load_public(path: Path) -> asyncssh.SSHKey:
    """The public key in a public key file, or that of a private key file, for which no passphrase is needed.

    Where only NAME.pub can tell, as for an encrypted file in an old format, that is read. UserError.
    """
    data = _read(path, secret=False)
    try:
        key = _clear_public_key(data)
        if key is None and b"PRIVATE KEY-----" in data:
            key = load_public(beside(path)) if is_encrypted(data) else asyncssh.import_private_key(data)
        if key is None:
            key = asyncssh.import_public_key(data)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{path} does not hold a key in a format that pqtun reads") from None
    if not key.has_comment() and path.suffix != ".pub":
        with suppress(UserError, OSError):
            known = load_public(beside(path))
            if known.public_data == key.public_data:
                key.set_comment(known.get_comment_bytes())
    return key


def load_certificate(path: Path) -> asyncssh.SSHCertificate:
    """The certificate in a file. UserError if there is none, or its signature is wrong."""
    try:
        return asyncssh.import_certificate(_read(path, secret=False))
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{path} does not hold a certificate in a format that pqtun reads") from None


def _read(path: Path, *, secret: bool) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                raise UserError(f"{path} is a directory: name a key file")
            if secret and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & _OTHERS:
                raise UserError(
                    f"{path} is a private key that others may read (mode {stat.S_IMODE(status.st_mode):04o}): "
                    f"run `chmod 600 {path}`, and make a new key if somebody did"
                )
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path} is too long for a key file")
    return data


def _openssh_blob(data: bytes) -> bytes | None:
    begin, end = _ARMOUR
    start = data.find(begin)
    stop = data.find(end, start)
    if start < 0 or stop < 0:
        return None
    try:
        blob = b64decode(data[start + len(begin) : stop])
    except ValueError:
        return None
    return blob if blob.startswith(_MAGIC) else None


def _clear_public_key(data: bytes) -> asyncssh.SSHKey | None:
    """The public key that stands unencrypted in a private key file of OpenSSH's format; None for other files.

    ValueError if it is none.
    """
    return None if _openssh_blob(data) is None else asyncssh.import_public_key(data)


# --- writing ---


def beside(path: Path, suffix: str = ".pub") -> Path:
    """Where the public key (`.pub`) or the certificate (`-cert.pub`) of a private key is. UserError for no file."""
    check_name(path)
    name = path.name.removesuffix(".pub") if suffix != ".pub" else path.name
    return path.with_name(name + suffix)


def check_name(path: Path) -> None:
    """UserError for what cannot be a file's name: "", ".", "..", "/"."""
    if path.name in ("", "..") or "\0" in str(path):
        raise UserError(f"{printable(str(path))!r} is no name of a file: give another one")


def export_private(key: asyncssh.SSHKey, passphrase: str = "", rounds: int = ROUNDS) -> bytes:
    """A private key in OpenSSH's format, encrypted unless the passphrase is empty."""
    return key.export_private_key(
        passphrase=passphrase or None, cipher_name=CIPHER, rounds=rounds, ignore_few_rounds=True
    )


def save_private(
    path: Path, key: asyncssh.SSHKey, passphrase: str = "", *, replace: bool = False, rounds: int = ROUNDS
) -> None:
    """Writes a private key, mode 600. ExistsError if there is a file and not `replace`; UserError."""
    write(path, export_private(key, passphrase, rounds), 0o600, replace)


def save_public(path: Path, key: asyncssh.SSHKey, *, replace: bool = False) -> None:
    """Writes a public key with its comment, mode 644. ExistsError if there is a file and not `replace`; UserError."""
    write(path, key.export_public_key(), 0o644, replace)


def save_pair(
    path: Path, key: asyncssh.SSHKey, passphrase: str = "", *, replace: bool = False, rounds: int = ROUNDS
) -> None:
    """Writes a private key and, beside it, its public key. ExistsError, before anything is written; UserError."""
    public = beside(path)
    if not replace and os.path.lexists(public):
        raise ExistsError(f"{public} already exists: choose another name, or remove it first")
    save_private(path, key, passphrase, replace=replace, rounds=rounds)
    save_public(public, key, replace=replace)


def save_certificate(path: Path, certificate: asyncssh.SSHCertificate) -> None:
    """Writes a certificate, mode 644, in the place of an earlier one. UserError."""
    write(path, certificate.export_certificate(), 0o644, replace=True)


def write(path: Path, data: bytes, mode: int, replace: bool) -> None:
    """Writes a file elsewhere, syncs it, then takes the place at once: a crash leaves no half of it.

    ExistsError if there is a file and not `replace`; UserError. Nobody else may read the file before `mode` is set.
    """
    check_name(path)
    fresh = path.with_name(f".{path.name}.new-{token_hex(8)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            if replace:
                os.rename(fresh, path)
            else:
                os.link(fresh, path)  # which, unlike a rename, never replaces
        finally:
            fresh.unlink(missing_ok=True)
    except FileExistsError:
        raise ExistsError(f"{path} already exists: choose another name, or remove it first") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


# --- showing ---


def type_name(key: asyncssh.SSHKey) -> tuple[str, int]:
    """What ssh-keygen calls a key's type, and its size in bits."""
    name, bits = _TYPE_NAMES.get(key.get_algorithm(), ("ECDSA", 0))
    return name, bits or key.pyca_key.key_size  # type: ignore[union-attr]  # what has no size of its own is above


def fingerprint(key: asyncssh.SSHKey, hash_name: str = "sha256") -> str:
    """One line as `ssh-keygen -l` prints it: bits, fingerprint, comment, type."""
    name, bits = type_name(key)
    return f"{bits} {key.get_fingerprint(hash_name)} {comment(key) or 'no comment'} ({name})"


def comment(key: asyncssh.SSHKey | asyncssh.SSHCertificate) -> str:
    """The comment, fit for a terminal; "" if there is none."""
    return printable((key.get_comment_bytes() or b"").decode(errors="replace")) if key.has_comment() else ""


def fingerprints(path: Path, hash_name: str = "sha256") -> list[str]:
    """The lines of `ssh-keygen -l -f`: of a key file of either kind, or of each line of a file with one key a line.

    Such are authorized_keys, known_hosts and certificates. UserError if no key is in it.
    """
    data = _read(path, secret=False)
    lines = []
    if b"PRIVATE KEY-----" not in data:
        lines = [line for text in data.splitlines() if (line := _of_line(text, hash_name))]
    return lines or [fingerprint(load_public(path), hash_name)]


def _of_line(line: bytes, hash_name: str) -> str | None:
    """The fingerprint of the key in a line, whatever options or host names stand before it."""
    words = line.split()
    for place in range(len(words) - 1):
        rest = b" ".join(words[place:])
        with suppress(ValueError):
            return fingerprint(asyncssh.import_public_key(rest), hash_name)
        with suppress(ValueError):
            certificate = asyncssh.import_certificate(rest)
            certificate.key.set_comment(certificate.get_comment_bytes())
            return fingerprint(certificate.key, hash_name).removesuffix(")") + "-CERT)"
    return None


def printable(text: str) -> str:
    """Text of a file's, with what is not printable escaped, as it goes to a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
