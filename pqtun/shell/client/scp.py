"""``pqtun scp``: its command line, and which files go where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client import copyflags, rcp
from pqtun.shell.client.connections import Connections
from pqtun.shell.client.copier import ConnectionGone, Copier, CopySettings
from pqtun.shell.client.copyflags import CopyFlags
from pqtun.shell.client.faults import FILE_FAULTS, reason
from pqtun.shell.client.globbing import alternatives, expand, is_pattern, unescape
from pqtun.shell.client.localstore import LocalStore
from pqtun.shell.client.location import Location, parse
from pqtun.shell.client.options import UsageError
from pqtun.shell.client.pipeline import Throttle
from pqtun.shell.client.rcpcopier import Expected, Receiver, Sender
from pqtun.shell.client.rcprelay import Relay
from pqtun.shell.client.remotestore import RemoteStore
from pqtun.shell.client.report import TerminalReport
from pqtun.shell.client.store import Kind, Store, kind_of

USAGE: Final = """\
usage: pqtun scp [-346ABCOpqrTv] [--direct] [--resume] [-c cipher_spec]
                 [-F ssh_config] [-i identity_file] [-J destination] [-l limit]
                 [-o ssh_option] [-P port] [-X sftp_option] source ... target

The flags are those of scp(1). Hosts must be reached through a tunnel, except:
  --direct      go to a host without a tunnel; ~/.ssh/known_hosts tells its key
  --resume      go on with files of which a beginning is there"""

_WITH_ARGUMENT: Final = "cFiJloPXD"


@dataclass
class ScpCommand(CopyFlags):
    """A command line of scp."""

    sources: list[Location] = field(default_factory=list)
    target: Location = Location(None, b"")  # noqa: RUF009  # frozen
    old_protocol: bool = False
    any_name: bool = False  # -T
    resume: bool = False


def parse_command(arguments: Sequence[str]) -> ScpCommand:
    """Read the arguments of ``pqtun scp``. Raises UsageError, and UserError for a location that is none."""
    command = ScpCommand()

    def short(letter: str, value: str | None) -> bool:
        if letter == "O":
            command.old_protocol = True
        elif letter == "T":
            command.any_name = True
        elif letter == "B":
            command.batch = True
        elif letter == "D":
            command.server = value
        else:
            # 3 and s: what is done anyway, as copies between hosts go through here, over SFTP.
            return letter in "3s" or command.take(letter, value)
        return True

    def long(word: str) -> bool:
        command.resume |= word == "--resume"
        return word == "--resume" or command.take_word(word)

    words = copyflags.read(arguments, _WITH_ARGUMENT, short, long)
    if command.help:
        return command
    if len(words) < 2:
        raise UsageError("name a source and a target: pqtun scp [options] [user@]host:path path")
    if command.old_protocol and command.resume:
        raise UsageError("--resume needs SFTP: the old protocol (-O) cannot go on with a file")
    *command.sources, command.target = (parse(word) for word in words)
    return command


class Scp:
    """Runs one command. Faults are told to `report`, which counts them."""

    def __init__(self, command: ScpCommand, connections: Connections, report: TerminalReport) -> None:
        self._command = command
        self._connections = connections
        self._report = report
        self._local = LocalStore()
        self._settings = CopySettings(
            recursive=command.recursive,
            preserve=command.preserve,
            resume=command.resume,
            block_size=command.block_size,
            depth=command.depth,
            throttle=None if command.limit is None else Throttle(command.limit),
        )

    async def run(self) -> None:
        """Copy each source; what fails is reported, and the next one is tried."""
        target = self._command.target
        if len(self._command.sources) > 1 and not await self._usable(target):
            return
        for source in self._command.sources:
            try:
                await self._copy(source, target)
            except ConnectionGone:
                for location in (source, target):
                    if location.remote:
                        self._connections.forget(location)
            except (UserError, *FILE_FAULTS) as error:
                self._report.fault(b"" if isinstance(error, UserError) else source.path, reason(error))

    async def _usable(self, target: Location) -> bool:
        """Whether several sources can go to a target: a directory. The old protocol has the other end look."""
        if target.remote and self._command.old_protocol:
            return True
        try:
            if await kind_of(await self._store(target), await self._path(target)) is Kind.DIRECTORY:
                return True
            self._report.fault(target.path, "several sources need a target that is a directory")
        except (UserError, *FILE_FAULTS) as error:
            self._report.fault(b"" if isinstance(error, UserError) else target.path, reason(error))
        return False

    async def _store(self, location: Location) -> Store:
        return await self._connections.store(location) if location.remote else self._local

    @staticmethod
    async def _path(location: Location) -> bytes:
        """Return a path as SFTP takes it: relative ones begin at home."""
        path = location.path
        if not location.remote:
            return path
        if path == b"~" or path.startswith(b"~/"):
            path = path[2:].lstrip(b"/")
        elif path.startswith(b"~"):
            raise UserError(f"{location}: the directories of other users have to be named in full")
        return path or b"."

    async def _copy(self, source: Location, target: Location) -> None:
        if self._command.old_protocol and (source.remote or target.remote):
            await self._copy_old(source, target)
            return
        store, written = await self._store(source), await self._store(target)
        copier = Copier(store, written, self._settings, self._report)
        paths = await self._sources(store, source)
        path = await self._path(target)
        into = await kind_of(written, path) is Kind.DIRECTORY
        if len(paths) > 1 and not into:
            raise UserError(f"{source} stands for {len(paths)} files, and {target} is no directory")
        for found in paths:
            await copier.copy(found, path, into=into)

    async def _sources(self, store: Store, source: Location) -> list[bytes]:
        """Return the paths that a source stands for; what fits nothing stands for itself."""
        path = await self._path(source)
        if not isinstance(store, RemoteStore):
            return [path]
        patterns = alternatives(path)
        if patterns != [path] and await store.exists(unescape(path)):
            patterns = [path]  # there are names with braces
        found: list[bytes] = []
        for pattern in patterns:
            plain = unescape(pattern)
            if is_pattern(pattern):
                found += await expand(pattern, store.path_names, store.exists) or [pattern]
            else:
                found.append(plain if plain == pattern or await store.exists(plain) else pattern)
        return found

    async def _copy_old(self, source: Location, target: Location) -> None:
        flags = [b"-v"] * (self._command.verbose > 0) + [b"-r"] * self._command.recursive
        flags += [b"-p"] * self._command.preserve
        into = [b"-d"] * (len(self._command.sources) > 1)
        expected = Expected(None if self._command.any_name else source.path)
        streams: list[rcp.Stream] = []
        try:
            if target.remote:
                connection = await self._connections.connection(target)
                streams.append(await rcp.start(connection, b" ".join([*flags, *into, b"-t"]), target.path))
            if not source.remote:
                await Sender(streams[0], self._settings, self._report).send([source.path])
                return
            connection = await self._connections.connection(source)
            streams.append(await rcp.start(connection, b" ".join([*flags, b"-f"]), source.path))
            if target.remote:
                relay = Relay(streams[1], streams[0], self._settings, self._report, expected)
                await relay.relay()
            else:
                receiver = Receiver(streams[0], self._settings, self._report, expected)
                is_directory = await kind_of(self._local, target.path) is Kind.DIRECTORY
                await receiver.receive(target.path, into=is_directory)
        finally:
            for stream in streams:
                await stream.close()
