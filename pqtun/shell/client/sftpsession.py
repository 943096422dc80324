"""What the commands of `pqtun sftp` do on the server; those that only concern this host are in sftplocal."""

from __future__ import annotations

import posixpath
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import asyncssh

from pqtun.shell.client.copier import ConnectionGone, Copier, CopySettings
from pqtun.shell.client.faults import FILE_FAULTS, CopyFault, is_lost, reason
from pqtun.shell.client.globbing import escape, expand
from pqtun.shell.client.localstore import LocalStore
from pqtun.shell.client.printable import printable
from pqtun.shell.client.remotestore import RemoteStore, entry_of
from pqtun.shell.client.report import TerminalReport
from pqtun.shell.client.sftpline import Command, Word
from pqtun.shell.client.sftplisting import Listed, lines, ordered, space
from pqtun.shell.client.store import Kind, Store, kind_of

_MODES: Final = 0o7777
_NEW_DIRECTORY: Final = 0o777


class Session:
    """A directory on a server, and the commands that work in it. Faults are counted by `report`."""

    def __init__(
        self, store: RemoteStore, home: bytes, settings: CopySettings, report: TerminalReport, *, quiet: bool
    ) -> None:
        """`home` is the absolute path that the server starts in; `quiet`: transfers are not announced."""
        self.store = store
        self.home = self.directory = home
        self._settings = settings
        self._report = report
        self._quiet = quiet
        self._local = LocalStore()
        self._commands: dict[str, Callable[[Command], Awaitable[None]]] = {
            "cd": self._cd,
            "chgrp": self._chown,
            "chmod": self._chmod,
            "chown": self._chown,
            "cp": self._cp,
            "df": self._df,
            "get": self._get,
            "ln": self._ln,
            "ls": self._ls,
            "mkdir": self._mkdir,
            "put": self._put,
            "pwd": self._pwd,
            "reget": self._get,
            "rename": self._rename,
            "reput": self._put,
            "rm": self._rm,
            "rmdir": self._rmdir,
            "symlink": self._ln,
            "version": self._version,
        }

    async def run(self, command: Command) -> bool:
        """Run a command; whether all of it succeeded. What the server refuses is reported, a lost connection raised."""
        return await self._told(command.name, self._commands[command.name](command))

    async def _told(self, about: str, doing: Awaitable[None]) -> bool:
        before = self._report.faults
        try:
            await doing
        except ConnectionGone:
            raise
        except CopyFault as error:
            self._report.fault(b"", str(error))
        except FILE_FAULTS as error:
            if is_lost(error):
                raise
            self._report.fault(b"", f"{about}: {reason(error)}")
        return self._report.faults == before

    def path(self, name: bytes) -> bytes:
        """Return the absolute path of a name there."""
        return posixpath.join(self.directory, name)

    async def open_path(self, name: bytes, local: bytes | None) -> bool | None:
        """Take the path of the command line: start there if it is a directory (None), else fetch it (success)."""
        path = self.path(name)
        starts_there = False

        async def start_or_fetch() -> None:
            nonlocal starts_there
            if await kind_of(self.store, path) is Kind.DIRECTORY:
                await self._change(path)
                starts_there = True
            else:
                await self._fetch(self._pattern(name), local, self._settings)

        good = await self._told(printable(name), start_or_fetch())
        return None if starts_there else good

    # -- where ---------------------------------------------------------------------------------------

    async def _cd(self, command: Command) -> None:
        if not command.words:
            self.directory = self.home
            return
        found = await self._matching(command.words[0])
        if len(found) != 1:
            raise CopyFault("cd: several directories fit")
        await self._about(found[0], self._change(found[0]))

    async def _change(self, path: bytes) -> None:
        real = await self.store.sftp.realpath(path)
        assert isinstance(real, bytes)
        kind = await kind_of(self.store, real)
        if kind is None:
            raise CopyFault("No such file or directory")
        if kind not in (Kind.DIRECTORY, Kind.UNKNOWN):
            raise CopyFault("Not a directory")
        self.directory = real

    async def _pwd(self, command: Command) -> None:
        self._say(f"Remote working directory: {printable(self.directory)}")

    async def _version(self, command: Command) -> None:
        self._say(f"SFTP protocol version {self.store.sftp.version}")

    # -- listings ------------------------------------------------------------------------------------

    async def _ls(self, command: Command) -> None:
        files: list[Listed]
        found = await self._matching(command.words[0]) if command.words else [self.directory]
        if not command.words or (len(found) == 1 and await kind_of(self.store, found[0]) is Kind.DIRECTORY):
            # As with ls(1), names are shown as they would be typed from here.
            prefix = b"" if not command.words else self._shown(found[0], command.words[0])
            listing = await self.store.listing(found[0], dots="a" in command.flags)
            files = [
                Listed(posixpath.join(prefix, name), entry_of(attributes), longname)
                for name, longname, attributes in listing
                if "a" in command.flags or not name.startswith(b".")
            ]
        else:
            files = [
                Listed(self._shown(one, command.words[0]), await self.store.stat(one, follow=False)) for one in found
            ]
        width = shutil.get_terminal_size().columns
        for line in lines(ordered(files, command.flags), command.flags, width, time.time()):
            self._say(line)

    def _shown(self, path: bytes, word: Word) -> bytes:
        if word.pattern.startswith(b"/"):
            return path
        return posixpath.relpath(path, self.directory) if path.startswith(b"/") else path

    async def _df(self, command: Command) -> None:
        path = self.path(command.words[0].text) if command.words else self.directory
        status = await self.store.sftp.statvfs(path)
        if "i" in command.flags:
            figures = (status.files, status.files - status.ffree, status.favail)
        else:
            figures = (status.blocks, status.blocks - status.bfree, status.bavail)
        readable = "h" in command.flags
        for line in space(*figures, status.frsize or status.bsize, readable=readable, inodes="i" in command.flags):
            self._say(line)

    # -- transfers -----------------------------------------------------------------------------------

    async def _get(self, command: Command) -> None:
        local = command.words[1].text if len(command.words) > 1 else None
        await self._fetch(self._pattern(command.words[0].pattern), local, self._for(command))

    async def _fetch(self, pattern: bytes, local: bytes | None, settings: CopySettings) -> None:
        found = await self._expanded(pattern)
        await self._transfer(self.store, found, self._local, local or b".", settings, "Fetching")

    async def _put(self, command: Command) -> None:
        pattern = command.words[0].pattern
        found = await expand(pattern, self._local_names, self._local_exists)
        if not found:
            raise CopyFault(f"{printable(command.words[0].text)}: No such file or directory")
        target = self.path(command.words[1].text) if len(command.words) > 1 else self.directory
        await self._transfer(self._local, found, self.store, target, self._for(command), "Uploading")

    def _for(self, command: Command) -> CopySettings:
        flags = command.flags
        return replace(
            self._settings,
            recursive=self._settings.recursive or bool(flags & {"r", "R"}),
            preserve=self._settings.preserve or bool(flags & {"p", "P"}),
            resume=self._settings.resume or "a" in flags or command.name in ("reget", "reput"),
            fsync=self._settings.fsync or "f" in flags,
        )

    async def _transfer(
        self, source: Store, paths: Sequence[bytes], target: Store, path: bytes, settings: CopySettings, verb: str
    ) -> None:
        into = await kind_of(target, path) is Kind.DIRECTORY
        if len(paths) > 1 and not into:
            raise CopyFault(f"{printable(path)} is no directory for {len(paths)} files")
        copier = Copier(source, target, settings, self._report)
        for one in paths:
            if not self._quiet:
                end = posixpath.join(path, posixpath.basename(one.rstrip(b"/"))) if into else path
                self._say(f"{verb} {printable(one)} to {printable(posixpath.normpath(end))}")
            await copier.copy(one, path, into=into)

    async def _local_names(self, path: bytes) -> list[bytes]:
        try:
            return [name for name, _ in await self._local.names(path)]
        except OSError:
            return []

    async def _local_exists(self, path: bytes) -> bool:
        try:
            await self._local.stat(path, follow=False)
        except OSError:
            return False
        return True

    # -- changes -------------------------------------------------------------------------------------

    async def _mkdir(self, command: Command) -> None:
        path = self.path(command.words[0].text)
        await self._about(path, self.store.make_directory(path, _NEW_DIRECTORY))

    async def _rmdir(self, command: Command) -> None:
        path = self.path(command.words[0].text)
        await self._about(path, self.store.sftp.rmdir(path))

    async def _rm(self, command: Command) -> None:
        for path in await self._matching(command.words[0]):
            if not self._quiet:
                self._say(f"Removing {printable(path)}")
            await self._about(path, self.store.sftp.remove(path))

    async def _rename(self, command: Command) -> None:
        old, new = (self.path(word.text) for word in command.words)
        sftp = self.store.sftp
        if "l" in command.flags:
            await self._about(old, sftp.rename(old, new))
            return
        try:
            await sftp.posix_rename(old, new)
        except asyncssh.SFTPOpUnsupported:
            await self._about(old, sftp.rename(old, new))
        except asyncssh.SFTPError as error:
            raise CopyFault(f"{printable(old)}: {reason(error)}") from error

    async def _ln(self, command: Command) -> None:
        old, new = command.words[0].text, self.path(command.words[1].text)
        if command.name == "symlink" or "s" in command.flags:
            await self._about(new, self.store.sftp.symlink(old, new))
        else:
            await self._about(new, self.store.sftp.link(self.path(old), new))

    async def _cp(self, command: Command) -> None:
        old, new = (self.path(word.text) for word in command.words)
        if await kind_of(self.store, new) is Kind.DIRECTORY:
            new = posixpath.join(new, posixpath.basename(old))
        entry = await self.store.stat(old)
        if entry.kind not in (Kind.FILE, Kind.UNKNOWN):
            raise CopyFault(f"{printable(old)}: not a regular file")
        if await self.store.exists(new) and await self.store.identity(old) == await self.store.identity(new):
            raise CopyFault(f"{printable(new)} is the same file")
        if self.store.sftp.supports_remote_copy:
            source = await self.store.sftp.open(old, asyncssh.FXF_READ, encoding=None, block_size=0)
            async with source:
                how = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC
                attributes = asyncssh.SFTPAttrs(permissions=entry.permissions(0o666))
                async with await self.store.sftp.open(new, how, attributes, encoding=None, block_size=0) as target:
                    await self._about(new, self.store.sftp.remote_copy(source, target))
        else:
            await Copier(self.store, self.store, self._settings, self._report).copy(old, new, into=False)

    async def _chmod(self, command: Command) -> None:
        text = command.words[0].text
        if not text or text.strip(b"01234567") or int(text, 8) > _MODES:
            raise CopyFault(f"chmod: {printable(text)} is no mode in octal digits")
        follow = "h" not in command.flags
        for path in await self._matching(command.words[1]):
            await self._about(path, self.store.sftp.chmod(path, int(text, 8), follow_symlinks=follow))

    async def _chown(self, command: Command) -> None:
        text = command.words[0].text
        if not text.isdigit() or int(text) > 0xFFFFFFFF:
            raise CopyFault(f"{command.name}: {printable(text)} is no number of a user or group")
        follow = "h" not in command.flags
        for path in await self._matching(command.words[1]):
            await self._about(path, self._give(path, int(text), command.name == "chgrp", follow))

    async def _give(self, path: bytes, number: int, to_group: bool, follow: bool) -> None:
        entry = await self.store.stat(path, follow=follow)
        if entry.uid is None or entry.gid is None:
            raise CopyFault("the server does not tell who has it")
        uid, gid = (entry.uid, number) if to_group else (number, entry.gid)
        await self.store.sftp.chown(path, uid, gid, follow_symlinks=follow)

    # -- what they share -----------------------------------------------------------------------------

    async def _matching(self, word: Word) -> list[bytes]:
        return await self._expanded(self._pattern(word.pattern))

    def _pattern(self, pattern: bytes) -> bytes:
        return posixpath.join(escape(self.directory), pattern)

    async def _expanded(self, pattern: bytes) -> list[bytes]:
        """Return the paths that a pattern stands for, at least one. Raises CopyFault."""
        found = await expand(pattern, self.store.path_names, self.store.exists)
        if not found:
            raise CopyFault(f"{printable(Word(pattern, 0).text)}: No such file or directory")
        return found

    async def _about(self, path: bytes, doing: Awaitable[object]) -> None:
        """Await something on a path; what is refused is reported with its name."""
        try:
            await doing
        except (*FILE_FAULTS, CopyFault) as error:
            if is_lost(error):
                raise
            self._report.fault(path, reason(error))

    def _say(self, line: str) -> None:
        self._report.say(line)
