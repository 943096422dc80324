"""SSH servers at the other end of a socket pair, one a connection, so that no network is needed."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from pqtun.shell.ssh import prepare

prepare()

import asyncssh  # noqa: E402

from pqtun.shell.client.connections import Connections  # noqa: E402
from pqtun.shell.client.report import TerminalReport  # noqa: E402
from pqtun.shell.client.scp import Scp, parse_command  # noqa: E402

SSHD = "/usr/sbin/sshd"


class _Named(socket.socket):
    """Looks like TCP to asyncssh, which asks for addresses."""

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.1", 40000)

    def getpeername(self) -> tuple[str, int]:
        return ("192.0.2.2", 22)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    named = (_Named(one.family, one.type, one.proto, fileno=one.detach()) for one in (ours, theirs))
    return next(named), next(named)


class InetdSshd:
    """OpenSSH's sshd; lets the user who runs the tests in, by a key of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("host", "user"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(argv, check=True, capture_output=True, timeout=20)
        # sshd insists on its privilege separation directory, which a machine without systemd may not have.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._config = directory / "sshd_config"
        self._config.write_text(
            f"HostKey {directory / 'host'}\nAuthorizedKeysFile {directory / 'user.pub'}\nPidFile none\n"
            "UsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPrintMotd no\nPrintLastLog no\n"
            f"Subsystem sftp internal-sftp\nSetEnv HOME={directory}\n"  # no start-up files of the user's shell
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    async def connect(self) -> asyncssh.SSHClientConnection:
        """A connection to a new sshd, logged in."""
        ours, theirs = pair()
        argv = [SSHD, "-i", "-E", str(self.directory / "sshd.log"), "-f", str(self._config)]
        self._serve(argv, theirs)
        return await asyncssh.connect(
            sock=ours,
            username=pwd.getpwuid(os.geteuid()).pw_name,
            client_keys=[str(self.directory / "user")],
            known_hosts=None,
            config=None,
            agent_path=None,
        )

    def _serve(self, argv: list[str], end: socket.socket) -> None:
        with end:
            self.processes.append(subprocess.Popen(argv, stdin=end, stdout=end))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)


class OwnServer:
    """asyncssh's server, for what no honest server does: `sftp` and `command` say how it answers."""

    def __init__(
        self,
        sftp: Callable[[asyncssh.SSHServerChannel], asyncssh.SFTPServer] | None = None,
        command: Callable[[asyncssh.SSHServerProcess[bytes]], Awaitable[None]] | None = None,
        version: str = "honest",
    ) -> None:
        self._version = version
        self._sftp = sftp
        self._command = command
        self._key = asyncssh.generate_private_key("ssh-ed25519")

    async def connect(self) -> asyncssh.SSHClientConnection:
        ours, theirs = pair()

        class Server(asyncssh.SSHServer):
            def begin_auth(self, username: str) -> bool:
                return False

        server = asyncio.ensure_future(
            asyncssh.run_server(
                theirs,
                server_factory=Server,
                server_host_keys=[self._key],
                process_factory=self._command,
                sftp_factory=self._sftp or False,
                server_version=self._version,
                encoding=None,
                config=None,
            )
        )
        connection = await asyncssh.connect(
            sock=ours, username="x", client_keys=None, known_hosts=None, config=None, agent_path=None
        )
        await server
        return connection


def scp(connect: Callable[[], Awaitable[asyncssh.SSHClientConnection]], *arguments: object) -> int:
    """Run scp with these arguments over such connections; how many faults it reported on stderr."""

    async def run() -> int:
        command = parse_command([os.fsdecode(str(a) if isinstance(a, Path) else a) for a in arguments])
        report = TerminalReport("scp", progress=True, verbose=command.verbose > 0)
        connections = Connections(command, lambda options: connect())
        try:
            await Scp(command, connections, report).run()
        finally:
            await connections.close(at_once=False)
        return report.faults

    return asyncio.run(asyncio.wait_for(run(), 60))
