"""A server whose user names say what it does that no honest one would: argv has its port."""

import asyncio
import sys

from pqtun.shell.ssh import prepare

prepare()

import asyncssh  # noqa: E402

WORDS = "\x1b]0;owned\x07\x9b31m\u202e\r\npqtun ssh: all is well"


class Server(asyncssh.SSHServer):
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        if username == "disconnect":
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, WORDS)
        return False

    def session_requested(self) -> bool:
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, WORDS)


async def _handle(process: asyncssh.SSHServerProcess[str]) -> None:
    process.channel.exit_with_signal("\x1b[31mowned\r\n", False, WORDS, "")


async def _main() -> None:
    await asyncssh.listen(
        "127.0.0.1",
        int(sys.argv[1]),
        server_factory=Server,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        process_factory=_handle,
        config=None,
    )
    await asyncio.Event().wait()


asyncio.run(_main())
