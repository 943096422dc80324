"""Every client with every server, real programs through a real tunnel: what both of a cell know must work."""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.interop.debian import Unavailable
from tests.net import pqtun
from tests.net.process import LabError, wait_until
from tests.net.shell_stage import ECHO_PORT, ShellStage, shell_stage
from tests.net.ssh_clients import CLIENT_KEYS, CLIENTS, SSH_9, SSH_10, SshClient
from tests.net.ssh_keys import ED25519, MLDSA, PLAIN, STRANGER
from tests.net.ssh_servers import SERVERS, SSHD_9, SSHD_10, TINYSSHD, USER_KEYS, SshService
from tests.net.stage import PAGE, python
from tests.net.terminal import Terminal

CELLS = list(itertools.product(CLIENTS, SERVERS))
FORWARDING = [cell for cell in CELLS if cell[1] != TINYSSHD]  # TinySSH knows sessions only
SMALL, LARGE = 8_000_000, 200_000_000
CHANNELS = 50
ECHO_SOCKET = "/run/echo.sock"


@dataclass(frozen=True)
class Cell:
    """A client and a server that runs."""

    stage: ShellStage
    client: SshClient
    service: SshService

    def expect(self, code: int, stdout: str, *arguments: str, key: str = ED25519, stdin: bytes | None = None) -> None:
        """What ssh must end with and print, given these arguments; "@" among them is the host."""
        words = [self.service.name if word == "@" else word for word in arguments]
        argv = ("-i", str(self.stage.keys.path(key)), *words)
        done = self.client.run("ssh", *argv, check=False, stdin=stdin)
        assert (done.returncode, done.stdout) == (code, stdout), done.stderr

    @property
    def key(self) -> str:
        """The arguments that name the key which every server knows."""
        return str(self.stage.keys.path(ED25519))


@pytest.fixture(scope="module")
def shell() -> Iterator[ShellStage]:
    with shell_stage() as made:
        made.echo(made.net.server, f"127.0.0.1:{ECHO_PORT}", ECHO_SOCKET)
        yield made


@pytest.fixture
def cell(request: pytest.FixtureRequest, shell: ShellStage) -> Cell:
    client, server = request.param
    try:
        return Cell(shell, shell.clients[client], shell.server(server))
    except Unavailable as reason:
        pytest.skip(f"no {server}: {reason}")


def cells(chosen: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cell", chosen, ids=[" ".join(names) for names in chosen], indirect=True)


def at_once(*calls: Callable[[], None]) -> None:
    """Run them side by side; the first exception is raised when all have ended."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for running in [pool.submit(call) for call in calls]:
            running.result()


@cells(CELLS)
def test_login_with_each_key(cell: Cell) -> None:
    """Each type of key and certificate that both know opens, and no other key does."""
    kinds = [kind for kind in CLIENT_KEYS[cell.client.name] if kind in USER_KEYS[cell.service.name]]

    def opens(kind: str) -> None:
        cell.expect(0, "alice\n", "@", "id -un", key=kind)

    def refused() -> None:
        cell.expect(255, "", "@", "id -un", key=STRANGER)

    at_once(refused, *(partial(opens, kind) for kind in kinds))


@cells(CELLS)
def test_exec(cell: Cell) -> None:
    """Exit codes, an end by a signal, stdout and stderr apart, binary stdin to its end."""
    content = os.urandom(1_000_000)

    def ends(command: str, code: int) -> None:
        cell.expect(code, "began\n", "@", f"echo began; {command}")

    def apart() -> None:
        done = cell.client.run("ssh", "-i", cell.key, cell.service.name, "echo out; echo err >&2")
        assert (done.stdout, done.stderr) == ("out\n", "err\n")

    def whole() -> None:
        cell.expect(0, f"{hashlib.sha256(content).hexdigest()}  -\n", "@", "sha256sum", stdin=content)

    codes = [partial(ends, f"exit {code}", code) for code in (0, 3, 255)]
    at_once(*codes, partial(ends, "kill -KILL $$", 255), apart, whole)


@cells(CELLS)
def test_pty(cell: Cell) -> None:
    """The size arrives, and so does the next one; what is typed is edited by the far terminal."""
    watch = 'stty size; while [ "$(stty size)" = "24 80" ]; do sleep 0.05; done; stty size'
    watch += '; read word; echo "got $word"; exit 3'
    argv = cell.client.argv("ssh", "-tt", "-i", cell.key, cell.service.name, watch)
    with Terminal(argv, rows=24, columns=80, env=cell.client.all_environment()) as terminal:
        before = terminal.modes
        terminal.wait("24 80")
        assert terminal.modes != before  # raw
        terminal.resize(50, 132)
        terminal.wait("50 132")
        terminal.write("wrong\x7f\x7f\x7f\x7f\x7fright\r")
        terminal.wait("got right")
        assert terminal.end() == 3
        assert terminal.modes == before


@cells(CELLS)
def test_copies(cell: Cell) -> None:
    copies_both_ways(cell, SMALL, 60)


@pytest.mark.slow
@cells(CELLS)
def test_copies_of_200_megabytes(cell: Cell) -> None:
    copies_both_ways(cell, LARGE, 300)


def copies_both_ways(cell: Cell, size: int, timeout: float) -> None:
    """scp by both protocols, sftp and rsync, there and back; the digests are compared on both hosts."""
    home, away = cell.stage.dora.directory / "copies", cell.stage.alice.directory / "copies"
    for directory, owner in ((home, cell.stage.dora), (away, cell.stage.alice)):
        directory.mkdir(exist_ok=True)
        os.chown(directory, owner.uid, owner.gid)
    source = home / "source"
    source.write_bytes(os.urandom(size))
    source.chmod(0o644)
    identity, host, here = ("-i", cell.key), cell.service.name, f"{cell.stage.dora.home}/copies"

    def scp(flag: str) -> None:
        name = f"scp{flag}"
        for pair in ((f"{here}/source", f"{host}:copies/{name}"), (f"{host}:copies/{name}", f"{here}/{name}")):
            cell.client.run("scp", flag, "-q", *identity, *pair, timeout=timeout)

    def sftp() -> None:
        batch = f"put {here}/source copies/sftp\nget copies/sftp {here}/sftp\n"
        cell.client.run("sftp", "-q", *identity, "-b", "-", host, stdin=batch.encode(), timeout=timeout)

    def rsync() -> None:
        for pair in ((f"{here}/source", f"{host}:copies/rsync"), (f"{host}:copies/rsync", f"{here}/rsync")):
            cell.client.rsync(*pair, options=identity, timeout=timeout)

    try:
        at_once(lambda: scp("-s"), lambda: scp("-O"), sftp, rsync)
        wanted = digest(source)
        for name in ("scp-s", "scp-O", "sftp", "rsync"):
            assert (name, digest(away / name)) == (name, wanted)
            assert (name, digest(home / name)) == (name, wanted)
    finally:
        for path in (*home.iterdir(), *away.iterdir()):
            path.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


ECHOED = """
    import socket, sys
    address, count = sys.argv[1], int(sys.argv[2])
    def connected():
        if "/" in address:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(20)
            sock.connect(address)
            return sock
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), 20)
    open_ones = [connected() for _ in range(count)]
    for number, sock in enumerate(open_ones):  # all are open before the first one is heard
        sock.sendall(b"number %d " % number * 1000)
        sock.shutdown(socket.SHUT_WR)
    for number, sock in enumerate(open_ones):
        with sock.makefile("rb") as file:
            assert file.read() == b"number %d " % number * 1000, number
    print("all of them")
"""


@cells(FORWARDING)
def test_forwarding(cell: Cell, tmp_path: Path) -> None:
    """-L, -R and -D to TCP and Unix sockets, with 50 channels at once in one connection."""
    net, lab = cell.stage.net, cell.stage.lab
    local, back, socks = cell.stage.ports(3)
    paths = [f"/home/{user}/{cell.client.name}.{cell.service.name}" for user in ("dora", "alice")]
    here = cell.stage.ports(1)[0]
    cell.stage.echo(net.client, f"127.0.0.1:{here}")
    forwards = ["-L", f"{local}:127.0.0.1:{ECHO_PORT}", "-R", f"{back}:127.0.0.1:{here}", "-D", str(socks)]
    forwards += ["-L", f"{paths[0]}:{ECHO_SOCKET}", "-R", f"{paths[1]}:127.0.0.1:{here}"]
    argv = ["-N", "-o", "ExitOnForwardFailure=yes", "-i", cell.key, *forwards, cell.service.name]
    process = cell.client.spawn("ssh", *argv)
    homes = [cell.stage.dora.directory, cell.stage.alice.directory]
    sockets = [str(home / Path(path).name) for home, path in zip(homes, paths, strict=True)]

    def ready() -> bool:
        if not process.running:
            raise LabError(process.output())
        return lab.listening(net.client, socks) and lab.listening(net.server, back) and os.path.exists(sockets[1])

    wait_until(ready, 20, "the forwards")

    def echoed(ns: str, address: str, count: int) -> Callable[[], None]:
        def check() -> None:
            assert python(lab, ns, ECHOED, address, str(count)) == "all of them"

        return check

    def page(kind: str) -> Callable[[], None]:
        def check() -> None:
            argv = ["curl", "-sS", "--fail", "--max-time", "20", f"--{kind}", f"127.0.0.1:{socks}"]
            assert lab.run(net.client, *argv, "http://127.0.0.1/page").stdout == PAGE

        return check

    at_once(
        echoed(net.client, f"127.0.0.1:{local}", CHANNELS),
        echoed(net.server, f"127.0.0.1:{back}", 5),
        *(echoed(ns, path, 1) for ns, path in zip((net.client, net.server), sockets, strict=True)),
        *(page(kind) for kind in ("socks4", "socks4a", "socks5", "socks5-hostname")),
    )
    process.stop()


@cells(FORWARDING)
def test_stdio_and_jumps(cell: Cell) -> None:
    """-W, and through the server to others behind it with -J, three of which may be on the way."""

    def stdio() -> None:
        cell.expect(0, "to the echo\n", "-W", f"127.0.0.1:{ECHO_PORT}", "@", stdin=b"to the echo\n")

    def jump(behind: str, *hops: str) -> Callable[[], None]:
        cell.stage.server(behind)
        argv = ("-J", ",".join([f"via-{cell.service.name}", *hops]), f"behind-{behind}", "id -un; exit 3")
        return lambda: cell.expect(3, "alice\n", *argv)

    at_once(stdio, jump(SSHD_9), jump(SSHD_10), jump(SSHD_9, f"hop-{SSHD_10}", f"hop-{SSHD_9}"))


# meet.sh DIRECTORY NUMBER COUNT: says its number when so many of it have come.
MEET = """
mkdir -p $1
: >$1/$2
while [ $(ls $1 | wc -l) -lt $3 ]; do sleep 0.1; done
echo $2
"""


@cells(FORWARDING)
def test_fifty_sessions_at_once(cell: Cell) -> None:
    """In one connection that is shared (-M, -S); each ends when all are there."""
    socket, meet = f"{cell.stage.dora.home}/{cell.service.name}.mux", f"meet-{cell.client.name}"
    (cell.stage.alice.directory / "meet.sh").write_text(MEET)
    master = cell.client.spawn("ssh", "-M", "-S", socket, "-N", "-i", cell.key, cell.service.name)
    here = cell.stage.dora.directory / Path(socket).name
    wait_until(lambda: here.exists() or not master.running, 20, "the master")
    slave = shlex.join(cell.client.words("ssh", "-S", socket, cell.service.name, "sh", "meet.sh", meet))
    try:
        start = f"for number in $(seq {CHANNELS}); do {slave} $number {CHANNELS} & done; wait"
        said = cell.client.run("sh", "-c", start, timeout=60)
        assert sorted(map(int, said.stdout.split())) == list(range(1, CHANNELS + 1)), said.stderr + master.output()
    finally:
        shutil.rmtree(cell.stage.alice.directory / meet, ignore_errors=True)
        master.stop()


def agent_of(cell: Cell, kind: str) -> str:
    """The socket of an agent that holds one key: 10.6's, which knows all kinds, but for the ssh that has its own."""
    client = cell.client if cell.client.name == SSH_9 else cell.stage.clients[SSH_10]
    name = f"{client.name}.{kind}.agent"
    here, socket = cell.stage.dora.directory / name, f"{cell.stage.dora.home}/{name}"
    if not here.exists():
        client.spawn("ssh-agent", "-D", "-a", socket)
        wait_until(here.exists, 10, "the agent")
        client.run("env", f"SSH_AUTH_SOCK={socket}", "ssh-add", "-q", str(cell.stage.keys.path(kind)))
    return socket


@cells(CELLS)
def test_agent(cell: Cell) -> None:
    """A key in the agent opens, and where the agent is forwarded (-A) it opens the next host too."""
    onward = {ED25519: SSHD_9, MLDSA: SSHD_10}
    direct = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p"

    def opens(kind: str) -> None:
        agent = ("-o", f"IdentityAgent={agent_of(cell, kind)}", "-o", "IdentitiesOnly=no")
        done = cell.client.run("ssh", *agent, cell.service.name, "id -un; exit 3", check=False)
        assert (done.returncode, done.stdout) == (3, "alice\n"), done.stderr

    def forwarded(kind: str) -> None:
        ssh = "ssh"
        if kind == MLDSA and cell.service.name != SSHD_10:  # where the ssh of the server's host is 9.2
            ssh = f"PYTHONPATH={pqtun.ROOT} {shlex.join(pqtun.argv('ssh', '--direct'))}"
        port = cell.stage.server(onward[kind]).port
        agent = ("-A", "-o", f"IdentityAgent={agent_of(cell, kind)}")
        cell.expect(3, "alice\n", *agent, "@", f"{ssh} {direct} {port} 127.0.0.1 'id -un; exit 3'")

    kinds = [kind for kind in PLAIN if kind in CLIENT_KEYS[cell.client.name]]
    calls: list[Callable[[], None]] = [partial(opens, kind) for kind in kinds if kind in USER_KEYS[cell.service.name]]
    if cell.service.name != TINYSSHD:
        calls += [partial(forwarded, kind) for kind in kinds]
    at_once(*calls)
