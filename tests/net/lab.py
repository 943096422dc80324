"""Network namespaces for tests, the demo and the benchmarks: made on the spot, gone afterwards.

    with Lab() as lab:
        net = standard_topology(lab)
        lab.run(net.client, "ping", "-c1", SERVER4)

All traffic stays between the namespaces of a Lab. Needs root, iproute2 and the kernel's veth.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.net.impairment import Conditions
from tests.net.process import LabError, Process, wait_until
from tests.net.wire import Wire

__all__ = ["Conditions", "Lab", "LabError", "Process", "Topology", "Wire", "standard_topology", "wait_until"]

HERE = Path(__file__).resolve().parent

# RFC 5737 and RFC 3849 documentation ranges: they clash with no tunnel subnet and with no real network.
CLIENT4, CLIENT6 = "192.0.2.10", "2001:db8:1::10"
SERVER4, SERVER6 = "198.51.100.20", "2001:db8:2::20"
RESOLVER4, RESOLVER6 = "203.0.113.53", "2001:db8:3::53"

_PREFIX = "pqt-"
_NAME = re.compile(rf"{_PREFIX}(\d+)-")
_serial = itertools.count()
_open: set[Lab] = set()


class Lab:
    """A set of network namespaces, programs in them, and a scratch directory; all gone after close()."""

    def __init__(self) -> None:
        self._base = f"{_PREFIX}{os.getpid()}-{next(_serial)}-"
        self._pid = os.getpid()
        self._namespaces: list[str] = []
        self._processes: list[Process] = []
        self._wires: list[Wire] = []
        self.directory = Path(tempfile.mkdtemp(prefix=self._base))
        # Programs that give up root (sshd's users, tcpdump, a daemon's worker) must get at their files.
        self.directory.chmod(0o755)
        _open.add(self)
        _end_with_process()
        remove_stale()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- network ---------------------------------------------------------------------------------

    def namespace(self, name: str, *, nameservers: Sequence[str] = ()) -> str:
        """Make a namespace with `lo` up and an /etc/resolv.conf of its own; returns its full name for `ip netns`."""
        ns = self._base + name
        etc = Path("/etc/netns") / ns
        etc.mkdir(parents=True)
        self._namespaces.append(ns)
        self.set_nameservers(ns, *nameservers)
        if Path("/etc/nsswitch.conf").exists():
            (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        _command("ip", "netns", "add", ns)
        # A link-local address would be tentative for a second, and neighbours are asked from it.
        self.run(ns, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        _command("ip", "-n", ns, "link", "set", "lo", "up")
        return ns

    def set_nameservers(self, ns: str, *addresses: str) -> None:
        """Write the resolv.conf that programs started in `ns` from now on will see."""
        lines = [f"nameserver {address}\n" for address in addresses]
        path = Path("/etc/netns") / ns / "resolv.conf"
        path.write_text("".join(lines) + "options timeout:2 attempts:2\n")

    def link(
        self,
        ends: tuple[tuple[str, str], tuple[str, str]],
        addresses: tuple[Sequence[str], Sequence[str]],
    ) -> None:
        """Join two namespaces by a veth pair: ends ((ns, device), (ns, device)), addresses with prefix length."""
        (ns_a, dev_a), (ns_b, dev_b) = ends
        veth = ["ip", "link", "add", dev_a, "netns", ns_a, "type", "veth", "peer", "name", dev_b, "netns", ns_b]
        _command(*veth)
        self._address(ends, addresses)

    def wire(
        self,
        ends: tuple[tuple[str, str], tuple[str, str]],
        addresses: tuple[Sequence[str], Sequence[str]],
        conditions: Conditions,
        *,
        seed: int | str = 1,
    ) -> Wire:
        """Join two namespaces, as link() does, by TUN devices and a relay between them that spoils what it carries."""
        wire = Wire(self, ends, seed)
        self._wires.append(wire)
        wire.set(**asdict(conditions))
        self._address(ends, addresses)
        return wire

    @staticmethod
    def _address(ends: tuple[tuple[str, str], tuple[str, str]], addresses: tuple[Sequence[str], Sequence[str]]) -> None:
        for (ns, dev), given in zip(ends, addresses, strict=True):
            for address in given:
                # Without nodad an IPv6 address could not be used for a second or two.
                nodad = ["nodad"] if ":" in address else []
                _command("ip", "-n", ns, "addr", "add", address, "dev", dev, *nodad)
            _command("ip", "-n", ns, "link", "set", dev, "up")

    def route(self, ns: str, destination: str, via: str) -> None:
        """Add a route in `ns`; destination may be "default"."""
        family = "-6" if ":" in via else "-4"
        _command("ip", "-n", ns, family, "route", "add", destination, "via", via)

    def readdress(self, ns: str, device: str, old: str, new: str) -> None:
        """Give a device another address (both with prefix length); the default route by it stays, as DHCP has it."""
        family = "-6" if ":" in old else "-4"
        gates = json.loads(_command("ip", "-n", ns, "-j", family, "route", "show", "default", "dev", device).stdout)
        # The new one after the old one: beside it, it would go with it (ip-address(8), secondary).
        _command("ip", "-n", ns, "addr", "del", old, "dev", device)
        _command("ip", "-n", ns, "addr", "add", new, "dev", device, *(["nodad"] if ":" in new else []))
        for gate in gates:
            _command("ip", "-n", ns, family, "route", "replace", "default", "via", gate["gateway"], "dev", device)

    def forward(self, ns: str) -> None:
        """Make `ns` a router for IPv4 and IPv6."""
        self.run(ns, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def rate(self, ns: str, device: str, rate: str, *, buffer: str = "32kb") -> None:
        """Limit what leaves `ns` by `device`, e.g. "1mbit", with a token bucket (tbf) and 50 ms of queue."""
        self.run(
            ns,
            *("tc", "qdisc", "replace", "dev", device, "root", "tbf"),
            *("rate", rate, "burst", buffer, "latency", "50ms"),
        )

    def lose(self, ns: str, percent: float, *, match: str = "") -> None:
        """Make the router `ns` drop that many percent (above 0) of what it forwards, or of what matches."""
        rules = (
            "table inet lab_loss {\nchain forward {\ntype filter hook forward priority 0\n"
            f"{match} numgen random mod 10000 <= {round(percent * 100) - 1} counter drop\n}}\n}}\n"
        )
        self.run(ns, "nft", "-f", "-", stdin=rules.encode())

    def stop_losing(self, ns: str) -> None:
        """Undo lose()."""
        self.run(ns, "nft", "delete table inet lab_loss")

    # -- programs --------------------------------------------------------------------------------

    def run(
        self,
        ns: str,
        *argv: str,
        timeout: float = 20.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in `ns` to its end; LabError with its output when it fails (if `check`) or takes too long."""
        full = self.argv(ns, *argv)
        return _command(*full, timeout=timeout, check=check, env=env, stdin=stdin)

    def spawn(self, ns: str, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a daemon in `ns`; it is killed with its whole process group at close()."""
        return self._start(self.argv(ns, *argv), env)

    def _start(self, argv: list[str], env: Mapping[str, str] | None = None) -> Process:
        name = Path(argv[4] if argv[:3] == ["ip", "netns", "exec"] else argv[0]).name
        process = Process(argv, self.directory / f"{len(self._processes):02}-{name}.log", env)
        self._processes.append(process)
        return process

    @staticmethod
    def argv(ns: str, *argv: str) -> list[str]:
        """The command line that runs `argv` in `ns`."""
        return ["ip", "netns", "exec", ns, *argv]

    def listening(self, ns: str, port: int, protocol: str = "tcp") -> bool:
        """Whether a "tcp" or "udp" socket of `ns` waits on `port`, IPv4 or IPv6."""
        files = [f"/proc/net/{protocol}", f"/proc/net/{protocol}6"]
        wanted = "0A" if protocol == "tcp" else "07"  # TCP_LISTEN; an unconnected UDP socket is in TCP_CLOSE
        for line in self.run(ns, "cat", *files).stdout.splitlines():
            fields = line.split()
            if fields[0] != "sl" and fields[1].endswith(f":{port:04X}") and fields[3] == wanted:
                return True
        return False

    def wait_listening(
        self, process: Process, ns: str, port: int, protocol: str = "tcp", timeout: float = 15.0
    ) -> None:
        """Wait until `ns` has a socket on `port`; LabError with the output of `process` if it ends before."""

        def ready() -> bool:
            if not process.running:
                raise LabError(f"{process.argv} ended: {process.returncode}\n{process.output()}")
            return self.listening(ns, port, protocol)

        wait_until(ready, timeout, f"{protocol} port {port} of {process.argv}")

    def dns_server(self, ns: str, zone: str) -> DnsServer:
        """Start an authoritative server of the zone text on port 53 of all of the addresses of `ns`."""
        server = DnsServer(self, ns)
        server.set_zone(zone)
        server.start()
        return server

    def web_server(self, ns: str, directory: Path, port: int = 80, *, congestion_control: str = "") -> Process:
        """Serve the files of `directory` over HTTP, IPv4 and IPv6; each request is a line "address path" of output.

        Its TCP has the machine's congestion control, or the one named.
        """
        argv = (sys.executable, str(HERE / "web_server.py"), str(port), str(directory), congestion_control)
        process = self.spawn(ns, *argv)
        self.wait_listening(process, ns, port)
        return process

    def iperf3(
        self,
        client: str,
        server: str,
        address: str,
        *,
        seconds: float = 5,
        reverse: bool = False,
        port: int = 5201,
    ) -> float:
        """Bit/s received by one TCP stream from namespace `client` to `server` (back if `reverse`)."""
        process = self.spawn(server, "iperf3", "-s", "-1", "-p", str(port))
        try:
            self.wait_listening(process, server, port)
            argv = ["iperf3", "-c", address, "-p", str(port), "-t", str(seconds), "-J"]
            argv += ["-R"] if reverse else []
            report = json.loads(self.run(client, *argv, timeout=seconds + 30).stdout)
        finally:
            process.kill()
        return float(report["end"]["sum_received"]["bits_per_second"])

    # -- end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all programs, remove all namespaces and the scratch directory. May be called again."""
        if os.getpid() != self._pid:  # a forked child owns none of it
            return
        for process in reversed(self._processes):
            process.kill()
        for wire in self._wires:
            wire.close()
        # One by one, so that a close() which was interrupted can be finished by the one at exit.
        while self._namespaces:
            _remove_namespace(self._namespaces[-1])
            self._namespaces.pop()
        shutil.rmtree(self.directory, ignore_errors=True)
        _open.discard(self)


class DnsServer:
    """tests/net/dns_server.py in a namespace."""

    def __init__(self, lab: Lab, ns: str) -> None:
        self._lab = lab
        self._ns = ns
        self._zone = lab.directory / f"{ns}.zone"
        self._queries = lab.directory / f"{ns}.queries"
        self.process: Process | None = None

    def set_zone(self, zone: str) -> None:
        """Write the zone (master file text, absolute names); a running server takes it for the next question."""
        fresh = self._zone.with_suffix(".new")
        fresh.write_text(zone)
        fresh.replace(self._zone)

    def start(self) -> None:
        """Start it and wait until it answers on UDP and TCP."""
        script = str(HERE / "dns_server.py")
        argv = (sys.executable, script, str(self._zone), str(self._queries))
        self.process = self._lab.spawn(self._ns, *argv)
        self._lab.wait_listening(self.process, self._ns, 53, "udp")
        self._lab.wait_listening(self.process, self._ns, 53, "tcp")

    def stop(self) -> None:
        """End it; questions get ICMP port unreachable from then on."""
        if self.process is not None:
            self.process.stop()

    def queries(self) -> list[tuple[str, str, str, str]]:
        """All questions so far: (name in lower case without the last dot, type, "udp" or "tcp", client address)."""
        if not self._queries.exists():
            return []
        lines = self._queries.read_text().splitlines()
        return [(q[0], q[1], q[2], q[3]) for q in (line.split() for line in lines)]


@dataclass(frozen=True)
class Topology:
    """client -- router -- server, and a resolver behind the same router; these are namespace names.

        client eth0 192.0.2.10     -- 192.0.2.1    client0   router
        server eth0 198.51.100.20  -- 198.51.100.1 server0   router
        resolver eth0 203.0.113.53 -- 203.0.113.1  resolver0 router

    IPv6: 2001:db8:1::10, 2001:db8:2::20, 2001:db8:3::53, the router is ::1 of each /64.
    """

    client: str
    router: str
    server: str
    resolver: str
    wire: Wire | None = None  # of router ("a") and server ("b"), where that is no plain link


def standard_topology(lab: Lab, conditions: Conditions | None = None) -> Topology:
    """Build the Topology; client and server ask RESOLVER4. With `conditions`, a Wire joins router and server."""
    router = lab.namespace("router")
    lab.forward(router)
    made = {}
    wire = None
    for name, v4, v6 in (
        ("client", CLIENT4, CLIENT6),
        ("server", SERVER4, SERVER6),
        ("resolver", RESOLVER4, RESOLVER6),
    ):
        ns = made[name] = lab.namespace(name, nameservers=[RESOLVER4])
        gate4 = v4.rpartition(".")[0] + ".1"
        gate6 = v6.rpartition("::")[0] + "::1"
        ends = ((router, f"{name}0"), (ns, "eth0"))
        addresses = ([f"{gate4}/24", f"{gate6}/64"], [f"{v4}/24", f"{v6}/64"])
        if name == "server" and conditions is not None:
            wire = lab.wire(ends, addresses, conditions)
        else:
            lab.link(ends, addresses)
        lab.route(ns, "default", gate4)
        lab.route(ns, "default", gate6)
    return Topology(made["client"], router, made["server"], made["resolver"], wire)


def remove_stale() -> None:
    """Remove the namespaces of Labs whose process is dead, with the programs in them."""
    listed = _command("ip", "netns", "list").stdout.split("\n")
    known = {line.split()[0] for line in listed if line.strip()}
    etc = Path("/etc/netns")
    if etc.is_dir():
        known |= {entry.name for entry in etc.iterdir()}
    for name in sorted(known):
        match = _NAME.match(name)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove_namespace(name)
            for left in Path(tempfile.gettempdir()).glob(f"{match[0]}*"):
                shutil.rmtree(left, ignore_errors=True)


def _remove_namespace(ns: str) -> None:
    pids = _command("ip", "netns", "pids", ns, check=False).stdout.split()
    for pid in pids:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    # A namespace goes away for good only when its last process has.
    wait_until(lambda: not any(map(_alive, pids)), 10, f"the end of the programs in {ns}")
    _command("ip", "netns", "delete", ns, check=False)
    shutil.rmtree(Path("/etc/netns") / ns, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _command(
    *argv: str,
    timeout: float = 20.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            timeout=timeout,
            input=b"" if stdin is None else stdin,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = b"".join(part for part in (error.stdout, error.stderr) if part)
        text = said.decode(errors="replace")
        raise LabError(f"{argv} took more than {timeout:g} s\n{text}") from None
    stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if check and done.returncode:
        raise LabError(f"{argv} ended with {done.returncode}\n{stdout}{stderr}")
    return subprocess.CompletedProcess(argv, done.returncode, stdout, stderr)


def _close_all() -> None:
    for lab in list(_open):
        lab.close()


_registered = False


def _end_with_process() -> None:
    """Have open Labs closed at exit and at SIGTERM, which Python otherwise dies of without cleaning up."""
    global _registered
    if _registered:
        return
    _registered = True
    atexit.register(_close_all)
    if threading.current_thread() is not threading.main_thread():
        return
    previous = signal.getsignal(signal.SIGTERM)
    if previous is not signal.SIG_DFL:
        return
    owner = os.getpid()

    def on_sigterm(number: int, frame: types.FrameType | None) -> None:
        if os.getpid() == owner:
            _close_all()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_sigterm)
