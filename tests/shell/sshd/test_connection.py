"""The worker's side of the connection, against asyncssh's client and a monitor that is the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pqtun.daemon.settings import SshdSettings
from pqtun.shell import ssh

ssh.prepare()

import asyncssh  # noqa: E402

from pqtun.shell.sshd import connection, hostkeys, messages, request  # noqa: E402
from pqtun.shell.sshd.connection import MAX_FAILURES, Connection, Owner  # noqa: E402
from pqtun.shell.sshd.messages import Caller  # noqa: E402
from pqtun.shell.sshd.permission import Permission  # noqa: E402

PERMISSION = Permission(origin="tests", key_type="ssh-ed25519", fingerprint="SHA256:tests").to_json()
HOST_KEYS = [asyncssh.generate_private_key(name) for name in ("ssh-mldsa44-ed25519", "ssh-ed25519")]
USER_KEY = asyncssh.generate_private_key("ssh-ed25519")
NO = {"allowed": False}
YES = {"allowed": True}
Answer = dict[str, Any] | None


@dataclass
class Rig:
    """A connection whose questions `answers` answers; a login gives `host`, the user's process's end."""

    answers: Callable[[dict[str, Any]], Answer]
    settings: SshdSettings = field(default_factory=SshdSettings)
    asked: list[dict[str, Any]] = field(default_factory=list)
    signed: list[bytes] = field(default_factory=list)
    host: socket.socket | None = None

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """A client that has logged in."""
        async with self.open() as sock:
            known: dict[str, Any] = {"known_hosts": None, "config": None, "username": "alice", "agent_path": None}
            known |= {"client_keys": [USER_KEY], "kex_algs": ssh.KEX, "encryption_algs": ssh.CIPHERS}
            async with asyncssh.connect(sock=sock, **{**known, **options}) as connected:
                yield connected

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[socket.socket]:
        client, server = tcp_pair()
        calls, self.monitor = messages.pair()
        self.monitor.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.monitor, self._question)
        owner = Owner()
        keys = [hostkeys.public(key) for key in HOST_KEYS]
        caller = Caller(calls, lambda message, fds: None, lambda: self.served.abort())
        self.served = Connection(
            loop, connection.options(self.settings, keys, self._sign), self.settings, owner, caller
        )
        await loop.create_connection(lambda: self.served, sock=server)
        try:
            yield client
        finally:
            if self.monitor.fileno() >= 0:
                loop.remove_reader(self.monitor)
            self.served.abort()
            await asyncio.wait_for(self.served.wait_closed(), 10)
            if owner.channels is not None:
                await owner.channels.close()
            caller.close()
            self.monitor.close()
            client.close()
            if self.host is not None:
                self.host.close()

    def _sign(self, algorithm: str, data: bytes) -> bytes:
        self.signed.append(data)
        (key,) = [key for key in HOST_KEYS if key.get_algorithm() == algorithm]
        return key.sign(data, key.algorithm)

    def _question(self) -> None:
        message, _ = messages.receive(self.monitor)
        self.asked.append(message)
        answer = self.answers(message)
        if answer is None:
            return
        fds = []
        if message["op"] == "authenticate" and answer == YES:
            self.host, worker = messages.pair()
            fds = [worker]
            answer = {**YES, "account": {}, "permission": PERMISSION}
        messages.send(self.monitor, {**answer, "id": message["id"]}, [worker.fileno() for worker in fds])
        for worker in fds:
            worker.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """asyncssh's client wants to know whom it talks to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        return client, listening.accept()[0]


def lets_in(message: dict[str, Any]) -> Answer:
    return YES if message["op"] in ("allowed", "authenticate") else {}


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_what_the_monitor_is_asked() -> None:
    async def scenario() -> None:
        rig = Rig(lets_in)
        async with rig.client():
            allowed, authenticate = rig.asked[:2]
        assert (allowed["op"], allowed["user"]) == ("allowed", "alice")
        assert messages.decode_bytes(allowed["key"]) == USER_KEY.public_data
        assert (authenticate["op"], authenticate["user"]) == ("authenticate", "alice")
        signed = messages.decode_bytes(authenticate["message"])
        asked = request.parse(signed)
        assert (asked.session_id, asked.user, asked.key) == (rig.signed[0], "alice", USER_KEY.public_data)
        assert USER_KEY.convert_to_public().verify(signed, messages.decode_bytes(authenticate["signature"]))

    run(scenario())


@pytest.mark.parametrize("name", ["ssh-mldsa44-ed25519", "ssh-ed25519"])
@pytest.mark.parametrize("kex", ssh.KEX)
@pytest.mark.parametrize("cipher", ssh.CIPHERS)
def test_algorithms(name: str, kex: str, cipher: str) -> None:
    async def scenario() -> None:
        rig = Rig(lets_in)
        options = {"server_host_key_algs": [name], "kex_algs": [kex], "encryption_algs": [cipher]}
        async with rig.client(**options) as client:
            assert client.get_server_host_key().get_algorithm() == name
            assert client.get_extra_info("send_cipher") == cipher

    run(scenario())


@pytest.mark.parametrize(
    "options",
    [
        {"kex_algs": ssh.CLASSICAL_KEX},
        {"encryption_algs": ["aes256-ctr"]},
        {"server_host_key_algs": ["rsa-sha2-512"]},
    ],
)
def test_nothing_else_is_spoken(options: dict[str, Any]) -> None:
    async def scenario() -> None:
        with pytest.raises((asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost)):
            async with Rig(lets_in).client(**options):
                pass

    run(scenario())


def test_only_keys_are_taken() -> None:
    async def scenario() -> None:
        async with Rig(lets_in).open() as sock:
            options = asyncssh.SSHClientConnectionOptions(config=None, known_hosts=None, kex_algs=ssh.KEX)
            methods = await asyncssh.get_server_auth_methods(sock=sock, username="alice", options=options)
            assert list(methods) == ["publickey"]

    run(scenario())


@pytest.mark.parametrize("answer", [NO, {}, {"allowed": 1}, {"allowed": "true"}, {"allowed": None}])
def test_no_is_no(answer: dict[str, Any]) -> None:
    async def scenario() -> None:
        rig = Rig(lambda message: answer)
        with pytest.raises(asyncssh.PermissionDenied):
            async with rig.client():
                pass
        assert [message["op"] for message in rig.asked] == ["allowed"]

    run(scenario())


def test_why_not_is_shown() -> None:
    async def scenario() -> None:
        shown: list[str] = []

        class Client(asyncssh.SSHClient):
            def auth_banner_received(self, msg: str, lang: str) -> None:
                shown.append(msg)

        rig = Rig(lambda message: YES if message["op"] == "allowed" else {**NO, "text": "your account has expired"})
        with pytest.raises(asyncssh.PermissionDenied):
            async with rig.client(client_factory=Client):
                pass
        assert shown == ["your account has expired\n"]

    run(scenario())


def test_a_monitor_that_has_enough_ends_it() -> None:
    async def scenario() -> None:
        rig = Rig(lambda message: {"error": "too many keys were refused"})
        with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
            async with rig.client():
                pass

    run(scenario())


def test_so_many_noes_of_any_kind() -> None:
    async def scenario() -> None:
        rig = Rig(lambda message: NO)
        keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(MAX_FAILURES + 5)]
        with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
            async with rig.client(client_keys=keys):
                pass
        assert len(rig.asked) <= MAX_FAILURES

    run(scenario())


def test_a_client_that_sends_on_while_it_has_to_wait() -> None:
    async def scenario() -> None:
        rig = Rig(lets_in)
        async with rig.open() as sock:
            rig.served._recv_handler = lambda: False  # as it is while an answer is thought about
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(sock, bytes(connection.MAX_WAITING))
                assert not rig.served.is_closed()
                await loop.sock_sendall(sock, bytes(16 << 20))
            await rig.served.wait_closed()

    run(scenario())


def test_so_many_channels() -> None:
    async def scenario() -> None:
        rig = Rig(lets_in, SshdSettings(max_channels=3))
        async with rig.client() as client:
            channels = [client.create_tcp_channel() for _ in range(4)]
            opening = [
                asyncio.ensure_future(channel.connect(asyncssh.SSHTCPSession, "127.0.0.1", 1, "", 0))
                for channel in channels
            ]
            with pytest.raises(asyncssh.ChannelOpenError, match="too many channels") as error:
                await opening[3]
            assert error.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE
            assert not any(task.done() for task in opening[:3])  # the user's process has not answered
            for task in opening:
                task.cancel()

    run(scenario())


@pytest.mark.parametrize("which", ["host", "monitor"])
def test_whose_other_processes_end_ends_too(which: str) -> None:
    async def scenario() -> None:
        rig = Rig(lets_in)
        async with rig.client() as client:
            if which == "monitor":
                asyncio.get_running_loop().remove_reader(rig.monitor)
            getattr(rig, which).close()
            await client.wait_closed()

    run(scenario())


def test_no_host_key_no_connection() -> None:
    left, right = messages.pair()
    with left:
        right.close()
        with pytest.raises(asyncssh.KeyExchangeFailed):
            connection.ask_to_sign(left, "ssh-ed25519", bytes(32))


def test_all_is_used_once_before_it_is_needed() -> None:
    connection.warm_up()
