"""Clients that do not behave, at `pqtun sshd`: it stays, the others notice nothing, and what it cost comes back."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.machine import memory
from tests.net.client_host import client_host
from tests.net.process import Process, wait_until
from tests.net.shell_stage import ShellStage, shell_stage
from tests.net.ssh import EchoSession
from tests.net.ssh_clients import PQTUN_SSH, SSH_9, SshClient
from tests.net.ssh_keys import ED25519
from tests.net.ssh_servers import PORTS, PQTUN_SSHD
from tests.net.stage import HOST, started

SCRIPT = str(Path(__file__).with_name("hostile.py"))
CROWD = 1000
STARTUPS_OF_A_SOURCE = 10  # the default of max_startups_source
LOGIN_SECONDS = 10.0
ROUNDS, NOISE = 12, 4  # connections of a round: fewer than the failures that an address is forgiven
GROWN = 4_000_000  # bytes that the service may hold more of than before: allocators keep a little


@pytest.fixture(scope="module")
def shell() -> Iterator[ShellStage]:
    with shell_stage(PQTUN_SSHD) as made:
        yield made


@pytest.fixture
def witness(shell: ShellStage) -> Iterator[EchoSession]:
    """A session of another user, which must not notice anything."""
    argv = shell.clients[SSH_9].argv("ssh", "-i", key(shell), "-l", "bob", PQTUN_SSHD, EchoSession.COMMAND)
    session = EchoSession(argv)
    session.echo("before", 20)
    yield session
    session.echo("after")
    session.close()


def key(shell: ShellStage) -> str:
    return str(shell.keys.path(ED25519))


def logs_in(shell: ShellStage, client: SshClient) -> None:
    assert client.run("ssh", "-i", key(shell), PQTUN_SSHD, "id -un").stdout == "alice\n"


def hostile(shell: ShellStage, *arguments: str) -> Process:
    return shell.lab.spawn(shell.net.client, sys.executable, SCRIPT, HOST, str(PORTS[PQTUN_SSHD]), *arguments)


def children(process: Process) -> set[int]:
    """The processes of the service but the first."""
    found, queue = set(), [process.pid]
    while queue:
        pid = queue.pop()
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for listing in Path(f"/proc/{pid}/task").glob("*/children"):
                pids = set(map(int, listing.read_text().split()))
                found |= pids
                queue += pids
    return found


def test_a_crowd_that_never_logs_in(shell: ShellStage, witness: EchoSession) -> None:
    """A thousand connections of one address: it gets as many places as an address may have, and loses them in time.

    Another address logs in meanwhile. Afterwards there are no more processes and no more memory than before.
    """
    service = shell.server(PQTUN_SSHD).process
    lines = service.output().count("\n")
    other = client_host(shell.stage, 1)
    started(other.client)
    honest = shell.clients_at(other)[SSH_9]
    logs_in(shell, honest)
    before, processes = memory(service.pid), children(service)

    crowd = hostile(shell, "crowd", str(CROWD))
    crowd.wait_output(f"{CROWD} are open", 60)
    logs_in(shell, honest)
    witness.echo("in the crowd")
    assert len(children(service) - processes) <= 3 * STARTUPS_OF_A_SOURCE
    assert crowd.wait(60) == 0, crowd.output()
    said = json.loads(crowd.output().splitlines()[-1])
    assert said["held"] == 0
    assert said["greeted"] <= STARTUPS_OF_A_SOURCE
    assert said["longest"] <= LOGIN_SECONDS + 5

    wait_until(lambda: children(service) <= processes, 20, "the end of their processes")
    assert memory(service.pid).pss <= before.pss + GROWN
    assert service.output().count("\n") - lines <= 20  # not a line each
    # The address has to wait for what it did, and then it is welcome again.
    wait_until(
        lambda: shell.clients[SSH_9].run("ssh", "-i", key(shell), PQTUN_SSHD, "true", check=False).returncode == 0,
        90,
        "it",
    )


def test_malformed_packets(shell: ShellStage, witness: EchoSession) -> None:
    service = shell.server(PQTUN_SSHD).process
    lines = service.output().count("\n")
    for number in range(ROUNDS):
        process = hostile(shell, "noise", str(NOISE), f"round {number}")
        assert process.wait(60) == 0, process.output()
        logs_in(shell, shell.clients[SSH_9])
        witness.echo(f"after round {number}")
    assert service.running
    said = service.output().split("\n", lines)[-1]
    assert "Traceback" not in said
    assert said.count("\n") <= 20


@pytest.mark.parametrize("name", [SSH_9, PQTUN_SSH])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_client_killed_in_mid_transfer(shell: ShellStage, witness: EchoSession, name: str, direction: str) -> None:
    """It cannot say goodbye; its processes end all the same, and so do those of the user."""
    service = shell.server(PQTUN_SSHD).process
    before, target = children(service), shell.alice.directory / f"endless-{name}-{direction}"
    client = shell.clients[name]
    remote, local = (
        (f"cat > {target.name}", "cat /dev/zero |") if direction == "up" else (f"exec tee {target.name} </dev/zero", "")
    )
    words = " ".join(client.words("ssh", "-i", key(shell), PQTUN_SSHD, f"'{remote}'"))
    transfer = client.spawn("sh", "-c", f"{local} {words} >/dev/null")
    try:
        wait_until(
            lambda: target.exists() and target.stat().st_size > 2_000_000, 30, f"the transfer {transfer.output()}"
        )
        assert children(service) - before
        os.killpg(transfer.pid, signal.SIGKILL)
        wait_until(lambda: children(service) <= before, 20, "the end of its processes")
        logs_in(shell, client)
    finally:
        transfer.kill()
        target.unlink(missing_ok=True)
