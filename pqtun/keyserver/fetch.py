"""Runs downloads over a connected, non-blocking UDP socket on asyncio."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from pqtun.keyserver.download import Download, DownloadError
from pqtun.keyserver.limits import (
    BATCH,
    EPHEMERAL_RETRY,
    EPHEMERAL_RETRY_MAX,
    MAX_DATAGRAM,
    NO_ANSWER_TIMEOUT,
    RECEIVE_BUFFER,
    REFUSED_TIMEOUT,
)
from pqtun.protocol.errors import MessageError
from pqtun.protocol.handshake import EphemeralPublicKey
from pqtun.protocol.keydatagram import EphemeralResponse, ephemeral_request, parse_response
from pqtun.protocol.keytree import ServerPublicKey

Clock = Callable[[], float]
Progress = Callable[[int, int], None]


async def fetch_server_key(
    sock: socket.socket,
    keyhash: bytes,
    *,
    clock: Clock,
    on_progress: Progress | None = None,
) -> ServerPublicKey:
    """Downloads and verifies the key with this hash (32 bytes) from the key server that `sock` is connected to.

    `on_progress(verified, total)` is called after each batch of datagrams that brought something new. Raises
    DownloadError. The socket stays open and can be used for the next fetch.
    """
    return await _KeyFetch(sock, Download(keyhash, clock()), clock, on_progress).run()


class _KeyFetch:
    """One reader and one timer on the event loop, whatever the number of datagrams."""

    def __init__(self, sock: socket.socket, download: Download, clock: Clock, on_progress: Progress | None) -> None:
        self._sock = sock
        self._download = download
        self._clock = clock
        self._on_progress = on_progress
        self._reported = 0
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> ServerPublicKey:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._loop.add_reader(self._sock, self._guarded, self._readable)
        try:
            self._guarded(self._step)
            await self._ended
        finally:
            self._loop.remove_reader(self._sock)
            if self._timer is not None:
                self._timer.cancel()
        if self._download.failure is not None:
            raise self._download.failure
        return self._download.public_key()

    def _guarded(self, action: Callable[[], None]) -> None:
        """What fails here (a progress callback, say) belongs to whoever awaits the key, not to the loop's log."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - handed on
            if not self._ended.done():
                self._ended.set_exception(error)

    def _readable(self) -> None:
        now = self._clock()
        for _ in range(BATCH):
            try:
                datagram = self._sock.recv(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                self._download.refused(error.strerror or str(error), now)
                continue
            self._download.receive(datagram, now)
        verified, total = self._download.progress
        if verified > self._reported:
            self._reported = verified
            if self._on_progress is not None:
                self._on_progress(verified, total)
        self._step()

    def _step(self) -> None:
        now = self._clock()
        for request in self._download.requests_to_send(now):
            try:
                self._sock.send(request)
            except BlockingIOError:
                pass  # the send buffer is full: lost like any other, and asked again
            except OSError as error:
                self._download.refused(error.strerror or str(error), now)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timer = self._download.next_timer
        if timer is not None:
            self._timer = self._loop.call_later(max(timer - now, 0.0), self._guarded, self._step)
        elif not self._ended.done():
            self._ended.set_result(None)


async def fetch_ephemeral(sock: socket.socket, *, clock: Clock) -> EphemeralPublicKey:
    """Asks the key server that `sock` is connected to for its ephemeral keys of this moment. Raises DownloadError.

    Nothing authenticates the answer; a handshake with wrong keys fails.
    """
    loop = asyncio.get_running_loop()
    started = clock()
    refused_at: float | None = None
    interval = EPHEMERAL_RETRY
    while True:
        refusal = ""
        try:
            with contextlib.suppress(BlockingIOError):  # the send buffer is full: like a lost request
                sock.send(ephemeral_request())
            deadline = min(clock() + interval, started + NO_ANSWER_TIMEOUT)
            while (left := deadline - clock()) > 0:
                async with asyncio.timeout(left):
                    datagram = await loop.sock_recv(sock, MAX_DATAGRAM)
                key = _ephemeral_key(datagram)
                if key is not None:
                    return key
                await asyncio.sleep(0)  # as long as there is more, sock_recv() does not wait
        except TimeoutError:
            pass
        except OSError as error:
            refusal = error.strerror or str(error)
        now = clock()
        if now - started >= NO_ANSWER_TIMEOUT:
            raise DownloadError("no_answer", f"no answer from the key server in {NO_ANSWER_TIMEOUT:.0f} s")
        if refusal:
            refused_at = now if refused_at is None else refused_at
            if now - refused_at >= REFUSED_TIMEOUT:
                raise DownloadError("network", f"the key server cannot be reached: {refusal}")
            await asyncio.sleep(interval)
        interval = min(interval * 2, EPHEMERAL_RETRY_MAX)


def _ephemeral_key(datagram: bytes) -> EphemeralPublicKey | None:
    try:
        response = parse_response(datagram)
    except MessageError:
        return None
    if not isinstance(response, EphemeralResponse):
        return None
    return EphemeralPublicKey(response.sntrup_pk, response.x25519_pk)
