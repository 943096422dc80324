"""Changes of addresses and routes, in a network namespace of the test's own."""

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable

from pqtun.daemon.netwatch import NetworkWatch
from tests.daemon.virtual import play

CLONE_NEWNET = 0x40000000


def in_a_namespace(test: Callable[[], None]) -> None:
    """Run a test in a thread that has left the host's network; the namespace ends with the thread."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            test()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def test_addresses_and_routes_are_noticed_once_and_links_are_not() -> None:
    async def scenario() -> None:
        calls: list[float] = []
        loop = asyncio.get_running_loop()
        watch = NetworkWatch(lambda: calls.append(loop.time()))
        watch.start()
        try:
            ip("link", "set", "lo", "mtu", "1400")
            await asyncio.sleep(1)
            assert calls == []
            ip("link", "set", "lo", "up")  # brings 127.0.0.1 and ::1
            await asyncio.sleep(1)
            assert len(calls) == 1
            ip("addr", "add", "192.0.2.1/32", "dev", "lo")
            ip("addr", "add", "192.0.2.2/32", "dev", "lo")
            await asyncio.sleep(1)
            assert len(calls) == 2
            ip("route", "add", "198.51.100.0/24", "dev", "lo")
            await asyncio.sleep(1)
            assert len(calls) == 3
            ip("addr", "del", "192.0.2.1/32", "dev", "lo")
            await asyncio.sleep(0)
        finally:
            watch.close()
            watch.close()
        await asyncio.sleep(1)
        assert len(calls) == 3

    in_a_namespace(lambda: play(scenario()))
