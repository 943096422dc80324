import os
import select
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from pqtun.daemon import supervisor

PROGRAM = r"""
import asyncio, contextlib, os, pwd, signal, sys, time
from pqtun.daemon import supervisor
from pqtun.protocol.errors import UserError

async def serve(ready, stop):
    ready()
    await stop.wait()

async def refuse(ready, stop):
    raise UserError("the key is too short")

async def fail(ready, stop):
    raise RuntimeError("a fault with a secret")

async def deaf(ready, stop):
    ready()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(1, b"deaf\n")
    await asyncio.Event().wait()

async def killed(ready, stop):
    ready()
    os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def guard():
    os.write(1, b"guard up\n")
    yield
    os.write(1, b"guard down\n")

supervisor.prepare()
body = globals()[sys.argv[1]]
try:
    code = supervisor.supervise("test", pwd.getpwnam("nobody"), body, handed=[], kept=[], guard=guard)
except UserError as error:
    sys.exit(f"error: {error}")
sys.exit(code)
"""

pytestmark = pytest.mark.root


def start(body, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def end(process):
    out, err = process.communicate(timeout=20)
    return process.returncode, out.splitlines(), err


def child_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return int(children.read().split()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_both(number):
    process = start("serve")
    assert process.stdout.readline() == "guard up\n"
    worker = child_of(process.pid)
    process.send_signal(number)
    code, out, _ = end(process)
    assert (code, out) == (0, ["guard down"])
    assert not os.path.exists(f"/proc/{worker}")


def test_a_deaf_worker_is_killed():
    process = start("deaf")
    lines = {process.stdout.readline(), process.stdout.readline()}
    assert lines == {"guard up\n", "deaf\n"}
    process.terminate()
    assert end(process)[:2] == (0, ["guard down"])


def test_a_worker_that_cannot_start_says_why():
    code, out, err = end(start("refuse"))
    assert (code, out) == (1, [])
    assert "error: the key is too short" in err


def test_a_fault_at_start_is_one_clear_line():
    code, out, err = end(start("fail"))
    assert (code, out) == (1, [])
    assert "error: the worker of pqtun test ended while it started" in err


def test_a_worker_that_dies_ends_the_parent():
    process = start("killed")
    code, out, err = end(process)
    assert (code, out) == (1, ["guard up", "guard down"])
    assert "signal 9" in err


def test_a_killed_parent_takes_its_worker_with_it():
    process = start("serve")
    assert process.stdout.readline() == "guard up\n"
    worker = os.pidfd_open(child_of(process.pid))
    process.kill()
    end(process)
    with os.fdopen(worker, closefd=True) as ended:
        assert select.select([ended], [], [], 10)[0]


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path, abstract):
    name = f"@pqtun-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind(name.replace("@", "\0", 1))
        process = start("serve", NOTIFY_SOCKET=name)
        assert sock.recv(100) == b"READY=1"
        process.terminate()
        assert end(process)[0] == 0


def test_the_time_to_stop_is_within_what_is_promised():
    assert supervisor.STOP_SECONDS < 2
