"""X11 forwarding by `pqtun ssh`: a display of the test's own, and what programs on the server get of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.lab import Lab
from tests.shell.client import login
from tests.shell.client.login import HOST
from tests.shell.client.sshd import Sshd

pytestmark = pytest.mark.net

COOKIE = "00112233445566778899aabbccddeeff"
_DISPLAY = """
import socketserver, sys
class Display(socketserver.BaseRequestHandler):
    def handle(self):
        print("setup", self.request.recv(1000).hex(), flush=True)
        self.request.sendall(b"welcome")
class Server(socketserver.TCPServer):
    allow_reuse_address = True
Server(("127.0.0.1", 6099), Display).serve_forever()
"""
# What an X11 program sends first (X Window System Protocol, 8): byte order, version 11.0, name and data of its cookie.
_PROGRAM = """
import os, socket, struct, subprocess, sys
display = os.environ["DISPLAY"]
cookie = bytes.fromhex(subprocess.run(["xauth", "list", display], capture_output=True, text=True).stdout.split()[2])
if "wrong" in sys.argv:
    cookie = bytes(16)
sock = socket.create_connection(("localhost", 6000 + int(display.split(":")[1].split(".")[0])), 10)
sock.settimeout(10)
sock.sendall(struct.pack("<BxHHHHxx", 0x6C, 11, 0, 18, 16) + b"MIT-MAGIC-COOKIE-1" + bytes(2) + cookie)
print(cookie.hex(), sock.recv(100))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Lab() as lab:
        directory = Path(tmp_path_factory.mktemp("x11"))
        sshd = Sshd(lab, lab.namespace("x11"), directory)
        config = directory / "sshd_config"
        config.write_text(f"{config.read_text()}X11Forwarding yes\nSetEnv XAUTHORITY={directory}/theirs\n")
        sshd.kill()
        sshd.start()
        yield sshd


def temporary(server: Sshd) -> Path:
    path = server.directory / "temporary"
    path.mkdir(exist_ok=True)
    return path


def run(server: Sshd, flag: str, program: str, *arguments: str, display: str = "localhost:99") -> tuple[int, str, str]:
    ours = server.directory / "ours"
    ours.unlink(missing_ok=True)
    env = login.environment({"XAUTHORITY": str(ours), "TMPDIR": str(temporary(server))})
    if display:
        subprocess.run(
            ["xauth", "-q", "add", display, ".", COOKIE], env=env, check=True, capture_output=True, timeout=20
        )
        env["DISPLAY"] = display
    script = server.directory / "program.py"
    script.write_text(program)
    argv = login.argv(server, flag, HOST, sys.executable, str(script), *arguments)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, env=env)
    return done.returncode, done.stdout, done.stderr


def test_the_servers_programs_have_a_cookie_of_their_own(server: Sshd) -> None:
    display = server.lab.spawn(server.ns, sys.executable, "-c", _DISPLAY)
    server.lab.wait_listening(display, server.ns, 6099)
    code, out, err = run(server, "-Y", _PROGRAM)
    assert code == 0, err
    assert out.endswith(" b'welcome'\n")
    assert COOKIE not in out
    display.wait_output("setup", 10)
    assert display.output().count(COOKIE) == 1  # the display got the user's
    code, out, _ = run(server, "-Y", _PROGRAM, "wrong")
    assert "welcome" not in out
    assert display.output().count("setup 6c") == 1
    display.stop()


@pytest.mark.parametrize(("flag", "display"), [("-Y", ""), ("-x", "localhost:99")])
def test_without_a_display_or_asking_there_is_none(server: Sshd, flag: str, display: str) -> None:
    code, out, _ = run(server, flag, "import os; print('DISPLAY' in os.environ)", display=display)
    assert (code, out) == (0, "False\n")


def test_a_display_that_makes_no_cookie_is_not_forwarded_untrusted(server: Sshd) -> None:
    """-X: nobody listens there, so that xauth(1) can generate none."""
    code, out, err = run(server, "-X", "import os; print('DISPLAY' in os.environ)")
    assert (code, out) == (0, "False\n")
    assert err == "Warning: untrusted X11 forwarding setup failed: xauth key data not generated\n"
    assert not list(temporary(server).iterdir())
