"""Files and directories from one store to another, as scp(1) and sftp(1) copy them."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pqtun.shell.client.faults import FILE_FAULTS, LOST, CopyFault, is_lost, is_unexplained, reason
from pqtun.shell.client.pipeline import DEPTH, Flow, Throttle, check_beginning, close_quietly, copy
from pqtun.shell.client.printable import printable
from pqtun.shell.client.store import Entry, File, Kind, Store, kind_of

MAX_DEPTH: Final = 64
"""Directories in directories; links that lead back would have no end."""
OWNER_MAY_ALL: Final = 0o700
"""What the owner of a directory may do while it is filled."""

_NEW_FILE: Final = 0o666
_NEW_DIRECTORY: Final = 0o777
_UNSET: Final = "it was copied, but the times and permissions of {} could not be set"
_NO_SPACE_BELOW: Final = 64 << 10  # bytes free when a server's "failure" is taken for a full disk


class ConnectionGone(CopyFault):
    """Nothing more can be copied over this connection."""


class Bar(Protocol):
    """What shows the progress of one file."""

    def update(self, done: int) -> None:
        """So many bytes are there."""

    def close(self) -> None:
        """It has ended."""


class Report(Protocol):
    """What a person sees of a copy."""

    def fault(self, path: bytes, text: str) -> None:
        """Say that a file was not copied, or not whole; the copy goes on with the next."""

    def note(self, text: str) -> None:
        """Say something with -v."""

    def begin(self, name: bytes, total: int, start: int) -> Bar | None:
        """A file of `total` bytes begins, of which `start` are there."""


@dataclass(frozen=True)
class CopySettings:
    """How files are copied. ``block_size`` in bytes: None is what the stores take at most."""

    recursive: bool = False
    preserve: bool = False
    resume: bool = False
    fsync: bool = False
    block_size: int | None = None
    depth: int = DEPTH
    throttle: Throttle | None = None


@dataclass(frozen=True)
class _Place:
    """What is known before something is copied, so that a server far away is not asked for it."""

    depth: int = 0
    entry: Entry | None = None  # what the directory told of it
    empty: bool = False  # nothing is at the target, as we have made the directory


class Copier:
    """Copies from `source` to `target`; what fails is told to `report`, and the rest goes on."""

    def __init__(self, source: Store, target: Store, settings: CopySettings, report: Report) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._report = report
        largest = min(source.block_size, target.block_size)
        block_size = min(settings.block_size or largest, largest)
        self._flow = Flow(block_size, settings.depth, settings.throttle)
        self.faults = 0
        self._into: object = None  # what the directory that is copied to is known by, where it may be in the source
        self._behind: set[asyncio.Task[None]] = set()

    async def copy(self, path: bytes, target: bytes, *, into: bool) -> None:
        """Copy a file or directory to the path `target`, or `into` the directory of that name.

        Raises ConnectionGone when the rest cannot be copied either.
        """
        name = last_component(path)
        if into and name == b"..":
            self._fault(path, "this name leads out of the target")
            return
        await self._copy(path, posixpath.join(target, name) if into and name else target, _Place())

    async def _copy(self, path: bytes, target: bytes, place: _Place) -> None:
        try:
            entry = place.entry
            if entry is None or entry.kind not in (Kind.FILE, Kind.DIRECTORY):
                entry = await self._source.stat(path)
            if entry.kind is Kind.DIRECTORY:
                if not self._settings.recursive:
                    raise CopyFault("is a directory, and -r was not given")
                if place.depth >= MAX_DEPTH:
                    raise CopyFault(f"more than {MAX_DEPTH} directories deep")
                await self._directory(path, target, entry, place)
            elif entry.kind in (Kind.FILE, Kind.UNKNOWN):
                await self._file(path, target, place)
            else:
                raise CopyFault("not a regular file")
        except (*FILE_FAULTS, CopyFault) as error:
            self._fault(path, reason(error))
            if is_lost(error) or isinstance(error, ConnectionGone):
                raise ConnectionGone(LOST) from None

    async def _directory(self, path: bytes, target: bytes, entry: Entry, place: _Place) -> None:
        self._report.note(f"{printable(path)}/ -> {printable(target)}/")
        if place.depth and self._into is not None and await self._source.identity(path) == self._into:
            raise CopyFault("a directory is not copied into itself")
        names = await self._source.names(path)
        permissions = entry.permissions(_NEW_DIRECTORY)
        kind = None if place.empty else await kind_of(self._target, target)
        made = kind is None
        try:
            if made:
                await self._target.make_directory(target, permissions | OWNER_MAY_ALL)
        except FILE_FAULTS as error:
            raise CopyFault(f"cannot make {printable(target)}: {reason(error)}") from error
        if not made and kind is not Kind.DIRECTORY:
            raise CopyFault(f"cannot make {printable(target)}: something that is no directory is there")
        if not place.depth and self._source is self._target:
            self._into = await self._target.identity(target)
        for name, known in names:
            if b"/" in name or b"\0" in name or name in (b"", b".", b".."):
                self._fault(path, f"the server names a file {printable(name)!r} in it, which is not taken")
                continue
            inside = _Place(place.depth + 1, known, empty=made)
            await self._copy(posixpath.join(path, name), posixpath.join(target, name), inside)
        try:
            told = None if entry.mode is None else permissions
            await complete_directory(self._target, target, told, _times(entry), made=made, settings=self._settings)
        except FILE_FAULTS as error:
            raise CopyFault(f"{_UNSET.format(printable(target))}: {reason(error)}") from error

    async def _file(self, path: bytes, target: bytes, place: _Place) -> None:
        source = await self._source.open_source(path)
        written: File | None = None
        try:
            entry = await source.stat()
            if entry.kind not in (Kind.FILE, Kind.UNKNOWN):
                raise CopyFault("not a regular file")
            written = await self._open_target(path, target, entry, place)
            await self._bytes(source, written, path, target, entry)
            if self._settings.preserve:
                try:
                    told = None if entry.mode is None else entry.permissions(_NEW_FILE)
                    await written.set_attributes(told, _times(entry))
                except FILE_FAULTS as error:
                    self._fault(path, f"{_UNSET.format(printable(target))}: {reason(error)}")
            if self._settings.fsync:
                await written.fsync()
            opened, written = written, None
            await self._close(opened, target)
        except asyncio.CancelledError:
            # What is on its way may take its time; who interrupts does not want to wait for it.
            self._leave_behind(close_quietly(source, written))
            raise
        except BaseException:
            await close_quietly(source, written)
            raise
        await close_quietly(source)

    async def _open_target(self, path: bytes, target: bytes, entry: Entry, place: _Place) -> File:
        try:
            kind = None if place.empty else await kind_of(self._target, target)
            if kind is Kind.DIRECTORY:
                raise CopyFault(f"cannot write {printable(target)}: it is a directory")
            if kind is not None and await self._is_source(path, target):
                raise CopyFault(f"{printable(target)} is the same file")
            keep = self._settings.resume and kind is not None
            return await self._target.open_target(target, entry.permissions(_NEW_FILE), keep=keep)
        except FILE_FAULTS as error:
            if is_lost(error):
                raise
            raise CopyFault(f"cannot write {printable(target)}: {reason(error)}") from error

    async def _is_source(self, path: bytes, target: bytes) -> bool:
        """Whether opening the target would empty the source."""
        if self._source is not self._target:
            return False
        return await self._source.identity(path) == await self._target.identity(target)

    async def _bytes(self, source: File, written: File, path: bytes, target: bytes, entry: Entry) -> None:
        start = await self._start(source, written, entry) if self._settings.resume else 0
        self._report.note(f"{printable(path)} -> {printable(target)}")
        bar = self._report.begin(last_component(path), entry.size, start)
        done = start

        def progress(offset: int) -> None:
            nonlocal done
            done = offset
            if bar is not None:
                bar.update(offset)

        try:
            # Files such as those of /proc have no size and yet something to read.
            await copy(source, written, start, entry.size or None, self._flow, progress)
        except FILE_FAULTS as error:
            text = f"{await self._explain(error, target)} after {done} of {entry.size} bytes; {self._remains(target)}"
            raise (ConnectionGone if is_lost(error) else CopyFault)(text) from error
        except CopyFault as error:
            raise CopyFault(f"{error}; {self._remains(target)}") from error
        except asyncio.CancelledError:
            if bar is not None:
                bar.close()
            self._fault(path, f"interrupted after {done} of {entry.size} bytes; {self._remains(target)}")
            raise
        finally:
            if bar is not None:
                bar.close()

    async def _start(self, source: File, written: File, entry: Entry) -> int:
        """Return the offset where a broken transfer goes on."""
        present = (await written.stat()).size
        if present > entry.size:
            raise CopyFault(f"what is there is longer ({present} of {entry.size} bytes): it is no part of it")
        await check_beginning(source, written, present, self._flow.block_size)
        return present

    async def _explain(self, error: BaseException, target: bytes) -> str:
        if is_unexplained(error):
            try:
                free = await self._target.free(posixpath.dirname(target) or b".")
            except FILE_FAULTS:
                free = None
            if free is not None and free < _NO_SPACE_BELOW:
                return "no space left on the server's disk"
        return reason(error)

    @staticmethod
    def _remains(target: bytes) -> str:
        return f"{printable(target)} is not whole (it can be resumed)"

    async def _close(self, file: File, target: bytes) -> None:
        try:
            await file.close()
        except FILE_FAULTS as error:
            raise CopyFault(f"{reason(error)} at the end; {self._remains(target)}") from error

    def _fault(self, path: bytes, text: str) -> None:
        self.faults += 1
        self._report.fault(path, text)

    def _leave_behind(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)


async def complete_directory(
    store: Store,
    path: bytes,
    permissions: int | None,
    times: tuple[float, float] | None,
    *,
    made: bool,
    settings: CopySettings,
) -> None:
    """Give a directory that has been filled the permissions and times of its source, as far as these are told.

    Without -p one that we ``made`` only loses what its owner needed to fill it; the umask has taken the rest.
    """
    wanted = permissions if settings.preserve else None
    if made and wanted is None and permissions is not None and ~permissions & OWNER_MAY_ALL:
        wanted = (await store.stat(path)).permissions(permissions) & permissions
    kept = times if settings.preserve else None
    if wanted is not None or kept is not None:
        await store.set_attributes(path, wanted, kept)


def last_component(path: bytes) -> bytes:
    """Return the name that a copy of a path gets in a directory; of / and what ends in /. none but that directory."""
    name = posixpath.basename(path.rstrip(b"/"))
    return b"" if name == b"." else name


def _times(entry: Entry) -> tuple[float, float] | None:
    return None if entry.mtime is None else (entry.mtime if entry.atime is None else entry.atime, entry.mtime)
