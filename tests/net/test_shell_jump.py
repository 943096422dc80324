"""Three hops, each through a tunnel of its own: a host behind a host behind a host, all with `pqtun sshd`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net import pqtun
from tests.net.enclosure import Enclosure
from tests.net.lab import RESOLVER4
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.shell_stage import ShellStage, shell_stage
from tests.net.ssh_clients import CLIENTS, PQTUN_SSH
from tests.net.ssh_keys import ED25519, MLDSA, PLAIN
from tests.net.ssh_servers import PORTS, PQTUN_SSHD, SshServers, SshService
from tests.net.stage import SERVER_SUBNET, is_private, started
from tests.net.users import Users

HOPS = ("middle", "last")  # behind the server of the stage
_CONFIG = """
Host {name}
    HostName {name}.example.net
    Port {port}
    IdentityFile {key}
"""


class Hop:
    """A host with a tunnel's server and `pqtun sshd`; alice has the same keys there."""

    def __init__(self, shell: ShellStage, number: int, name: str) -> None:
        lab, net = shell.lab, shell.net
        self.name = name
        self.ns = lab.namespace(name, nameservers=[RESOLVER4])
        v4 = f"198.18.{200 + number}."
        lab.link(((net.router, name), (self.ns, "eth0")), ([f"{v4}1/24"], [f"{v4}10/24"]))
        lab.route(self.ns, "default", f"{v4}1")
        users = Users(lab, self.ns, 64_000 + 100 * number)
        users.authorize(users.add("alice"), *map(shell.keys.public, PLAIN))
        self.enclosure = Enclosure(lab, self.ns, users)
        server = PqtunServer(lab, self.ns, lab.directory / name)
        shell.stage.add_records(*server.announce(f"{name}.example.net", address=f"{v4}10").splitlines())
        started(server)
        servers = SshServers(lab, self.ns, self.enclosure, shell.keys, shell.openssh)
        self.sshd: SshService = servers.start(PQTUN_SSHD, dict(pqtun.environment()), "--pam", "none")


@pytest.fixture(scope="module")
def shell() -> Iterator[ShellStage]:
    """The host of the stage, and each but the last of those behind it, has a tunnel's client too."""
    with shell_stage(PQTUN_SSHD) as made:
        lab = made.lab
        hops = [Hop(made, number, name) for number, name in enumerate(HOPS)]
        for ns in (made.net.server, hops[0].ns):
            started(PqtunClient(lab, ns, lab.directory / f"client-of-{ns}"))
        known = made.keys.directory / "known_hosts"
        config = lab.directory / "ssh_config"
        with known.open("a") as hosts, config.open("r+") as settings:
            rest = settings.read()
            settings.seek(0)
            for hop in hops:
                hosts.writelines(f"{line}\n" for line in hop.sshd.known_hosts(f"{hop.name}.example.net"))
                key = made.keys.path(ED25519)
                settings.write(_CONFIG.format(name=hop.name, port=PORTS[PQTUN_SSHD], key=key))
            settings.write(rest)
        yield made


@pytest.mark.parametrize("name", CLIENTS)
def test_through_two_hosts_to_a_third(shell: ShellStage, name: str) -> None:
    """Each hop's name is looked up where the one before it is, and leads into that host's tunnel."""
    argv = ["-J", f"via-{PQTUN_SSHD},middle", "last", "echo $SSH_CONNECTION; exit 3"]
    done = shell.clients[name].run("ssh", *argv, check=False)
    assert done.returncode == 3, done.stderr
    source, _, own, port = done.stdout.split()
    assert is_private(source, SERVER_SUBNET)
    assert is_private(own, SERVER_SUBNET)
    assert port == str(PORTS[PQTUN_SSHD])


def test_a_copy_through_them(shell: ShellStage) -> None:
    """And files go there and back as well."""
    source = shell.dora.directory / "source"
    source.write_bytes(bytes(range(256)) * 10_000)
    source.chmod(0o644)
    client, jump = shell.clients[PQTUN_SSH], ("-J", f"via-{PQTUN_SSHD},middle")
    home = shell.dora.home
    for pair in ((f"{home}/source", "last:there"), ("last:there", f"{home}/back")):
        client.run("scp", "-q", *jump, *pair)
    assert (shell.dora.directory / "back").read_bytes() == source.read_bytes()


def test_the_last_one_knows_a_post_quantum_key(shell: ShellStage) -> None:
    argv = ["-J", f"via-{PQTUN_SSHD},middle", "-o", "IdentityFile=none", "-i", str(shell.keys.path(MLDSA)), "last"]
    assert shell.clients[PQTUN_SSH].run("ssh", *argv, "id -un").stdout == "alice\n"
