"""What is done while asyncssh is loaded, in a network of the test's own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from pqtun.shell.client import ahead, transport
from pqtun.shell.client.config import Config, resolve
from pqtun.shell.client.options import parse
from pqtun.shell.client.transport import Address
from tests.net.pqtun import ROOT

BEGIN = """
    import socket, subprocess, sys, time
    from pqtun.protocol.errors import UserError
    from pqtun.shell.client import ahead
    from pqtun.shell.client.config import resolve
    from pqtun.shell.client.options import parse
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    def begun(*arguments):
        options = parse(["-F", "none", *arguments])
        return ahead.start(options, resolve(options)).result(20)
"""


def alone(code: str) -> str:
    argv = ["unshare", "--net", sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(code)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments", [("-J", "other", "host"), ("-o", "ProxyCommand=nc %h %p", "host"), ("--persistent", "host")]
)
def test_where_others_connect_nothing_begins(arguments: tuple[str, ...]) -> None:
    options = parse(["-F", "none", *arguments])
    assert ahead.start(options, resolve(options)) is None


def test_a_fault_that_nobody_thought_of_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(config: Config) -> list[Address]:
        raise ValueError("fault")

    monkeypatch.setattr(transport, "look_up", look_up)
    options = parse(["-F", "none", "host"])
    begun = ahead.start(options, resolve(options))
    assert begun is not None
    with pytest.raises(ValueError, match="fault"):
        begun.result(20)


@pytest.mark.root
def test_the_first_address_is_connected_to_and_taken_once() -> None:
    said = alone("""
        listener = socket.create_server(("127.0.0.1", 2222))
        found = begun("--direct", "-p", "2222", "127.0.0.1")
        accepted, peer = listener.accept()
        (address,) = found.addresses
        sock = found.take(address)
        assert sock.getsockname() == peer and not sock.getblocking()
        assert found.take(address) is None
        accepted.setblocking(False)
        try:
            accepted.recv(1)
        except BlockingIOError:
            print("nothing was sent")
    """)
    assert said == "nothing was sent\n"


@pytest.mark.root
def test_nobody_is_connected_to_outside_a_tunnel() -> None:
    said = alone("""
        listener = socket.create_server(("127.0.0.1", 2222))
        listener.setblocking(False)
        found = begun("--run", "/nonexistent", "-p", "2222", "127.0.0.1")
        assert found.sock is None and found.known is None
        try:
            listener.accept()
        except BlockingIOError:
            print("nobody came")
    """)
    assert said == "nobody came\n"


@pytest.mark.root
def test_what_fails_is_left_to_others_but_for_names() -> None:
    said = alone("""
        found = begun("--direct", "-p", "9", "127.0.0.1")
        assert found.addresses and found.sock is None
        try:
            begun("nothing.invalid")
        except UserError as error:
            print(error)
    """)
    assert said.startswith("Could not resolve hostname nothing.invalid: ")
