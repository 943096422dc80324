"""Server keys that were downloaded and verified, on disk, so that the megabyte travels once for each server.

The data is public; what matters is that nothing wrong comes out, so each file is checked against its hash when read.
"""

import os
import tempfile
from collections import Counter
from pathlib import Path

from pqtun.protocol.base32 import encode
from pqtun.protocol.constants import MCELIECE_PK_BYTES, X25519_BYTES
from pqtun.protocol.keytree import KeyTree, ServerPublicKey

_KEY_BYTES = MCELIECE_PK_BYTES + X25519_BYTES
_SUFFIX = ".key"
_UNFINISHED = ".new-"


class ServerKeyCache:
    """A directory of at most `limit` keys of 1 MB, the least recently used given up first.

    Trouble with the disk is a miss and one of the `counters`, never an exception: the key can be downloaded again.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        if limit < 1:
            raise ValueError("a cache has room for one key at least")
        self.counters: Counter[str] = Counter()
        self._directory = directory
        self._limit = limit

    def _path(self, keyhash: bytes) -> Path:
        return self._directory / f"{encode(keyhash)}{_SUFFIX}"

    def get(self, keyhash: bytes) -> ServerPublicKey | None:
        """The key with this hash (32 bytes), verified; None if there is none. A file that does not fit is removed."""
        path = self._path(keyhash)
        try:
            with open(path, "rb", opener=_open_as_it_is) as file:
                data = file.read(_KEY_BYTES + 1)
        except FileNotFoundError:
            self.counters["misses"] += 1
            return None
        except OSError:
            self.counters["misses"] += 1
            self.counters["read_errors"] += 1
            return None
        if len(data) == _KEY_BYTES:
            key = ServerPublicKey(data[:MCELIECE_PK_BYTES], data[MCELIECE_PK_BYTES:])
            if KeyTree(key).keyhash == keyhash:
                self.counters["hits"] += 1
                self._touch(path)
                return key
        self.counters["misses"] += 1
        self.counters["corrupt"] += 1
        self._remove(path)
        return None

    def put(self, keyhash: bytes, key: ServerPublicKey) -> bool:
        """Keeps a verified key; says whether that worked. Not synced to disk: get() finds what a crash has torn."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=self._directory)
            try:
                with open(descriptor, "wb") as file:
                    file.write(key.mceliece_pk)
                    file.write(key.x25519_pk)
                os.rename(unfinished, self._path(keyhash))
            except OSError:
                self._remove(Path(unfinished))
                raise
        except OSError:
            self.counters["write_errors"] += 1
            return False
        self._evict(self._path(keyhash))
        return True

    def _evict(self, newest: Path) -> None:
        """Brings the directory under its limit and removes what a crash left unfinished."""
        kept: list[tuple[int, Path]] = []
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name.startswith(_UNFINISHED):
                        self._remove(Path(entry.path))
                    elif entry.name.endswith(_SUFFIX) and entry.name != newest.name:
                        kept.append((entry.stat(follow_symlinks=False).st_mtime_ns, Path(entry.path)))
        except OSError:
            self.counters["read_errors"] += 1
        kept.sort()
        for _, path in kept[: max(len(kept) + 1 - self._limit, 0)]:
            self.counters["evicted"] += 1
            self._remove(path)

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:
            self.counters["write_errors"] += 1

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            self.counters["write_errors"] += 1


def _open_as_it_is(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)  # no link is followed, no FIFO waited for
