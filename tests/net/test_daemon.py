"""Start, end and accidents of both daemons: what they leave behind, whom they run as, and what they say."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from tests.net import pqtun
from tests.net.lab import Lab
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import wait_until
from tests.net.stage import (
    Daemon,
    devices,
    gone,
    open_files,
    pids,
    process_status,
    python,
    refused,
    started,
    status,
    stopped,
    tables,
    tree,
)

ROLES = ["client", "server"]
DEVICE = {"client": "pqtcli0", "server": "pqtsrv0"}
NOBODY = 65534
ELSEWHERE = ("--address", "10.99.0.1/16", "--interface", "other0")
Make = Callable[[str], Daemon]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def ns(lab: Lab) -> str:
    return lab.namespace("host")


@pytest.fixture(scope="module")
def keys(lab: Lab, ns: str) -> Path:
    return PqtunServer(lab, ns, lab.directory / "keys").keys


_serial = count()


@pytest.fixture
def make(lab: Lab, ns: str, keys: Path) -> Iterator[Make]:
    """Makes daemons, each with a directory of its own, not started; ends them after the test."""
    made: list[Daemon] = []

    def make(role: str) -> Daemon:
        directory = lab.directory / f"{role}-{next(_serial)}"
        directory.mkdir()
        if role == "server":
            (directory / "keys").symlink_to(keys)
        made.append((PqtunServer if role == "server" else PqtunClient)(lab, ns, directory))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.process is not None:
            daemon.process.kill()
    wait_until(lambda: not pids(lab, ns), 5, "the end of all daemons")


@pytest.fixture(params=ROLES)
def daemon(request: pytest.FixtureRequest, make: Make) -> Daemon:
    return make(request.param)


def assert_nothing_left(daemon: Daemon) -> None:
    lab, ns = daemon.lab, daemon.ns
    assert devices(lab, ns) == {"lo"}
    assert tables(lab, ns) == []
    assert pids(lab, ns) == set()
    assert not daemon.run_directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_ends_when_told_and_leaves_state_only(daemon: Daemon, number: signal.Signals) -> None:
    before = tree(daemon.directory)
    process = started(daemon)
    assert devices(daemon.lab, daemon.ns) == {"lo", DEVICE[daemon.role]}
    assert tables(daemon.lab, daemon.ns) == (["table inet pqtun_client"] if daemon.role == "client" else [])
    process.signal(number)
    assert process.wait(2) == 0, process.output()
    assert_nothing_left(daemon)
    left = tree(daemon.directory) - before
    assert all(path.split("/")[0] == "state" for path in left), left
    assert "Traceback" not in process.output()


def test_ends_when_its_whole_process_group_is_interrupted(daemon: Daemon) -> None:
    """As by Ctrl-C in a terminal: parent and worker both get the signal."""
    process = started(daemon)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(2) == 0
    assert_nothing_left(daemon)
    assert "Traceback" not in process.output()


def test_told_to_end_while_it_starts(daemon: Daemon) -> None:
    """As soon as there is something to leave behind."""
    process = daemon.launch()
    wait_until(lambda: (daemon.run_directory / f"{daemon.role}.pid").exists(), 10, "the pid file", interval=0.001)
    process.signal(signal.SIGTERM)
    assert process.wait(2) == 0, process.output()
    assert_nothing_left(daemon)
    assert "Traceback" not in process.output()


def test_kill_of_the_parent_takes_all_with_it(daemon: Daemon) -> None:
    process = started(daemon)
    worker = status(daemon)["pid"]
    assert worker != process.pid
    process.signal(signal.SIGKILL)
    process.wait(2)
    wait_until(lambda: gone(worker), 2, "the end of the worker")
    wait_until(lambda: devices(daemon.lab, daemon.ns) == {"lo"}, 2, "the end of the device")
    wait_until(lambda: not tables(daemon.lab, daemon.ns), 2, "the end of the nftables table")
    # The files that it could not remove are in nobody's way.
    started(daemon)
    assert stopped(daemon) == 0
    assert_nothing_left(daemon)


def test_kill_of_the_worker_ends_the_parent(daemon: Daemon) -> None:
    process = started(daemon)
    os.kill(status(daemon)["pid"], signal.SIGKILL)
    assert process.wait(2) == 1
    assert "ended unexpectedly (signal 9)" in process.output()
    assert "Traceback" not in process.output()
    assert_nothing_left(daemon)


def test_a_worker_that_hangs_is_killed(daemon: Daemon) -> None:
    process = started(daemon)
    os.kill(status(daemon)["pid"], signal.SIGSTOP)
    process.signal(signal.SIGTERM)
    assert process.wait(2) == 0
    assert_nothing_left(daemon)


def test_removal_of_the_device_ends_it(daemon: Daemon) -> None:
    process = started(daemon)
    daemon.lab.run(daemon.ns, "ip", "link", "delete", DEVICE[daemon.role])
    assert process.wait(3) == 1
    assert "ended unexpectedly" in process.output()
    assert_nothing_left(daemon)


def test_worker_has_no_privileges(daemon: Daemon) -> None:
    process = started(daemon)
    worker = status(daemon)["pid"]
    found = process_status(worker)
    assert found["PPid"] == str(process.pid)
    assert found["Uid"].split() == [str(NOBODY)] * 4
    assert found["Gid"].split() == [str(NOBODY)] * 4
    assert found["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
    assert next(line for line in limits if line.startswith("Max core")).split()[4:6] == ["0", "0"]


def test_key_files_are_closed_once_read(make: Make, keys: Path) -> None:
    daemon = make("server")
    process = started(daemon)
    for pid in (process.pid, status(daemon)["pid"]):
        assert not [file for file in open_files(pid) if file.startswith(str(keys))]


def test_the_parent_keeps_nothing_of_the_workers(daemon: Daemon) -> None:
    """What it kept would keep the device and ports busy after the worker's end."""
    process = started(daemon)
    assert "/dev/net/tun" not in open_files(process.pid)


def test_second_start_is_refused(daemon: Daemon, make: Make) -> None:
    process = started(daemon)
    second = make(daemon.role)
    second.run_directory = daemon.run_directory
    said = refused(second)
    assert f"a pqtun {daemon.role} runs already (pid {process.pid}" in said
    assert status(daemon)["role"] == daemon.role
    assert process.running


def test_second_start_with_a_run_directory_of_its_own_is_refused(daemon: Daemon, make: Make) -> None:
    started(daemon)
    assert "is in use" in refused(make(daemon.role))
    assert status(daemon)["role"] == daemon.role


def test_second_client_with_nothing_in_common_is_refused(make: Make) -> None:
    """Both would redirect the lookups of this host."""
    daemon = make("client")
    started(daemon)
    said = refused(make("client"), "--port", "4000", *ELSEWHERE)
    assert "another pqtun client runs here" in said
    assert tables(daemon.lab, daemon.ns) == ["table inet pqtun_client"]
    assert status(daemon)["role"] == "client"


def test_client_and_server_share_a_run_directory(make: Make) -> None:
    client, server = make("client"), make("server")
    server.run_directory = client.run_directory
    started(client)
    started(server)
    said = client.command("status", "--run", str(client.run_directory), "--json")
    assert '"client": {' in said
    assert '"server": {' in said
    assert stopped(client) == 0
    assert status(server)["role"] == "server"
    assert stopped(server) == 0
    assert_nothing_left(server)


def test_port_in_use(daemon: Daemon, make: Make) -> None:
    started(make("server"))
    said = refused(daemon, "--port", "42424", *ELSEWHERE)
    assert "UDP port 42424 is in use by another program; stop it or choose another --port" in said


def test_key_port_in_use(make: Make) -> None:
    started(make("server"))
    said = refused(make("server"), "--port", "4000", "--key-port", "42424", *ELSEWHERE)
    assert "UDP port 42424 is in use by another program; stop it or choose another --key-port" in said


def test_one_port_for_two_services(make: Make) -> None:
    assert "choose two different ports" in refused(make("server"), "--key-port", "42424")


@pytest.fixture
def neighbour(lab: Lab, ns: str) -> Iterator[None]:
    """The host is in networks that overlap the usual subnets of both daemons."""
    lab.run(ns, "ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    lab.run(ns, "ip", "addr", "add", "10.42.7.1/24", "dev", "lan0")
    for device in ("lan0", "lan1"):
        lab.run(ns, "ip", "link", "set", device, "up")
    lab.run(ns, "ip", "route", "add", "10.43.128.0/17", "dev", "lan0")
    yield
    lab.run(ns, "ip", "link", "delete", "lan0")


@pytest.mark.usefixtures("neighbour")
def test_subnet_in_use_is_replaced_unless_chosen(daemon: Daemon) -> None:
    subnet = {"client": "10.43.0.0/16", "server": "10.42.0.0/16"}[daemon.role]
    chosen = subnet.replace(".0.0/", ".0.1/")
    said = refused(daemon, "--address", chosen)
    assert f"the subnet {subnet} is in use on this host" in said
    assert "--address" in said
    process = started(daemon)
    assert f"{subnet} is in use on this host: using 10.200.0.0/16" in process.output()
    assert status(daemon)["address"] == "10.200.0.1/16"
    addresses = daemon.lab.run(daemon.ns, "ip", "-brief", "addr", "show", DEVICE[daemon.role]).stdout
    assert "10.200.0.1/16" in addresses


def test_device_name_in_use(daemon: Daemon) -> None:
    daemon.lab.run(daemon.ns, "ip", "link", "add", "taken0", "type", "veth", "peer", "name", "taken1")
    try:
        said = refused(daemon, "--interface", "taken0")
    finally:
        daemon.lab.run(daemon.ns, "ip", "link", "delete", "taken0")
    assert "taken0" in said


def test_without_root(daemon: Daemon) -> None:
    # In one process, as an unprivileged user may not be able to read this checkout.
    code = """
        import os, sys
        import pqtun.cli.main, pqtun.daemon.client, pqtun.daemon.server
        pqtun.cli.main.parser()  # imports the commands
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        sys.stderr = sys.stdout
        print(pqtun.cli.main.main(sys.argv[1:]))
    """
    run = str(daemon.directory / "run")
    said = python(daemon.lab, daemon.ns, code, daemon.role, "--run", run).splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"pqtun {daemon.role}: must be started as root")
    assert said[1] == "1"
    assert_nothing_left(daemon)


def test_without_tun(daemon: Daemon) -> None:
    """In a mount namespace without /dev/net/tun."""
    command = daemon.launch().argv[4:]
    assert daemon.process is not None
    daemon.process.kill()
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    done = daemon.lab.run(daemon.ns, *argv, check=False, env=pqtun.environment())
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"pqtun {daemon.role}: ")
    assert "/dev/net/tun" in done.stderr
    assert_nothing_left(daemon)


def test_without_user(daemon: Daemon) -> None:
    assert "user no-such-user does not exist" in refused(daemon, "--user", "no-such-user")
    assert "root" in refused(daemon, "--user", "root")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# head\n\n[{role}]\nport = 42000\nprot = 42001\n", "line 5: unknown option 'prot' in [{role}]"),
        ("[{role}]\n[clent]\n", "line 2: unknown name 'clent'"),
        ("[{role}]\n\nport = 70000\n", "line 3: port = 70000: a port is a number from 1 to 65535"),
        ("[{role}]\nport = \n", "line 2"),
        ("[{role}]\naddress = '10.1.0.1'\n", "line 2: address ="),
    ],
    ids=["option", "section", "value", "syntax", "address"],
)
def test_malformed_config(daemon: Daemon, text: str, fault: str) -> None:
    config = daemon.directory / "pqtun.toml"
    config.write_text(text.format(role=daemon.role))
    said = refused(daemon, "--config", str(config))
    assert str(config) in said
    assert fault.format(role=daemon.role) in said


def test_config_is_used_and_flags_win(daemon: Daemon) -> None:
    config = daemon.directory / "pqtun.toml"
    config.write_text(f"[{daemon.role}]\nport = 42000\nmtu = 1300\ninterface = 'from-file'\n")
    started(daemon, "--config", str(config), "--interface", "from-flag")
    found = status(daemon)
    assert (found["port"], found["mtu"], found["interface"]) == (42000, 1300, "from-flag")
    assert daemon.lab.listening(daemon.ns, 42000, "udp")
    assert "from-flag" in devices(daemon.lab, daemon.ns)


def test_status_of_nothing(daemon: Daemon) -> None:
    argv = pqtun.argv("status", daemon.role, "--run", str(daemon.run_directory))
    done = daemon.lab.run(daemon.ns, *argv, check=False, env=pqtun.environment())
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no pqtun {daemon.role} runs with {daemon.run_directory}" in done.stderr


def test_signals_are_ours_whoever_starts_us(daemon: Daemon) -> None:
    """Where the end of children is ignored, a client would go on to redirect lookups to nobody."""
    command = daemon.launch().argv[4:]
    assert daemon.process is not None
    daemon.process.kill()
    daemon.process = daemon.lab.spawn(
        daemon.ns, "sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *command, env=pqtun.environment()
    )
    daemon.process.wait_output(f"{daemon.role} is ready", 20)
    os.kill(status(daemon)["pid"], signal.SIGKILL)
    assert daemon.process.wait(3) == 1
    assert "ended unexpectedly (signal 9)" in daemon.process.output()
    assert_nothing_left(daemon)


def test_nohup_is_respected(daemon: Daemon) -> None:
    command = daemon.launch().argv[4:]
    assert daemon.process is not None
    daemon.process.kill()
    process = daemon.process = daemon.lab.spawn(daemon.ns, "nohup", *command, env=pqtun.environment())
    process.wait_output(f"{daemon.role} is ready", 20)
    os.killpg(process.pid, signal.SIGHUP)
    process.signal(signal.SIGTERM)
    assert process.wait(2) == 0
    assert "stops (SIGTERM)" in process.output()


def test_told_to_end_while_the_worker_cannot_start(make: Make) -> None:
    daemon = make("client")
    state = daemon.directory / "state"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    with closing(sqlite3.connect(state / "peers.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        process = daemon.launch()
        wait_until(lambda: DEVICE["client"] in devices(daemon.lab, daemon.ns), 10, "the device")
        process.signal(signal.SIGTERM)
        assert process.wait(2) == 0, process.output()
    assert_nothing_left(daemon)


def test_closed_standard_descriptors(daemon: Daemon) -> None:
    """No file of ours may get the numbers 0 to 2: what anything prints would go into it."""
    command = daemon.launch().argv[4:]
    assert daemon.process is not None
    daemon.process.kill()
    process = daemon.process = daemon.lab.spawn(
        daemon.ns, "sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command, env=pqtun.environment()
    )
    socket = daemon.run_directory / f"{daemon.role}.sock"
    wait_until(socket.exists, 10, "the control socket")
    for pid in (process.pid, status(daemon)["pid"]):
        null = os.stat(os.devnull)
        assert all(os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), null) for number in range(3))
    assert stopped(daemon) == 0
    assert_nothing_left(daemon)


def test_the_worker_holds_no_lock_of_the_parent(daemon: Daemon) -> None:
    """It could write a pid of its choice for others to kill."""
    started(daemon)
    worker = status(daemon)["pid"]
    files = {os.path.realpath(entry) for entry in Path(f"/proc/{worker}/fd").iterdir()}  # some may close meanwhile
    assert str(daemon.run_directory / f"{daemon.role}.pid") not in files


def test_many_short_lives_one_after_the_other(daemon: Daemon) -> None:
    for _ in range(5):
        started(daemon)
        assert stopped(daemon) == 0
        assert_nothing_left(daemon)
