"""Copies over scp's old protocol (``-O``): from a host, to a host, and from one to another through here."""

from __future__ import annotations

import asyncio
import errno
import posixpath
from collections.abc import Sequence
from typing import Final

from pqtun.protocol.errors import MessageError
from pqtun.shell.client import rcp
from pqtun.shell.client.copier import (
    OWNER_MAY_ALL,
    Bar,
    ConnectionGone,
    CopySettings,
    Report,
    complete_directory,
    last_component,
)
from pqtun.shell.client.faults import FILE_FAULTS, LOST, CopyFault, reason
from pqtun.shell.client.globbing import alternatives, matches
from pqtun.shell.client.localstore import LocalStore
from pqtun.shell.client.printable import printable
from pqtun.shell.client.store import PERMISSIONS, Entry, File, Kind, kind_of

MAX_DEPTH: Final = 64


class Expected:
    """The names that the sources of a copy may bring into the target; a server may send any other on its own."""

    def __init__(self, pattern: bytes | None) -> None:
        """`pattern` is the path as it was typed, None if every name is welcome (-T)."""
        paths = None if pattern is None else [pattern, *alternatives(pattern)]
        self._patterns = None if paths is None else [last_component(path) for path in paths]

    def __contains__(self, name: bytes) -> bool:
        """Whether it may come."""
        return self._patterns is None or any(
            name == pattern or matches(pattern, name)  # what a shell finds nothing for, it takes as it is
            for pattern in self._patterns
        )


class Receiver:
    """Writes here what the scp of a host sends."""

    def __init__(self, stream: rcp.Stream, settings: CopySettings, report: Report, expected: Expected) -> None:
        self._stream = stream
        self._settings = settings
        self._report = report
        self._expected = expected
        self._store = LocalStore()
        self._announced = False
        self.faults = 0

    async def receive(self, target: bytes, *, into: bool) -> None:
        """Take all that comes, as the path `target` or `into` that directory. Raises ConnectionGone."""
        try:
            await self._stream.accept()
            await self._level(target, into, 0)
            if await self._stream.finish() and not self.faults:
                self._fault(target, self._stream.said() or "the server's scp failed")
            elif not self._announced and not self.faults:
                self._fault(target, self._stream.said() or "the server sent nothing")
        except MessageError as error:
            self._fault(target, f"the server does not keep to the protocol ({error.reason}); nothing more is taken")
        except rcp.StreamEnded as error:
            self._fault(target, str(error))
            if str(error).startswith(LOST):
                raise ConnectionGone(LOST) from None
        except CopyFault as error:
            self._fault(target, f"{error}; nothing more is taken")

    async def _level(self, target: bytes, into: bool, depth: int) -> None:
        times: tuple[float, float] | None = None
        while (line := await self._stream.line()) is not None:
            coming = rcp.parse(line)
            match coming:
                case rcp.Complaint(text, fatal):
                    self._complain(text)
                    if fatal:
                        return
                case rcp.TimesCome(atime, mtime):
                    times = (float(atime), float(mtime))
                    await self._stream.accept()
                case rcp.DirectoryEnds():
                    if depth == 0:
                        raise MessageError("unexpected_end")
                    await self._stream.accept()
                    return
                case rcp.FileComes() | rcp.DirectoryComes():
                    self._announced = True
                    if depth == 0 and coming.name not in self._expected:
                        raise CopyFault(f"the server sends {printable(coming.name)!r}, which was not asked for")
                    path = posixpath.join(target, coming.name) if into else target
                    if isinstance(coming, rcp.FileComes):
                        await self._file(path, coming, times)
                    else:
                        await self._directory(path, coming, times, depth)
                    times = None
        if depth:
            raise rcp.StreamEnded(self._stream.said() or LOST)

    async def _directory(
        self, path: bytes, coming: rcp.DirectoryComes, times: tuple[float, float] | None, depth: int
    ) -> None:
        if not self._settings.recursive:
            raise CopyFault("the server sends a directory, and -r was not given")
        if depth >= MAX_DEPTH:
            await self._refuse(path, f"more than {MAX_DEPTH} directories deep")
            return
        permissions = coming.permissions & PERMISSIONS
        try:
            kind = await kind_of(self._store, path)
            made = kind is None
            if made:
                await self._store.make_directory(path, permissions | OWNER_MAY_ALL)
            elif kind is not Kind.DIRECTORY:
                raise NotADirectoryError(errno.ENOTDIR, "")
        except OSError as error:
            await self._refuse(path, reason(error))
            return
        await self._stream.accept()
        await self._level(path, True, depth + 1)
        try:
            await complete_directory(self._store, path, permissions, times, made=made, settings=self._settings)
        except OSError as error:
            self._fault(path, reason(error))

    async def _file(self, path: bytes, coming: rcp.FileComes, times: tuple[float, float] | None) -> None:
        permissions = coming.permissions & PERMISSIONS
        try:
            if await kind_of(self._store, path) is Kind.DIRECTORY:
                raise IsADirectoryError(errno.EISDIR, "")
            file = await self._store.open_target(path, permissions, keep=False)
        except OSError as error:
            await self._refuse(path, reason(error))
            return
        bar: Bar | None = None
        done = 0
        failed: OSError | None = None
        try:
            await self._stream.accept()
            bar = self._report.begin(coming.name, coming.size, 0)
            while done < coming.size:
                data = await self._stream.data(min(rcp.BLOCK_SIZE, coming.size - done))
                if self._settings.throttle is not None:
                    await self._settings.throttle.take(len(data))
                try:
                    if failed is None:
                        await file.write(data, done)
                except OSError as error:
                    failed = error  # what comes is passed over, as the protocol has no way to stop it
                done += len(data)
                if bar is not None and failed is None:
                    bar.update(done)
            complaint = await self._stream.answer()
            if failed is None and complaint is None and self._settings.preserve:
                await file.set_attributes(permissions, times)
        except rcp.StreamEnded as error:
            raise rcp.StreamEnded(
                f"{error} after {done} of {coming.size} bytes; {printable(path)} is not whole"
            ) from None
        except OSError as error:
            failed = failed or error
        except asyncio.CancelledError:
            if bar is not None:
                bar.close()
            self._fault(path, f"interrupted after {done} of {coming.size} bytes; it is not whole")
            raise
        finally:
            if bar is not None:
                bar.close()
            await file.close()
        if failed is not None:
            await self._refuse(path, f"{reason(failed)}; it is not whole")
            return
        await self._stream.accept()
        if complaint is not None:
            self._complain(f"{complaint.text}; {printable(path)} is not whole")

    async def _refuse(self, path: bytes, text: str) -> None:
        self._fault(path, text)
        await self._stream.refuse(text)

    def _complain(self, text: str) -> None:
        self.faults += 1
        self._report.fault(b"", text)

    def _fault(self, path: bytes, text: str) -> None:
        self.faults += 1
        self._report.fault(path, text)


class Sender:
    """Sends files from here to the scp of a host."""

    def __init__(self, stream: rcp.Stream, settings: CopySettings, report: Report) -> None:
        self._stream = stream
        self._settings = settings
        self._report = report
        self._store = LocalStore()
        self.faults = 0

    async def send(self, paths: Sequence[bytes]) -> None:
        """Send files and directories, one after the other. Raises ConnectionGone."""
        try:
            if (complaint := await self._stream.answer()) is not None:
                raise CopyFault(complaint.text)
            for path in paths:
                await self._one(path, 0)
            if await self._stream.finish() and not self.faults:
                self._fault(b"", self._stream.said() or "the server's scp failed")
        except rcp.StreamEnded as error:
            self._fault(b"", str(error))
            if str(error).startswith(LOST):
                raise ConnectionGone(LOST) from None
        except CopyFault as error:
            self._fault(b"", str(error))

    async def _one(self, path: bytes, depth: int) -> None:
        try:
            entry = await self._store.stat(path)
            if entry.kind is Kind.DIRECTORY and not self._settings.recursive:
                raise CopyFault("is a directory, and -r was not given")
            if entry.kind not in (Kind.DIRECTORY, Kind.FILE):
                raise CopyFault("not a regular file")
            if b"\n" in last_component(path):
                raise CopyFault("this protocol has no names with line breaks; without -O it can be copied")
            if depth >= MAX_DEPTH:
                raise CopyFault(f"more than {MAX_DEPTH} directories deep")
            await (self._directory(path, entry, depth) if entry.kind is Kind.DIRECTORY else self._file(path))
        except rcp.StreamEnded:
            raise
        except (*FILE_FAULTS, CopyFault) as error:
            self._fault(path, reason(error))

    async def _announce(self, kind: str, entry: Entry, size: int, path: bytes) -> None:
        if self._settings.preserve:
            mtime, atime = int(entry.mtime or 0), int(entry.atime or 0)
            await self._stream.send(f"T{max(mtime, 0)} 0 {max(atime, 0)} 0\n".encode())
            if (complaint := await self._stream.answer()) is not None:
                raise CopyFault(complaint.text)
        name = last_component(path) or b"."
        await self._stream.send(f"{kind}{entry.permissions(0o644):04o} {size} ".encode() + name + b"\n")
        if (complaint := await self._stream.answer()) is not None:
            raise CopyFault(complaint.text)

    async def _directory(self, path: bytes, entry: Entry, depth: int) -> None:
        names = await self._store.names(path)
        await self._announce("D", entry, 0, path)
        for name, _ in names:
            await self._one(posixpath.join(path, name), depth + 1)
        await self._stream.send(b"E\n")
        if (complaint := await self._stream.answer()) is not None:
            raise CopyFault(complaint.text)

    async def _file(self, path: bytes) -> None:
        file = await self._store.open_source(path)
        bar: Bar | None = None
        try:
            entry = await file.stat()
            if entry.kind is not Kind.FILE:
                raise CopyFault("not a regular file")
            await self._announce("C", entry, entry.size, path)
            bar = self._report.begin(last_component(path), entry.size, 0)
            failed = await self._data(file, entry.size, bar)
            if failed is None:
                await self._stream.accept()
            else:
                await self._stream.refuse(failed)
            complaint = await self._stream.answer()
            text = failed or (complaint.text if complaint is not None else None)
            if text is not None:
                raise CopyFault(f"{text}; what is there is not whole")
        finally:
            if bar is not None:
                bar.close()
            await file.close()

    async def _data(self, file: File, size: int, bar: Bar | None) -> str | None:
        """Send what was announced, zeros in place of what cannot be read; return what went wrong."""
        done = 0
        failed: str | None = None
        while done < size:
            wanted = min(rcp.BLOCK_SIZE, size - done)
            data = b""
            if failed is None:
                try:
                    data = await file.read(wanted, done)
                    failed = (
                        None if data else f"it ended after {done} of {size} bytes: something shortened it meanwhile"
                    )
                except OSError as error:
                    failed = reason(error)
            data = data or bytes(wanted)
            if self._settings.throttle is not None:
                await self._settings.throttle.take(len(data))
            await self._stream.send(data)
            done += len(data)
            if bar is not None and failed is None:
                bar.update(done)
        return failed

    def _fault(self, path: bytes, text: str) -> None:
        self.faults += 1
        self._report.fault(path, text)
