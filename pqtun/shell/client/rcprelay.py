"""A copy between two hosts over scp's old protocol, through here."""

from __future__ import annotations

from pqtun.protocol.errors import MessageError
from pqtun.shell.client import rcp
from pqtun.shell.client.copier import Bar, ConnectionGone, CopySettings, Report
from pqtun.shell.client.faults import LOST, CopyFault
from pqtun.shell.client.rcpcopier import Expected


class Relay:
    """Hands what one host's scp sends to the other's, names checked as if they were to be written here."""

    def __init__(
        self, source: rcp.Stream, target: rcp.Stream, settings: CopySettings, report: Report, expected: Expected
    ) -> None:
        self._source = source
        self._target = target
        self._settings = settings
        self._report = report
        self._expected = expected
        self.faults = 0

    async def relay(self) -> None:
        """Copy all that comes. Raises ConnectionGone."""
        try:
            if (complaint := await self._target.answer()) is not None:
                raise CopyFault(complaint.text)
            await self._source.accept()
            await self._announcements()
            ends = [await self._source.finish(), await self._target.finish()]
            if any(ends) and not self.faults:
                self._fault(self._source.said() or self._target.said() or "scp failed on one of the hosts")
        except MessageError as error:
            self._fault(f"the server does not keep to the protocol ({error.reason}); nothing more is taken")
        except CopyFault as error:
            self._fault(str(error))
            if str(error).startswith(LOST):
                raise ConnectionGone(LOST) from None

    async def _announcements(self) -> None:
        depth = 0
        while (line := await self._source.line()) is not None:
            coming = rcp.parse(line)
            if isinstance(coming, rcp.Complaint):
                self._fault(coming.text)
                if coming.fatal:
                    return
                continue
            if (
                isinstance(coming, rcp.FileComes | rcp.DirectoryComes)
                and depth == 0
                and coming.name not in self._expected
            ):
                raise CopyFault("the server sends a name that was not asked for")
            if isinstance(coming, rcp.DirectoryComes) and not self._settings.recursive:
                raise CopyFault("the server sends a directory, and -r was not given")
            if isinstance(coming, rcp.DirectoryEnds) and depth == 0:
                raise MessageError("unexpected_end")
            await self._target.send(line + b"\n")
            if not await self._answered():
                continue
            match coming:
                case rcp.DirectoryComes():
                    depth += 1
                case rcp.DirectoryEnds():
                    depth -= 1
                case rcp.FileComes(_, size, name):
                    await self._data(name, size)

    async def _answered(self) -> bool:
        """Hand the target's answer to the source; whether it was a good one."""
        if (complaint := await self._target.answer()) is None:
            await self._source.accept()
            return True
        self._fault(complaint.text)
        await self._source.refuse(complaint.text)
        return False

    async def _data(self, name: bytes, size: int) -> None:
        bar: Bar | None = self._report.begin(name, size, 0)
        done = 0
        try:
            while done < size:
                data = await self._source.data(min(rcp.BLOCK_SIZE, size - done))
                if self._settings.throttle is not None:
                    await self._settings.throttle.take(len(data))
                await self._target.send(data)
                done += len(data)
                if bar is not None:
                    bar.update(done)
        finally:
            if bar is not None:
                bar.close()
        if (complaint := await self._source.answer()) is None:
            await self._target.accept()
        else:
            self._fault(complaint.text)
            await self._target.refuse(complaint.text)
        await self._answered()

    def _fault(self, text: str) -> None:
        self.faults += 1
        self._report.fault(b"", text)
