"""`pqtun ssh --persistent` with a server that comes and goes."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon.backoff import JITTER, LONGEST_PAUSE
from pqtun.shell.client.persistent import REFUSED_SECONDS, STABLE_SECONDS, Schedule
from tests.net.process import Process, wait_until
from tests.shell.client.sshd import ADDRESS, PORT, Sshd
from tests.shell.client.terminals import Terminal

ROOT = Path(__file__).parents[3]
LOCAL, REMOTE, SOCKS = 2401, 2402, 2403
_ports = itertools.count(2410)


def test_pauses_grow_to_a_bound_and_begin_again_after_a_stable_connection() -> None:
    schedule = Schedule()
    now, pauses = 1000.0, []
    for _ in range(8):
        pauses.append(schedule.pause(now))
        now += pauses[-1]
    for number, pause in enumerate(pauses):
        middle = min(2**number, LONGEST_PAUSE)
        assert middle * (1 - JITTER) <= pause <= middle * (1 + JITTER)
    schedule.connected(now)
    assert schedule.pause(now + STABLE_SECONDS - 1) >= LONGEST_PAUSE * (1 - JITTER)
    schedule.connected(now)
    assert schedule.pause(now + STABLE_SECONDS) <= 1 + JITTER


def test_a_refusal_is_the_end_but_for_a_while_where_the_login_went_well_before() -> None:
    schedule = Schedule()
    assert not schedule.refused(0)
    schedule = Schedule()
    schedule.connected(0)
    assert schedule.refused(100)
    assert schedule.refused(99 + REFUSED_SECONDS)
    assert not schedule.refused(100 + REFUSED_SECONDS)
    schedule.connected(1000)
    assert schedule.refused(1000)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1000)), max_size=40))
def test_no_pause_is_longer_than_the_longest_or_none_at_all(events: list[tuple[bool, float]]) -> None:
    schedule, now = Schedule(), 0.0
    for up, elapsed in events:
        now += elapsed
        if up:
            schedule.connected(now)
        else:
            assert 1 - JITTER <= schedule.pause(now) <= LONGEST_PAUSE * (1 + JITTER)


def argv(sshd: Sshd, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pqtun", "ssh", "--direct", "--persistent", *sshd.options(), *arguments]


def spawn(sshd: Sshd, *arguments: str) -> Process:
    return sshd.lab.spawn(sshd.ns, *argv(sshd, *arguments), f"root@{ADDRESS}", env={"PYTHONPATH": str(ROOT)})


def reaches_sshd(sshd: Sshd, port: int, before: str = "") -> bool:
    script = f"exec 3<>/dev/tcp/{ADDRESS}/{port} && {before} head -c 4 <&3"
    return sshd.lab.run(sshd.ns, "bash", "-c", script, check=False, timeout=30).stdout == "SSH-"


@pytest.fixture
def server(sshd: Sshd) -> Iterator[Sshd]:
    yield sshd
    if not sshd.process.running:
        sshd.start()


@pytest.mark.net
def test_forwards_work_again_when_the_server_is_back(server: Sshd) -> None:
    to_sshd = f"{ADDRESS}:{PORT}"
    process = spawn(server, "-N", "-L", f"{LOCAL}:{to_sshd}", "-R", f"{REMOTE}:{to_sshd}", "-D", str(SOCKS))
    for _ in range(2):
        wait_until(lambda: server.lab.listening(server.ns, REMOTE), 30, "the remote forward")
        assert reaches_sshd(server, LOCAL)
        assert reaches_sshd(server, REMOTE)
        assert reaches_sshd(
            server, SOCKS, r"printf '\x04\x01\x00\x16\x7f\x00\x00\x01\x00' >&3; head -c 8 <&3 >/dev/null;"
        )
        server.kill()
        assert server.lab.listening(server.ns, LOCAL)  # stays bound
        assert server.lab.listening(server.ns, SOCKS)
        assert process.running
        server.start()
        assert reaches_sshd(server, LOCAL)  # waits for the connection
    assert f"connected to {ADDRESS} again" in process.output()
    process.signal(signal.SIGINT)
    assert process.wait(20) == 255
    assert not server.lab.listening(server.ns, LOCAL)


@pytest.mark.net
def test_it_waits_for_a_server_that_is_not_there_yet(server: Sshd) -> None:
    server.kill()
    port = next(_ports)
    process = spawn(server, "-N", "-L", f"{port}:{ADDRESS}:{PORT}")
    process.wait_output("trying again", 20)
    server.start()
    wait_until(lambda: server.lab.listening(server.ns, port), 30, "the forward")
    assert reaches_sshd(server, port)
    process.stop()


@pytest.mark.net
def test_a_port_that_the_server_still_holds_is_asked_for_again(server: Sshd) -> None:
    port = next(_ports)
    process = spawn(server, "-N", "-R", f"{ADDRESS}:{port}:{ADDRESS}:{PORT}")
    wait_until(lambda: server.lab.listening(server.ns, port), 30, "the remote forward")
    server.kill()
    script = f"import socket; s = socket.create_server(('{ADDRESS}', {port})); print('held', flush=True); s.accept()"
    holder = server.lab.spawn(server.ns, sys.executable, "-c", script)
    holder.wait_output("held", 20)
    server.start()
    process.wait_output(f"refuses -R {ADDRESS}:{port}", 30)
    holder.kill()
    wait_until(lambda: reaches_sshd(server, port), 30, "the remote forward")
    process.stop()


@pytest.mark.net
def test_a_server_that_falls_silent_is_noticed(server: Sshd) -> None:
    port = next(_ports)
    silence = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    process = spawn(server, *silence, "-N", "-L", f"{port}:{ADDRESS}:{PORT}")
    wait_until(lambda: server.lab.listening(server.ns, port), 30, "the forward")
    stopped = server.descendants()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        process.wait_output("again", 30)
        assert "not responding" in process.output()
        assert reaches_sshd(server, port)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    process.stop()


@pytest.mark.net
def test_a_refused_login_is_the_end(server: Sshd, tmp_path: Path) -> None:
    refused = spawn(server, "-N", "-l", "nobody-here")
    assert refused.wait(30) == 255
    assert "Permission denied" in refused.output()
    assert "trying again" not in refused.output()


@pytest.mark.net
def test_a_server_that_boots_refuses_everybody_for_a_while(server: Sshd) -> None:
    port = next(_ports)
    process = spawn(server, "-N", "-L", f"{port}:{ADDRESS}:{PORT}")
    wait_until(lambda: server.lab.listening(server.ns, port), 30, "the forward")
    keys = server.key.with_suffix(".pub")
    server.kill()
    keys.rename(keys.with_suffix(".not-yet"))
    server.start()
    try:
        process.wait_output("Permission denied (publickey); trying again", 30)
    finally:
        keys.with_suffix(".not-yet").rename(keys)
    process.wait_output("connected to", 30)
    assert reaches_sshd(server, port)
    process.stop()


@pytest.mark.net
def test_another_host_key_is_the_end_also_later(server: Sshd) -> None:
    port = next(_ports)
    process = spawn(server, "-N", "-L", f"{port}:{ADDRESS}:{PORT}")
    wait_until(lambda: server.lab.listening(server.ns, port), 30, "the forward")
    server.kill()
    known = server.known_hosts.read_text()
    server.known_hosts.write_text(
        known.replace((server.directory / "host.pub").read_text(), server.key.with_suffix(".pub").read_text())
    )
    server.start()
    try:
        assert process.wait(30) == 255
    finally:
        server.known_hosts.write_text(known)
    assert "ost key" in process.output()


@pytest.mark.net
def test_a_mistake_is_the_end(server: Sshd) -> None:
    process = spawn(server, "-N", "-o", "Ciphers=none-such")
    assert process.wait(30) == 255
    assert "trying again" not in process.output()


@pytest.mark.net
def test_a_command_is_not_run_twice_and_its_code_is_the_programs(server: Sshd, tmp_path: Path) -> None:
    ended = server.lab.run(
        server.ns, *argv(server, f"root@{ADDRESS}", "exit 7"), env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert ended.returncode == 7
    process = server.lab.spawn(
        server.ns,
        *argv(server, "-n", f"root@{ADDRESS}", f"echo run >> {tmp_path}/runs; sleep 1000"),
        env={"PYTHONPATH": str(ROOT)},
    )
    wait_until((tmp_path / "runs").exists, 30, "the command")
    server.kill()
    server.start()
    assert process.wait(30) == 255
    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.net
def test_a_person_gets_a_new_shell_and_is_told(server: Sshd) -> None:
    full = server.lab.argv(server.ns, *argv(server, f"root@{ADDRESS}"))
    with Terminal(full, env={**os.environ, "PYTHONPATH": str(ROOT)}) as terminal:
        terminal.type("echo fi''rst\r")
        terminal.wait_for("first")
        server.kill()
        server.start()
        terminal.wait_for("this is a new session")
        assert "closed" in terminal.seen
        terminal.type("echo sec''ond\r")
        terminal.wait_for("second")
        terminal.type("exit 3\r")
        assert terminal.wait() == 3
        assert not terminal.raw


@pytest.mark.net
def test_a_change_of_the_network_is_a_reason_to_try_at_once(server: Sshd) -> None:
    server.kill()
    port = next(_ports)
    process = spawn(server, "-v", "-N", "-L", f"{port}:{ADDRESS}:{PORT}")

    def long_pause() -> bool:
        return process.output().count("The next attempt comes in") >= 3

    wait_until(long_pause, 30, "pauses to grow")
    attempts = process.output().count("The next attempt comes in")
    server.start()
    server.lab.run(server.ns, "ip", "addr", "add", "127.0.0.9/8", "dev", "lo")
    try:
        wait_until(lambda: server.lab.listening(server.ns, port), 30, "the forward")
    finally:
        server.lab.run(server.ns, "ip", "addr", "del", "127.0.0.9/8", "dev", "lo")
    assert "The network changed" in process.output()[process.output().rindex("The next attempt comes in") :]
    assert process.output().count("The next attempt comes in") == attempts
    process.stop()
