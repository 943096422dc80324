"""The directory of a server's long-term key, in PQConnect's format: five files of raw bytes.

A privileged parent opens the files, an unprivileged worker reads them from the descriptors: hence open_key_files() and
KeyFiles.load() are two steps.
"""

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pqtun.protocol.constants import KEY_BYTES, MCELIECE_PK_BYTES, MCELIECE_SK_BYTES, X25519_BYTES
from pqtun.protocol.errors import MessageError, UserError
from pqtun.protocol.handshake import ServerSecretKey
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from pqtun.protocol.primitives import skem_dec, skem_enc, skem_keypair, x25519_keypair, x25519_public

SIZES: Final[Mapping[str, int]] = {
    "mceliece_pk": MCELIECE_PK_BYTES,
    "mceliece_sk": MCELIECE_SK_BYTES,
    "x25519_pk": X25519_BYTES,
    "x25519_sk": X25519_BYTES,
    "session_key": KEY_BYTES,
}
"""File names and their sizes in bytes."""

PUBLIC: Final = ("mceliece_pk", "x25519_pk")
"""The files that hold no secret."""

_RESTORE: Final = "restore it from a backup, or make a new key with `pqtun keygen --force`"

_RENAME_EXCHANGE: Final = 2  # renameat2(2)
_AT_FDCWD: Final = -100  # <linux/fcntl.h>

# A mount point, a lower layer of an overlay, a file system that cannot exchange, a parent directory of someone else's.
_NOT_AS_A_WHOLE: Final = {errno.EBUSY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class LongTermKey:
    """A server's long-term key: both halves, the key for cookies (32 bytes) and the key hash (32 bytes)."""

    secret: ServerSecretKey = field(repr=False)
    public: ServerPublicKey
    session_key: bytes = field(repr=False)
    keyhash: bytes


# --- making ---


def generate(path: Path, *, force: bool = False) -> bytes:
    """Makes a new key in the directory `path` and returns its hash (32 bytes).

    Secret files have mode 0600, the directory 0700. Everything is written elsewhere and synced first, then takes its
    place at once; other files in the directory stay.
    Raises UserError if there is a key already (unless `force`), if there are other files without a key, if the
    directory cannot be written, or if another file cannot be moved to the new directory.
    """
    path = Path(os.path.realpath(path))
    try:
        return _generate(path, force)
    except OSError as error:
        advice = "run as root, or choose a directory of your own with --keys"
        raise UserError(f"cannot write a key to {path}: {error.strerror}: {advice}") from None


def _generate(path: Path, force: bool) -> bytes:
    present = set(os.listdir(path)) if path.exists() else set()
    if not force:
        if present & SIZES.keys():
            raise UserError(f"{path} holds a key already: use it, or replace it for good with --force")
        if present:
            raise UserError(f"{path} is not empty: choose a directory for the key alone")
    mceliece_pk, mceliece_sk = skem_keypair()
    x25519_pk, x25519_sk = x25519_keypair()
    public = ServerPublicKey(mceliece_pk, x25519_pk)
    contents = {
        "mceliece_pk": mceliece_pk,
        "mceliece_sk": mceliece_sk,
        "x25519_pk": x25519_pk,
        "x25519_sk": bytes(x25519_sk),
        "session_key": secrets.token_bytes(KEY_BYTES),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace_directory(path, contents)
    except OSError as error:
        if error.errno not in _NOT_AS_A_WHOLE or not path.is_dir():
            raise
        _replace_files(path, contents)
    return KeyTree(public).keyhash


def _replace_directory(path: Path, contents: Mapping[str, bytes]) -> None:
    """Builds a whole new directory beside the old one, then exchanges the two: a crash leaves one of them, complete."""
    fresh = path.with_name(f".{path.name}.new-{secrets.token_hex(8)}")
    os.mkdir(fresh, 0o700)
    try:
        os.chmod(fresh, 0o700)  # whatever the umask
        for name, data in contents.items():
            _write(fresh / name, name, data)
        if path.exists() and os.listdir(path):
            sync_directory(fresh)
            _exchange(fresh, path)
            _move_others(fresh, path)
        else:
            sync_directory(fresh)
            os.rename(fresh, path)
        sync_directory(path.parent)
    finally:
        _remove(fresh)


def _move_others(old: Path, path: Path) -> None:
    for name in sorted(set(os.listdir(old)) - SIZES.keys()):
        try:
            os.rename(old / name, path / name)
        except OSError as error:  # another file system is mounted there
            raise UserError(
                f"the new key is in {path}, but {name} stays in {old}: {error.strerror}: move it back yourself"
            ) from None


def _remove(directory: Path) -> None:
    """Removes the key files and the directory, unless there is something of somebody's in it."""
    with suppress(OSError):
        for name in SIZES:
            (directory / name).unlink(missing_ok=True)
        directory.rmdir()


def _replace_files(path: Path, contents: Mapping[str, bytes]) -> None:
    """For a directory that must stay where it is. KeyFiles.load() finds it if a crash left half of each key."""
    os.chmod(path, 0o700)
    unfinished: dict[str, Path] = {}
    try:
        for name, data in contents.items():
            unfinished[name] = path / f".{name}.new-{secrets.token_hex(8)}"
            _write(unfinished[name], name, data)
        for name, file in unfinished.items():
            os.rename(file, path / name)
        sync_directory(path)
    finally:
        for file in unfinished.values():
            file.unlink(missing_ok=True)


def _write(path: Path, name: str, data: bytes) -> None:
    """Writes one file that nobody else can open before its mode is final, and syncs it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, 0o644 if name in PUBLIC else 0o600)
        os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Have the names in it on the disk (fsync(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Exchanges two directories atomically: renameat2(2) with RENAME_EXCHANGE, which Python has no call for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


# --- reading ---


class KeyFiles:
    """Open descriptors of the five files. The object owns them; `descriptors` shows them to who passes them on."""

    def __init__(self, path: Path, descriptors: Mapping[str, int]) -> None:
        """`descriptors` maps each name of SIZES to an open descriptor; `path` is for error messages."""
        self.path = path
        self.descriptors = dict(descriptors)

    def __repr__(self) -> str:
        return f"KeyFiles({str(self.path)!r})"

    def close(self) -> None:
        """Closes the descriptors. May be called again."""
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])

    def load(self) -> LongTermKey:
        """Reads and checks everything; the files stay open. Raises UserError, naming the file."""
        data = {name: _read(self.path / name, self.descriptors[name], size) for name, size in SIZES.items()}
        self._check_x25519(data["x25519_pk"], data["x25519_sk"])
        self._check_mceliece(data["mceliece_pk"], data["mceliece_sk"])
        public = ServerPublicKey(data["mceliece_pk"], data["x25519_pk"])
        secret = ServerSecretKey(data["mceliece_sk"], data["x25519_sk"])
        return LongTermKey(secret, public, data["session_key"], KeyTree(public).keyhash)

    def _check_x25519(self, public: bytes, secret: bytes) -> None:
        if x25519_public(secret) == public:
            return
        if x25519_public(public) == secret:
            raise UserError(
                f"{self.path / 'x25519_pk'} and {self.path / 'x25519_sk'} are swapped: exchange the two, "
                "and make new keys if anybody else could read the secret one"
            )
        raise self._mismatch("x25519_pk", "x25519_sk")

    def _check_mceliece(self, public: bytes, secret: bytes) -> None:
        try:
            ciphertext, key = skem_enc(public)
            fits = skem_dec(ciphertext, secret) == key
        except MessageError:
            fits = False
        if not fits:
            raise self._mismatch("mceliece_pk", "mceliece_sk")

    def _mismatch(self, public: str, secret: str) -> UserError:
        return UserError(
            f"{self.path / public} does not belong to {self.path / secret}: "
            "restore both from one backup, or make a new key with `pqtun keygen --force`"
        )


def open_key_files(path: Path) -> KeyFiles:
    """Opens the five files of a key directory; checks kind, mode and size. Raises UserError, naming the file."""
    descriptors: dict[str, int] = {}
    try:
        for name in SIZES:
            descriptors[name] = _open(path, name)
    except UserError:
        KeyFiles(path, descriptors).close()
        raise
    return KeyFiles(path, descriptors)


def load_public(path: Path) -> ServerPublicKey:
    """Reads the public key alone, for which no secret file is needed. Raises UserError, naming the file."""
    data: dict[str, bytes] = {}
    for name in PUBLIC:
        descriptor = _open(path, name)
        try:
            data[name] = _read(path / name, descriptor, SIZES[name])
        finally:
            os.close(descriptor)
    return ServerPublicKey(data["mceliece_pk"], data["x25519_pk"])


def _open(directory: Path, name: str) -> int:
    path = directory / name
    try:
        # Not blocking, lest a FIFO in its place hangs the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _cannot_open(directory, path, error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file: put the key file itself there")
        if name not in PUBLIC and status.st_mode & 0o077:
            raise UserError(
                f"{path} is a secret that others may read (mode {stat.S_IMODE(status.st_mode):04o}): "
                f"run `chmod 600 {path}`, and make new keys if somebody did"
            )
        _check_size(path, status.st_size, SIZES[name])
    except UserError:
        os.close(descriptor)
        raise
    return descriptor


def _cannot_open(directory: Path, path: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if not directory.is_dir():
            return UserError(
                f"there is no key directory {directory}: make a key with `pqtun keygen --keys {directory}`"
            )
        return UserError(f"{path} is missing: {_RESTORE}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(f"{path} cannot be read: permission denied: run as root, or as the owner of the file")
    return UserError(f"{path} cannot be read: {error.strerror}")


def _check_size(path: Path, found: int, wanted: int) -> None:
    if found == wanted:
        return
    others = [name for name, size in SIZES.items() if size == found]
    hint = f"it looks like {others[0]}: were files swapped?" if others else _RESTORE
    size = "short" if found < wanted else "long"
    raise UserError(f"{path} is too {size}: {found} bytes instead of {wanted}: {hint}")


def _read(path: Path, descriptor: int, size: int) -> bytes:
    """Reads from the start, whatever the descriptor's position (it may be shared with another process)."""
    data = b""
    try:
        while len(data) <= size and (piece := os.pread(descriptor, size + 1 - len(data), len(data))):
            data += piece
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    _check_size(path, len(data), size)
    return data
