"""An SSH server made of the user's process and of the worker's channels alone, without tunnel, login and monitor.

Runs inside World.call: whoever connects is the user that it was made for. Each connection has its processes; the one
that parses the network is nobody's.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pqtun.daemon.settings import SshdSettings
from pqtun.shell import ssh
from tests.shell.sshd.world import World

ssh.prepare()

import asyncssh  # noqa: E402

from pqtun.shell.sshd import accounts, host, identity, messages  # noqa: E402
from pqtun.shell.sshd.channels import Channels  # noqa: E402
from pqtun.shell.sshd.login import Login  # noqa: E402
from pqtun.shell.sshd.messages import Caller  # noqa: E402
from pqtun.shell.sshd.permission import Permission  # noqa: E402

NOBODY = 65534
OPTIONS = (
    *("-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "ForwardX11Timeout=0"),
)


HOST = "127.0.0.1"
SECONDS = 40  # a test in the world takes no longer, or tells where it stands and ends

T = TypeVar("T")


def run(world: World, body: Callable[[], T]) -> T:
    """Run a test's body in the world, with its network up."""

    def inside() -> T:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return body()

    return world.call(inside)


def processes(name: str) -> list[int]:
    """Those of this world, which has a network of its own, whose command line has `name`, and not this one."""
    world = os.stat("/proc/self/ns/net").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or (entry / "ns" / "net").stat().st_ino != world:
                continue
            if name.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # ended meanwhile
    return [pid for pid in found if pid != os.getpid()]


def permission(**options: Any) -> Permission:
    """That of a line without options but these."""
    return Permission(origin="tests", key_type="ssh-ed25519", fingerprint="SHA256:tests", **options)


def login(settings: SshdSettings) -> Login:
    return Login(
        settings=settings,
        name="tests",
        source="10.43.0.7",
        source_port=40000,
        own="10.43.0.1",
        own_port=42422,
        pam_environment={},
    )


def fork(body: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:  # noqa: BLE001 - it is a process of its own
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


@dataclass
class Server:
    """A context: entered, it listens on `port` of 127.0.0.1."""

    user: str = "alice"
    permission: Permission = field(default_factory=permission)
    settings: SshdSettings = field(default_factory=SshdSettings)
    directory: Path = Path("/run")
    port: int = 0
    debug: bool = False

    def __enter__(self) -> Server:
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._pid = fork(lambda: self._serve(listening))
        listening.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def audit(self) -> list[dict[str, Any]]:
        """What was written so far."""
        path = self.directory / "audit"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ssh(
        self, *arguments: str, stdin: bytes = b"", timeout: float = 30, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run OpenSSH's client; `arguments` begin with its options."""
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env={**os.environ, "SSH_AUTH_SOCK": "", **(env or {})},
        )

    def command(self, *arguments: str) -> list[str]:
        return ["ssh", *OPTIONS, "-p", str(self.port), "-l", self.user, *arguments]

    def copy(self, program: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run OpenSSH's scp or sftp."""
        options = [*OPTIONS, "-P", str(self.port), "-o", f"User={self.user}"]
        return subprocess.run([program, *options, *arguments], input=stdin, capture_output=True, timeout=60)

    def _serve(self, listening: socket.socket) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            sock, _ = listening.accept()
            with sock:
                fork(lambda sock=sock: self._connection(sock, [listening]))  # type: ignore[misc]

    def _connection(self, sock: socket.socket, others: Sequence[socket.socket]) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in others:
            other.close()
        worker, user = messages.pair()
        questions, monitor = messages.pair()
        account = accounts.find(self.user)
        assert account is not None

        def be_user() -> None:
            identity.become(account, keep=[user.fileno(), 2])
            host.run(user, account, self.permission, login(self.settings))

        def be_monitor() -> None:
            for other in (sock, worker, user, questions):
                other.close()
            self._monitor(monitor)

        fork(be_user)
        fork(be_monitor)
        user.close()
        monitor.close()
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        if self.debug:
            logging.basicConfig(level=logging.DEBUG)
        asyncio.run(self._work(sock, worker, questions))

    def _monitor(self, sock: socket.socket) -> None:
        with (self.directory / "audit").open("a", buffering=1) as file:
            while True:
                try:
                    message, _ = messages.receive(sock)
                except EOFError:
                    return
                number = message.pop("id")
                file.write(json.dumps(message) + "\n")
                messages.send(sock, {"id": number})

    async def _work(self, sock: socket.socket, host_end: socket.socket, monitor_end: socket.socket) -> None:
        monitor = Caller(monitor_end, lambda message, fds: None)
        caller = Caller(host_end, lambda message, fds: owner.channels.event(message, fds))
        owner = Owner(lambda connection: Channels(connection, caller, monitor, self.permission, self.settings))
        connection = await asyncssh.run_server(
            sock,
            config=None,
            server_factory=lambda: owner,
            server_host_keys=[self._key],
            kex_algs=ssh.KEX,
            encryption_algs=ssh.CIPHERS,
            compression_algs=ssh.COMPRESSION,
            line_editor=False,
            encoding=None,
        )
        await connection.wait_closed()
        await owner.channels.close()


class Owner(asyncssh.SSHServer):
    channels: Channels

    def __init__(self, made: Callable[[Any], Channels]) -> None:
        self._made = made

    def connection_made(self, conn: Any) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        self.channels = self._made(self._connection)
        return False

    def session_requested(self) -> Any:
        return self.channels.session_requested()

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return self.channels.connection_requested(dest_host, dest_port, orig_host, orig_port)

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        return self.channels.server_requested(listen_host, listen_port)

    def unix_connection_requested(self, dest_path: str) -> Any:
        return self.channels.unix_connection_requested(dest_path)

    def unix_server_requested(self, listen_path: str) -> Any:
        return self.channels.unix_server_requested(listen_path)


def connected(server: Server, body: Callable[[asyncssh.SSHClientConnection], Coroutine[Any, Any, None]]) -> None:
    """Run something on a connection of asyncssh's client."""

    async def run() -> None:
        async with asyncssh.connect(
            HOST, server.port, username=server.user, known_hosts=None, config=None, client_keys=None, agent_path=None
        ) as connection:
            await asyncio.wait_for(body(connection), 30)

    asyncio.run(run())
