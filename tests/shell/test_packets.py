"""Nothing is on the wire that is of no use."""

from __future__ import annotations

import asyncio
import socket

from pqtun.shell import ssh

ssh.prepare()

import asyncssh  # noqa: E402
from asyncssh.constants import MSG_IGNORE  # noqa: E402


class Server(asyncssh.SSHServer):
    """Lets everybody in, and counts what it is sent."""

    def __init__(self, seen: list[int]) -> None:
        self._seen = seen

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        process = conn.process_packet

        def counted(pkttype: int, pktid: int, packet: asyncssh.packet.SSHPacket) -> bool | object:
            self._seen.append(pkttype)
            return process(pkttype, pktid, packet)

        conn.process_packet = counted  # type: ignore[method-assign, assignment]

    def begin_auth(self, username: str) -> bool:
        return False


async def packets_of_a_login() -> list[int]:
    ours, theirs = socket.socketpair()
    seen: list[int] = []
    key = asyncssh.generate_private_key("ssh-ed25519")

    async def serve() -> asyncssh.SSHServerConnection:
        return await asyncssh.run_server(
            ours, server_factory=lambda: Server(seen), server_host_keys=[key], process_factory=greet
        )

    async def log_in() -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            "host", sock=theirs, known_hosts=None, username="alice", config=None, client_keys=None
        )

    server, client = await asyncio.gather(serve(), log_in())
    assert (await client.run("greet")).stdout == "hello\n"
    for connection in (client, server):
        connection.close()
        await connection.wait_closed()
    return seen


def greet(process: asyncssh.SSHServerProcess[str]) -> None:
    process.stdout.write("hello\n")
    process.exit(0)


def test_no_packet_is_to_be_ignored() -> None:
    seen = asyncio.run(packets_of_a_login())
    assert len(seen) > 4  # it has seen those that count
    assert MSG_IGNORE not in seen
