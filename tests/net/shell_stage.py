"""What the tests of the shell begin with: a tunnel between two hosts, users on them, SSH servers and SSH clients."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.interop.debian import Unavailable
from tests.net import pqtun
from tests.net.client_host import ClientHost
from tests.net.enclosure import Enclosure
from tests.net.lab import Lab
from tests.net.pqtun import PqtunClient
from tests.net.ssh_clients import CLIENTS, SshClient
from tests.net.ssh_keys import ED25519, PLAIN, Keys, openssh_root
from tests.net.ssh_servers import PORTS, SERVERS, SshServers, SshService
from tests.net.stage import HOST, Stage, started
from tests.net.users import Users

ECHO_PORT = 7007
CLIENT_IDS = 63_000
_CONFIG = """
Host {name} via-{name}
    HostName {host}
    Port {port}
Host behind-{name} hop-{name}
    HostName 127.0.0.1
    Port {port}
Host via-{name} hop-{name}
    IdentityFile {key}
"""
_CONFIG_END = """
Host *
    User alice
    BatchMode yes
    StrictHostKeyChecking yes
    UserKnownHostsFile {known}
    GlobalKnownHostsFile /dev/null
    IdentitiesOnly yes
    SendEnv LANG LC_*
    ConnectTimeout 15
"""


class ShellStage:
    """alice and bob of the server may log in with the keys that dora of the client has.

    Names of servers are hosts in the clients' configuration; behind-NAME is the same one
    as the server itself sees it. Both know no key; via-NAME and hop-NAME do, as jump hosts must.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stage = Stage(lab)
        self.net = self.stage.net
        self.users = Users(lab, self.net.server)
        self.alice = self.users.add("alice", groups=("project", "music"))
        self.bob = self.users.add("bob", shell="/bin/sh", groups=("project",))
        self.enclosure = Enclosure(lab, self.net.server, self.users)
        self.client_users = Users(lab, self.net.client, CLIENT_IDS)
        self.dora = self.client_users.add("dora")
        self._client_enclosure = Enclosure(lab, self.net.client, self.client_users)
        self.openssh = openssh_root(lab, self.net.client, self._client_enclosure)
        self.keys = Keys(lab, self.net.client, self._client_enclosure, self.dora, "alice,bob")
        for user in (self.alice, self.bob):
            self.users.authorize(user, *map(self.keys.public, PLAIN))
        started(self.stage.server)
        started(self.stage.client)
        self._pam()
        self._servers = SshServers(lab, self.net.server, self.enclosure, self.keys, self.openssh)
        self._running: dict[str, SshService] = {}
        self._known = self.keys.directory / "known_hosts"
        self.clients = self._clients(self.net.client, self._client_enclosure, self.stage.client)
        self._ports = itertools.count(20_000)
        self._configure()

    def server(self, name: str, *arguments: str) -> SshService:
        """The SSH server of that name, started if it does not run; `arguments` are for pqtun's."""
        running = self._running.get(name)
        if running is None or not running.process.running:
            self._running[name] = self._servers.start(name, dict(pqtun.environment()), *arguments)
            lines = [
                line
                for service in self._running.values()
                for host in (HOST, "127.0.0.1")
                for line in service.known_hosts(host)
            ]
            self._known.write_text("".join(f"{line}\n" for line in lines))
        return self._running[name]

    def stop(self, name: str) -> int:
        """End a server; its exit code."""
        return self._running.pop(name).process.stop()

    def clients_at(self, host: ClientHost) -> dict[str, SshClient]:
        """The clients once more, of a dora of another host; her name has the same number there."""
        users = Users(self.lab, host.ns, CLIENT_IDS)
        assert users.add("dora") == replace(self.dora, directory=users["dora"].directory)
        return self._clients(host.ns, Enclosure(self.lab, host.ns, users), host.client)

    def _clients(self, ns: str, enclosure: Enclosure, daemon: PqtunClient) -> dict[str, SshClient]:
        # Where programs look for the daemon of their host.
        (enclosure.directory / "run/pqtun").symlink_to(daemon.run_directory)
        return {name: SshClient(name, self.lab, ns, enclosure, self.dora, self.openssh) for name in CLIENTS}

    def echo(self, ns: str, *addresses: str) -> None:
        """Start a server that sends back what comes, on "host:port" or paths of sockets."""
        script = str(Path(__file__).with_name("echo_server.py"))
        process = self.lab.spawn(ns, *self.enclosure.argv(sys.executable, script, *addresses))
        process.wait_output("the echo is ready", 15)

    def ports(self, count: int) -> list[int]:
        """TCP ports that nothing of the tests listens on, each given once."""
        return list(itertools.islice(self._ports, count))

    def _pam(self) -> None:
        """What PAM has on this machine, and the service that pqtun comes with."""
        service = pqtun.ROOT / "misc/pqtun-sshd.pam"
        if Path("/etc/pam.d").is_dir() and service.exists():
            own = Path("/etc/netns") / self.net.server / "pam.d"
            shutil.copytree("/etc/pam.d", own)
            shutil.copy(service, own / "pqtun-sshd")

    def _configure(self) -> None:
        key = self.keys.path(ED25519)
        config = "".join(_CONFIG.format(name=name, host=HOST, port=PORTS[name], key=key) for name in SERVERS)
        (self.lab.directory / "ssh_config").write_text(config + _CONFIG_END.format(known=self._known))


@contextmanager
def shell_stage(*servers: str) -> Iterator[ShellStage]:
    """A Lab with a ShellStage, these servers started; the test is skipped where OpenSSH 10.6 cannot be had."""
    with Lab() as lab:
        try:
            made = ShellStage(lab)
            for server in servers:
                made.server(server)
        except Unavailable as reason:
            pytest.skip(f"no OpenSSH 10.6: {reason}")
        yield made
