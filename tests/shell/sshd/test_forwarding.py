"""Forwarding by OpenSSH's client: TCP and Unix-domain sockets both ways, the agent, an X display."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pqtun.daemon.settings import SshdSettings
from tests.net.process import wait_until
from tests.shell.sshd.driver import HOST, Server, asyncssh, connected, permission, processes, run
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root

READ_ALL = "import sys,socket;s=socket.socket(socket.AF_{0});s.connect({1!r});s.sendall(b'{2}');s.shutdown(1);\
\nwhile (d:=s.recv(65536)): sys.stdout.buffer.write(d)"


def asking(address: object, text: str) -> str:
    """A shell command that sends a text there and prints what comes back."""
    family = "UNIX" if isinstance(address, str) else "INET6" if ":" in str(address) else "INET"
    return f"/usr/bin/python3 -c {shlex.quote(READ_ALL.format(family, address, text))}"


@contextmanager
def echoing(listening: socket.socket, prefix: bytes = b"") -> Generator[None, None, None]:
    """A server that sends `prefix` and all that it gets back, after the end of it."""

    def serve() -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(sock,), daemon=True).start()

    def answer(sock: socket.socket) -> None:
        with sock:
            parts = []
            while part := sock.recv(1 << 16):
                parts.append(part)
            sock.sendall(prefix + b"".join(parts))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@contextmanager
def client(server: Server, *arguments: str) -> Generator[subprocess.Popen[bytes], None, None]:
    """OpenSSH's client, with forwards and no session, until it says that they are there."""
    process = subprocess.Popen(
        server.command("-o", "ExitOnForwardFailure=yes", *arguments, HOST, "echo ready; cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def exchange(address: tuple[str, int] | str, data: bytes) -> bytes:
    """What a server answers to this."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(20)
        sock.connect(address)
        sending = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sending.start()
        parts = []
        while part := sock.recv(1 << 16):
            parts.append(part)
        sending.join()
    return b"".join(parts)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        return int(sock.getsockname()[1])


def test_local_ports_and_sockets(world: World) -> None:
    def body() -> None:
        path = "/home/alice/echo"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        os.chmod(path, 0o666)
        unix.listen()
        tcp = socket.create_server((HOST, 0))
        tcp_port, here = tcp.getsockname()[1], free_port()
        data = os.urandom(5_000_000)
        forwards = ("-L", f"{here}:localhost:{tcp_port}", "-L", f"/run/here:{path}")
        with Server() as server, echoing(tcp, b"tcp "), echoing(unix, b"unix "), client(server, *forwards):
            assert exchange((HOST, here), data) == b"tcp " + data
            assert exchange("/run/here", data) == b"unix " + data
            assert exchange((HOST, here), b"") == b"tcp "
            begun = [f"localhost:{tcp_port}", path, f"localhost:{tcp_port}"]

            def written() -> bool:
                lines = [line for line in server.audit() if line["event"] == "forward"]
                return [line["what"] for line in lines if line["state"] == "start"] == begun

            wait_until(written, 20, "the lines of all three")

    run(world, body)


def test_remote_ports_and_sockets(world: World) -> None:
    def body() -> None:
        tcp = socket.create_server((HOST, 0))
        port, there, path = tcp.getsockname()[1], free_port(), "/home/alice/there"
        with Server() as server:
            forwards = ("-R", f"{there}:{HOST}:{port}", "-R", f"{path}:{HOST}:{port}")
            with echoing(tcp, b"echo "), client(server, *forwards):
                assert exchange((HOST, there), b"one") == b"echo one"
                assert exchange(path, b"two") == b"echo two"
                with socket.create_connection(("::1", there)):
                    pass
                status = os.stat(path)
                assert (status.st_uid, status.st_mode & 0o777) == (4001, 0o600)
                listening = subprocess.run(["ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
                assert {line.split()[3] for line in listening.splitlines() if f":{there} " in line} == {
                    f"127.0.0.1:{there}",
                    f"[::1]:{there}",
                }
                second = server.ssh("-o", "ExitOnForwardFailure=yes", "-R", f"{path}:{HOST}:{port}", HOST, "true")
                assert second.returncode == 255  # what is there is not replaced
            wait_until(lambda: not Path(path).exists(), 10, "the socket's file to be removed")

    run(world, body)


def test_a_port_that_the_server_chooses_and_its_cancellation(world: World) -> None:
    def body() -> None:
        with Server() as server:

            async def forward(connection: asyncssh.SSHClientConnection) -> None:
                tcp = socket.create_server((HOST, 0))
                with echoing(tcp):
                    listener = await connection.forward_remote_port("localhost", 0, HOST, tcp.getsockname()[1])
                    port = listener.get_port()
                    result = await connection.run(asking((HOST, port), "hello"))
                    assert result.stdout == "hello"
                    listener.close()
                    await listener.wait_closed()
                    result = await connection.run(asking((HOST, port), "hello"))
                    assert "ConnectionRefusedError" in str(result.stderr)

            connected(server, forward)

    run(world, body)


def test_what_cannot_be_reached_is_refused_with_a_reason(world: World) -> None:
    def body() -> None:
        with Server() as server:

            async def forward(connection: asyncssh.SSHClientConnection) -> None:
                for host, port, reason in (
                    (HOST, free_port(), "Connect call failed|Connection refused"),
                    ("no-such-name.invalid", 80, "name or service not known"),
                    ("x" * 300, 80, "no such address"),
                    (HOST, 0, "no such address"),
                ):
                    with pytest.raises(asyncssh.ChannelOpenError, match=reason):
                        await connection.open_connection(host, port)
                with pytest.raises(asyncssh.ChannelOpenError, match="No such file"):
                    await connection.open_unix_connection("/home/alice/missing/socket")
                with pytest.raises(asyncssh.ChannelOpenError, match="Permission denied"):
                    await connection.open_unix_connection("/run/roots")
                with pytest.raises(asyncssh.ChannelListenError):
                    await connection.forward_remote_port("", 80, HOST, 80)  # the user has no right to

            roots = socket.socket(socket.AF_UNIX)
            roots.bind("/run/roots")
            os.chmod("/run/roots", 0o600)
            connected(server, forward)

    run(world, body)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"port_forwarding": False, "agent_forwarding": False, "x11_forwarding": False}, {}),
        (
            {},
            {
                "tcp_forwarding": False,
                "stream_local_forwarding": False,
                "agent_forwarding": False,
                "x11_forwarding": False,
            },
        ),
    ],
)
def test_what_the_key_or_the_settings_forbid(world: World, options: dict[str, bool], settings: dict[str, bool]) -> None:
    def body() -> None:
        limited = SshdSettings(**settings)  # type: ignore[arg-type]
        with Server(permission=permission(**options), settings=limited) as server:

            async def forward(connection: asyncssh.SSHClientConnection) -> None:
                with pytest.raises(asyncssh.ChannelOpenError, match="not allow"):
                    await connection.open_connection(HOST, 80)
                with pytest.raises(asyncssh.ChannelOpenError, match="not allow"):
                    await connection.open_unix_connection("/home/alice/x")
                with pytest.raises(asyncssh.ChannelListenError):
                    await connection.forward_remote_port("", 0, HOST, 80)
                with pytest.raises(asyncssh.ChannelListenError):
                    await connection.forward_remote_path("/home/alice/x", "/x")

            connected(server, forward)
            with ssh_agent() as agent:
                result = server.ssh("-A", HOST, 'echo "$SSH_AUTH_SOCK"', env=agent)
            assert result.stdout == b"\n"
            result = server.ssh("-Y", HOST, 'echo "$DISPLAY"', env={"DISPLAY": "127.0.0.1:5"})
            assert result.stdout == b"\n"
            wait_until(
                lambda: {line["what"] for line in server.audit() if line["event"] == "refused"} >= {"agent", "x11"},
                *(10, "lines of both"),
            )

    run(world, body)


def test_hosts_and_ports_of_a_key(world: World) -> None:
    def body() -> None:
        tcp = socket.create_server((HOST, 0))
        port = tcp.getsockname()[1]
        listed = permission(permit_open=((HOST, port),), permit_listen=(("localhost", 4444),))
        with Server(permission=listed) as server, echoing(tcp):

            async def forward(connection: asyncssh.SSHClientConnection) -> None:
                reader, writer = await connection.open_connection(HOST, port)
                writer.write(b"x")
                writer.write_eof()
                assert await reader.read() == b"x"
                for host, other in ((HOST, port + 1), ("localhost", port)):
                    with pytest.raises(asyncssh.ChannelOpenError, match="key"):
                        await connection.open_connection(host, other)
                (await connection.forward_remote_port("localhost", 4444, HOST, port)).close()
                with pytest.raises(asyncssh.ChannelListenError):
                    await connection.forward_remote_port("localhost", 4445, HOST, port)

            connected(server, forward)

    run(world, body)


def test_fifty_forwarded_connections(world: World) -> None:
    def body() -> None:
        tcp = socket.create_server((HOST, 0), backlog=64)
        here = free_port()
        with (
            Server() as server,
            echoing(tcp),
            client(server, "-L", f"{here}:{HOST}:{tcp.getsockname()[1]}"),
        ):
            answers: list[bool] = []
            threads = []
            for number in range(50):
                data = bytes([number]) * 200_000
                ask = threading.Thread(target=lambda data=data: answers.append(exchange((HOST, here), data) == data))
                ask.start()
                threads.append(ask)
            for thread in threads:
                thread.join()
            assert answers == [True] * 50

    run(world, body)


@contextmanager
def ssh_agent() -> Generator[dict[str, str], None, None]:
    """A real one; the environment that leads to it."""
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", "/run/agent"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: Path("/run/agent").exists(), 10, "ssh-agent")
        yield {"SSH_AUTH_SOCK": "/run/agent"}
    finally:
        agent.kill()
        agent.wait()


def test_the_agent(world: World) -> None:
    def body() -> None:
        with ssh_agent() as agent, Server() as server:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/run/key"], check=True)
            subprocess.run(["ssh-add", "-q", "/run/key"], check=True, env={**os.environ, **agent})
            fingerprint = subprocess.run(["ssh-keygen", "-lf", "/run/key"], check=True, capture_output=True).stdout
            ask = 'ssh-add -l; stat -c "%U %a" "$SSH_AUTH_SOCK" "${SSH_AUTH_SOCK%/*}"; echo "$SSH_AUTH_SOCK"'
            lines = server.ssh("-A", HOST, ask, env=agent).stdout.splitlines()
            assert lines[0].split()[1] == fingerprint.split()[1]
            assert lines[1:3] == [b"alice 600", b"alice 700"]
            wait_until(lambda: not Path(lines[3].decode()).parent.exists(), 10, "the directory to be removed")
            assert server.ssh(HOST, 'echo "$SSH_AUTH_SOCK"').stdout == b"\n"  # only where it is asked for

    run(world, body)


X_PROGRAM = """
import os, re, socket, struct, subprocess, sys
display = os.environ["DISPLAY"]
number = int(re.fullmatch(r"localhost:(\\d+)\\.0", display)[1])
name, protocol, cookie = subprocess.run(["xauth", "list"], capture_output=True, text=True, check=True).stdout.split()
assert name.endswith(f"unix:{number}"), name
with socket.create_connection(("127.0.0.1", 6000 + number)) as sock:
    name, data = protocol.encode(), bytes.fromhex(cookie)
    sock.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(name), len(data)))
    sock.sendall(name + bytes(-len(name) % 4) + data + bytes(-len(data) % 4))
    print(number, cookie, sock.recv(100).decode())
"""


def test_an_x_display(world: World) -> None:
    """There is a cookie for X programs; the client changes it for the display's own, which the server never sees."""

    def body() -> None:
        cookie = os.urandom(16)
        subprocess.run(
            ["xauth", "-q", "-f", "/run/xauth", "add", "127.0.0.1:5", "MIT-MAGIC-COOKIE-1", cookie.hex()], check=True
        )
        got: list[bytes] = []

        def serve() -> None:
            sock, _ = display.accept()
            with sock:
                wanted = 12 + 20 + 16
                data = b""
                while len(data) < wanted:
                    data += sock.recv(wanted - len(data))
                got.append(data)
                sock.sendall(b"welcome")

        display = socket.create_server((HOST, 6005))
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        Path("/home/alice/x.py").write_text(X_PROGRAM)
        with Server() as server:
            environment = {"DISPLAY": "127.0.0.1:5", "XAUTHORITY": "/run/xauth"}
            result = server.ssh("-Y", HOST, "/usr/bin/python3 x.py", env=environment)
            assert result.returncode == 0, result.stderr
            number, fake, answer = result.stdout.split()
            assert answer == b"welcome"
            thread.join(10)
            assert got[0].endswith(cookie)
            assert fake.decode() != cookie.hex()
            assert int(number) >= 10
            with socket.socket() as sock:
                wait_until(lambda: sock.connect_ex((HOST, 6000 + int(number))) != 0, 10, "the display to be gone")

    run(world, body)


def test_nothing_is_left_of_forwards_when_the_client_is_killed(world: World) -> None:
    def body() -> None:
        tcp = socket.create_server((HOST, 0))
        port, here = tcp.getsockname()[1], free_port()
        with Server() as server:
            before = set(processes(""))
            forwards = ("-L", f"{here}:{HOST}:{port}", "-R", f"/home/alice/there:{HOST}:{port}")
            with client(server, *forwards) as process, socket.create_connection((HOST, here)) as sock:
                sock.sendall(bytes(1_000_000))
                accepted, _ = tcp.accept()
                assert accepted.recv(1000)
                process.send_signal(signal.SIGKILL)
            wait_until(lambda: not (set(processes("")) - before), 10, "the end of all processes")
            assert not Path("/home/alice/there").exists()

    run(world, body)
