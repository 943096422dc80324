"""The forwards of `pqtun ssh`, with OpenSSH's sshd: local, remote, dynamic, by stdin and stdout, in the background."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.process import wait_until
from tests.shell.client import login
from tests.shell.client.login import HOST, run, spawn
from tests.shell.client.sshd import ADDRESS, Sshd

pytestmark = pytest.mark.net


ECHO_PORT = 7777
_ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""
_TALK = """
import socket, sys
where, host = sys.argv[1], sys.argv[2:]
if where.startswith("/"):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(where)
else:
    sock = socket.create_connection(("::1" if where == "6" else "127.0.0.1", int(host[0])), 10)
sock.settimeout(10)
exec(sys.stdin.read())
sock.sendall(b"x" * 100_000)
sock.shutdown(socket.SHUT_WR)
size = 0
while data := sock.recv(65536):
    size += len(data)
print(size)
"""
SOCKS5 = """
name = b"localhost"
sock.sendall(b"\\5\\1\\0")
assert sock.recv(2) == b"\\5\\0"
sock.sendall(b"\\5\\1\\0\\3" + bytes([len(name)]) + name + (7777).to_bytes(2, "big"))
assert sock.recv(64)[:2] == b"\\5\\0"
"""
SOCKS4 = """
sock.sendall(b"\\4\\1" + (7777).to_bytes(2, "big") + b"\\x7f\\0\\0\\1me\\0")
assert sock.recv(8)[:2] == b"\\0\\x5a"
"""
SOCKS4A = """
sock.sendall(b"\\4\\1" + (7777).to_bytes(2, "big") + b"\\0\\0\\0\\1me\\0localhost\\0")
assert sock.recv(8)[:2] == b"\\0\\x5a"
"""


@pytest.fixture(scope="module", autouse=True)
def echo(sshd: Sshd) -> Iterator[None]:
    process = sshd.lab.spawn(sshd.ns, sys.executable, "-c", _ECHO, str(ECHO_PORT))
    sshd.lab.wait_listening(process, sshd.ns, ECHO_PORT)
    yield
    process.stop()


def talk(sshd: Sshd, *where: str | int, before: str = "") -> int:
    """Send 100,000 bytes through a forward to the echo server; how many came back."""
    done = sshd.lab.run(sshd.ns, sys.executable, "-c", _TALK, *map(str, where), stdin=before.encode(), timeout=20)
    return int(done.stdout)


def listening(sshd: Sshd, port: int) -> bool:
    return sshd.lab.listening(sshd.ns, port)


def test_forwards_of_all_kinds(sshd: Sshd, tmp_path: Path) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    to = f"127.0.0.1:{ECHO_PORT}"
    flags = ["-L", f"7001:{to}", "-R", f"7002:{to}", "-L", f"{local}:{to}", "-R", f"{remote}:{to}"]
    flags += ["-D", "7003", "-R", "7005", "-R", f"0:{to}", "-L", f"7004:{remote}"]
    process = spawn(sshd, "-N", "-o", "ExitOnForwardFailure=yes", *flags, HOST)
    process.wait_output("Allocated port ", 20)
    port = int(process.output().split("Allocated port ")[1].split()[0])
    wait_until(lambda: listening(sshd, 7004), 20, "the last forward")
    assert talk(sshd, "4", 7001) == 100_000
    assert talk(sshd, "6", 7001) == 100_000
    assert talk(sshd, "4", 7002) == 100_000
    assert talk(sshd, "4", port) == 100_000
    assert talk(sshd, str(local)) == 100_000
    assert talk(sshd, str(remote)) == 100_000
    assert talk(sshd, "4", 7004) == 100_000
    for port in (7003, 7005):
        assert talk(sshd, "4", port, before=SOCKS5) == 100_000
        assert talk(sshd, "4", port, before=SOCKS4A) == 100_000
    assert process.stop() == 255
    assert not listening(sshd, 7001)
    assert not local.exists()


def test_remote_socks_goes_where_it_may(sshd: Sshd, tmp_path: Path) -> None:
    socks = tmp_path / "socks"
    permitted = ["-o", f"PermitRemoteOpen=127.0.0.1:{ECHO_PORT} localhost:1"]
    process = spawn(sshd, "-N", *permitted, "-R", "7031", "-R", str(socks), "-L", "7032:127.0.0.1:1", HOST)
    wait_until(lambda: listening(sshd, 7032), 20, "the last forward")
    wait_until(lambda: listening(sshd, 7031) and socks.exists(), 20, "the remote forwards")
    assert talk(sshd, "4", 7031, before=SOCKS4) == 100_000
    assert talk(sshd, str(socks), before=SOCKS4) == 100_000
    # Another name for the same place.
    assert talk(sshd, "4", 7031, before=SOCKS5 + "print(len(sock.recv(1)))\nsys.exit()") == 0
    assert process.running
    process.stop()


def test_bind_addresses(sshd: Sshd) -> None:
    to = f"127.0.0.1:{ECHO_PORT}"
    process = spawn(sshd, "-N", "-L", f"127.0.0.2:7011:{to}", "-g", "-L", f"7012:{to}", HOST)
    wait_until(lambda: listening(sshd, 7012), 20, "the forwards")
    bound = sshd.lab.run(sshd.ns, "ss", "-Hltn").stdout
    assert "127.0.0.2:7011 " in bound
    assert "0.0.0.0:7012 " in bound
    process.stop()


def test_stdio_forward(sshd: Sshd) -> None:
    data = os.urandom(100_000)
    argv = login.argv(sshd, "-W", f"127.0.0.1:{ECHO_PORT}", HOST)
    done = subprocess.run(argv, input=data, capture_output=True, timeout=20, env=login.environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")
    done = run(sshd, "-W", "127.0.0.1:1", HOST)
    assert done.returncode == 255
    assert b"stdio forwarding failed" in done.stderr


@pytest.mark.parametrize("flag", ["-L", "-R"])
def test_a_forward_that_cannot_be(sshd: Sshd, flag: str) -> None:
    where = f"127.0.0.1:{ECHO_PORT}:127.0.0.1:1"
    done = run(sshd, flag, where, HOST, "echo on")
    assert (done.returncode, done.stdout) == (0, b"on\n")
    assert done.stderr.count(b"\n") == 1
    done = run(sshd, "-o", "ExitOnForwardFailure=yes", flag, where, HOST, "echo on")
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr.count(b"\n") == 1


def test_in_the_background(sshd: Sshd, tmp_path: Path) -> None:
    """-f returns after the login, and it stays for as long as something uses its forwards."""
    log = tmp_path / "log"
    release = tmp_path / "release"
    os.mkfifo(release)
    # Its output goes to a file: as with ssh, the command has the other end still when the program has returned.
    flags = ["-f", "-v", "-E", str(log), "-L", f"7021:127.0.0.1:{ECHO_PORT}"]
    process = spawn(sshd, *flags, HOST, f"cat {release}; echo over")
    assert process.wait(20) == 0, process.output()
    assert "Authenticated" in log.read_text()
    assert talk(sshd, "4", 7021) == 100_000
    release.write_text("")
    wait_until(lambda: not listening(sshd, 7021), 20, "its end")
    assert process.output() == "over\n"


def test_background_needs_a_command_and_tells_failures(sshd: Sshd) -> None:
    done = run(sshd, "-f", HOST)
    assert done.returncode == 255
    assert b"Cannot fork into background" in done.stderr
    done = run(sshd, "-f", "-i", "/nowhere", "-l", "nobody-such", ADDRESS, "true")
    assert done.returncode == 255
    assert b"Permission denied (publickey)." in done.stderr


def test_sockets_left_in_the_way(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    flags = ["-o", "ExitOnForwardFailure=yes", "-L", f"{path}:127.0.0.1:{ECHO_PORT}"]
    assert run(sshd, *flags, HOST, "true").returncode == 255
    assert run(sshd, *flags, "-o", "StreamLocalBindUnlink=yes", HOST, "true").returncode == 0
