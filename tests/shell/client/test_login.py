"""How long a login may take, and why it fails."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from pqtun.shell.client import connect, ui
from pqtun.shell.client.config import resolve
from pqtun.shell.client.hostkeys import KnownHosts
from pqtun.shell.client.loginfaults import Refusal, Unreachable
from pqtun.shell.client.options import parse
from tests.shell.client.openssh import pair

asyncssh = connect.asyncssh


class Server(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


class Clock:
    """The event loop's, which a test can put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._late = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self._late)

    def put_forward(self) -> None:
        self._late += 3600


async def login(sock: socket.socket, directory: Path) -> asyncssh.SSHClientConnection:
    options = parse(["-F", "none", "--direct", "-o", f"UserKnownHostsFile={directory / 'known'}", "host"])
    config, person = resolve(options), ui.UserInterface(level="QUIET")
    return await connect._Settings(options, config, person).login(KnownHosts(config, None, person), sock=sock)


def test_what_a_person_takes_to_answer_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clock = Clock(monkeypatch)

        def answer(prompt: str, *, echo: bool) -> str:
            clock.put_forward()
            return "yes"

        monkeypatch.setattr(ui, "_read_line", answer)
        ours, theirs = pair()
        key = asyncssh.generate_private_key("ssh-ed25519")
        server = asyncio.ensure_future(
            asyncssh.run_server(theirs, server_factory=Server, server_host_keys=[key], login_timeout=0, config=None)
        )
        connection = await login(ours, tmp_path)
        connection.abort()
        (await server).abort()

    asyncio.run(run())


def test_a_server_that_says_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        clock = Clock(monkeypatch)
        ours, theirs = pair()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(theirs.fileno())
            clock.put_forward()

        loop.add_reader(theirs.fileno(), heard)
        with theirs, pytest.raises(Unreachable, match="timed out"):
            await login(ours, tmp_path)

    asyncio.run(run())


def test_a_server_that_leaves_without_a_common_algorithm(tmp_path: Path) -> None:
    """As sshd does; its end comes with its list, or a moment after it."""

    async def run() -> None:
        ours, theirs = pair()
        lists = [b"unknown-kex", b"ssh-ed25519", *[b"aes256-gcm@openssh.com"] * 2, *[b"hmac-sha2-256"] * 2]
        lists += [b"none", b"none", b"", b""]
        payload = b"\x14" + bytes(16) + b"".join(len(one).to_bytes(4, "big") + one for one in lists) + bytes(5)
        padding = 4 + -(len(payload) + 9) % 8
        packet = (len(payload) + padding + 1).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)
        theirs.sendall(b"SSH-2.0-test\r\n" + packet)
        theirs.shutdown(socket.SHUT_WR)
        with theirs, pytest.raises(Refusal, match=r"Unable to negotiate .*unknown-kex"):
            await login(ours, tmp_path)

    asyncio.run(run())
