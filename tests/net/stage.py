"""What most tests of the daemons begin with: the topology, pqtun on both hosts, and the services around it.

HOST is announced, PLAIN is not; both are the same web server. No daemon runs yet.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqtun.daemon.control import ask
from pqtun.protocol import private6
from pqtun.protocol.errors import UserError
from pqtun.protocol.names import make_label, parse_name
from tests.net import pqtun
from tests.net.lab import SERVER4, SERVER6, Conditions, Lab, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import LabError, Process, wait_until

HOST, PLAIN = "www.example.net", "plain.example.net"
SOA = "example.net. 60 IN SOA ns.example.net. host.example.net. 1 60 60 60 60\n"
CLIENT_SUBNET = ipaddress.IPv4Network("10.43.0.0/16")
SERVER_SUBNET = ipaddress.IPv4Network("10.42.0.0/16")
PAGE = "a page for everybody"
STOP_SECONDS = 2.0

Daemon = PqtunServer | PqtunClient


def is_private(address: str, subnet: ipaddress.IPv4Network) -> bool:
    """Whether it is an address inside a tunnel: one of the subnet, or of the IPv6 network that goes with that."""
    parsed = ipaddress.ip_address(address)
    return parsed in (subnet if parsed.version == 4 else private6.prefix(subnet))


@dataclass(frozen=True)
class Fetched:
    """What curl brought, from where, and the address that the web server saw it come from."""

    text: str
    address: str
    seen: str

    @property
    def tunnelled(self) -> bool:
        """Whether both ends saw private addresses."""
        return is_private(self.address, CLIENT_SUBNET) and is_private(self.seen, SERVER_SUBNET)


class Stage:
    """The standard topology with DNS and web servers, and pqtun ready to start on both hosts."""

    def __init__(self, lab: Lab, conditions: Conditions | None = None) -> None:
        self.lab = lab
        self.net = standard_topology(lab, conditions)
        self.server = PqtunServer(lab, self.net.server, lab.directory / "server")
        self.client = PqtunClient(lab, self.net.client, lab.directory / "client")
        self.announced = self.server.announce(HOST, address=SERVER4, arguments=("--address", SERVER6))
        self.label = next(word for word in self.announced.split() if word.startswith("pq1")).rstrip(".")
        https = f"{HOST}. 60 IN HTTPS 1 . ipv4hint={SERVER4} ipv6hint={SERVER6}\n"
        self._records = SOA + self.announced + f"{PLAIN}. 60 IN A {SERVER4}\n{PLAIN}. 60 IN AAAA {SERVER6}\n"
        self._records += https.replace(HOST, PLAIN) + https.replace(HOST, self.label)
        self.dns = lab.dns_server(self.net.resolver, self._records)
        self.files = lab.directory / "www"
        self.files.mkdir()
        (self.files / "page").write_text(PAGE)
        self.web = lab.web_server(self.net.server, self.files)

    @property
    def keyhash(self) -> bytes:
        """The hash of the server's key (32 bytes)."""
        announcement = parse_name(self.label)
        assert announcement is not None
        return announcement.keyhash

    def announce(self, host: str, keyhash: bytes, address: str, ports: tuple[int, int] | None = None) -> None:
        """Add an announcement of any key to the zone, `ports` being those of tunnel and key server."""
        target = f"{make_label(keyhash, *(ports or ()))}.{host}."
        self.add_records(
            f"{host}. 60 IN CNAME {target}", f"{target} 60 IN {'AAAA' if ':' in address else 'A'} {address}"
        )

    def add_records(self, *records: str) -> None:
        """Add lines to the zone."""
        self._records += "".join(f"{record}\n" for record in records)
        self.dns.set_zone(self._records)

    def fresh_client(self) -> PqtunClient:
        """A client that remembers nothing, in place of the one before; it is not started."""
        serial = len(list(self.lab.directory.glob("client*")))
        self.client = PqtunClient(self.lab, self.net.client, self.lab.directory / f"client{serial}")
        return self.client

    def dig(self, *arguments: str) -> list[str]:
        """The lines of `dig +short` on the client."""
        return self.lab.run(self.net.client, "dig", "+short", "+tries=1", *arguments).stdout.split("\n")[:-1]

    def private_address(self, host: str = HOST) -> str:
        """The address that a lookup on the client leads to; it must be a private one."""
        address = self.dig(host)[-1]
        assert ipaddress.ip_address(address) in CLIENT_SUBNET, address
        return address

    def curl(
        self, host: str = HOST, path: str = "/page", *, ns: str = "", timeout: float = 20, family: int = 0
    ) -> Fetched:
        """Fetch a page, by IP version `family` if given; LabError if that fails."""
        argv = ["curl", "-sS", "--fail", "--max-time", str(timeout), "-w", " %{remote_ip}", f"http://{host}{path}"]
        argv += [f"-{family}"] if family else []
        said = self.lab.run(ns or self.net.client, *argv, timeout=timeout + 5).stdout
        text, _, address = said.rpartition(" ")
        return Fetched(text, address, self.web.output().split()[-2])


def status(daemon: Daemon) -> dict[str, Any]:
    """Its status over the control socket, without a program to be started for it; LabError with its output if none."""
    try:
        return ask(daemon.run_directory, daemon.role, {"op": "status"})
    except UserError as error:
        ended = daemon.process.returncode if daemon.process is not None else None
        output = daemon.process.output()[-4000:] if daemon.process is not None else ""
        raise LabError(f"{error}\nexit code {ended}\n{output}") from None


def devices(lab: Lab, ns: str) -> set[str]:
    """The names of a namespace's network devices."""
    return {link["ifname"] for link in json.loads(lab.run(ns, "ip", "-j", "link").stdout)}


def tables(lab: Lab, ns: str) -> list[str]:
    """The nftables tables of a namespace."""
    return lab.run(ns, "nft", "list", "tables").stdout.split("\n")[:-1]


def pids(lab: Lab, ns: str) -> set[int]:
    """The processes in a namespace."""
    return {int(pid) for pid in lab.run(ns, "ip", "netns", "pids", ns).stdout.split()} & {
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    }


def process_status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status (proc_pid_status(5))."""
    fields = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, value in fields}


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to; one that it closes meanwhile is left out."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process occupies (VmRSS)."""
    return int(process_status(pid)["VmRSS"].split()[0]) * 1024


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return process_status(pid)["State"].startswith(("Z", "X"))
    except (FileNotFoundError, ProcessLookupError):
        return True


def started(daemon: Daemon, *arguments: str) -> Process:
    """Start a daemon and wait until it says that it is ready; LabError with its output if it ends."""
    process = daemon.launch(*arguments)
    process.wait_output(f"{daemon.role} is ready", 20)
    return process


def stopped(daemon: Daemon) -> int:
    """Send SIGTERM and return the exit code; LabError if it takes more than the promised 2 s."""
    process = daemon.process
    assert process is not None
    began = time.monotonic()
    code = process.stop(STOP_SECONDS)
    took = time.monotonic() - began
    if took > STOP_SECONDS:
        raise LabError(f"{process.argv} took {took:.1f} s to end")
    return code


def refused(daemon: Daemon, *arguments: str) -> str:
    """Start a daemon that cannot start; the one line that it says. It must end with 1 and leave nothing behind."""
    before = devices(daemon.lab, daemon.ns), tables(daemon.lab, daemon.ns)
    held = daemon.run_directory.exists()
    process = daemon.launch(*arguments)
    assert process.wait(10) == 1, process.output()
    said = process.output().strip()
    assert said.startswith(f"pqtun {daemon.role}: "), said
    assert "\n" not in said, said
    wait_until(lambda: (devices(daemon.lab, daemon.ns), tables(daemon.lab, daemon.ns)) == before, 5, "nothing left")
    assert daemon.run_directory.exists() == held
    return said


def python(lab: Lab, ns: str, code: str, *arguments: str, timeout: float = 30.0) -> str:
    """Run a Python program in a namespace; what it prints."""
    argv = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return lab.run(ns, *argv, env=pqtun.environment(), timeout=timeout).stdout.strip()


def start_python(lab: Lab, ns: str, *arguments: str) -> Process:
    """Start Python in a namespace, with its own arguments (-c, -m)."""
    return lab.spawn(ns, sys.executable, *arguments, env=pqtun.environment())


_NOISE = """
    import random, socket, sys, time
    port, count, chance = int(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
    kinds = [b"", b"", b"", bytes([1, 0]), bytes([2, 0]), bytes([0xf0, 0]), bytes([0xf2, 0])]
    lengths = {1: 1299, 2: 0, 0xf0: 1163, 0xf2: 1196}
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    def queued():
        rows = []
        for name in ("udp", "udp6"):  # a socket of both families is in the second
            with open(f"/proc/net/{name}") as table:
                rows += [line.split() for line in table][1:]
        return any(row[1].endswith(f":{port:04X}") and row[4].split(":")[1] != "00000000" for row in rows)
    for number in range(count):
        kind = chance.choice(kinds)
        length = chance.choice([lengths[kind[0]] if kind else 0, 0]) or chance.randrange(1, 1472)
        out.sendto((kind + chance.randbytes(length))[:length], ("127.0.0.1", port))
        if number % 50 == 0:
            while queued():
                time.sleep(0.001)
"""


def noise(lab: Lab, ns: str, port: int, count: int, seed: str) -> None:
    """Send `count` random datagrams, some of which begin like real ones, to a port of the host itself.

    It goes on only when the receiver has taken what was sent, so that none is lost on the way.
    """
    python(lab, ns, _NOISE, str(port), str(count), seed, timeout=60)


def tree(directory: Path) -> set[str]:
    """All files and directories below one."""
    return {os.path.relpath(os.path.join(at, name), directory) for at, d, f in os.walk(directory) for name in d + f}
