"""A tunnel between network namespaces, shown step by step: `make demo`.

Everything happens between namespaces that this program makes and removes; the machine's own network is not touched.
It needs root and what `make setup` installs. The exit code is 0 if every step held, 1 if not, 2 without root.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shlex
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address

from pqtun.protocol.private6 import prefix
from tests.net import pqtun
from tests.net.capture import Capture
from tests.net.lab import CLIENT4, CLIENT6, RESOLVER4, SERVER4, SERVER6, Lab, LabError, standard_topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import Process, wait_until
from tests.net.ssh import SshServer

HOST, PLAIN = "www.example.net", "plain.example.net"
SOA = "example.net. 60 IN SOA ns.example.net. hostmaster.example.net. 1 60 60 60 60\n"
CLIENT_SUBNET, SERVER_SUBNET = IPv4Network("10.43.0.0/16"), IPv4Network("10.42.0.0/16")
FILE_BYTES = 100_000_000
STOP_SECONDS = 2.0
UDP = 17
WIDTH = 100


class StepFailed(Exception):
    """What was shown is not what should have been."""


def require(held: object, what: str) -> None:
    """Fail the step with `what` unless `held`."""
    if not held:
        raise StepFailed(what)


def is_private(address: str, subnet: IPv4Network) -> bool:
    """Whether an address is one of those that stand for peers: of the subnet, or the IPv6 one beside it."""
    return ip_address(address) in subnet or ip_address(address) in prefix(subnet)


def say(text: str, indent: int = 4) -> None:
    """Print output of a step."""
    print(textwrap.indent(text.rstrip("\n") or "(nothing)", " " * indent), flush=True)


def worker_user() -> str:
    """The user that `make install` makes, or else one that every machine has."""
    try:
        return pwd.getpwnam("pqtun").pw_name
    except KeyError:
        return pqtun.USER


class Demo:
    """The steps, on the namespaces of one Lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.user = worker_user()
        # In the page, in what ssh carries and in the file: whoever can read the wire finds it there.
        self.marker = f"-- the secret of this demonstration: {os.urandom(12).hex()} --"
        self.failed: list[str] = []
        self.done = 0

    # -- how a step is shown ---------------------------------------------------------------------

    def step(self, title: str, action: Callable[[], None]) -> bool:
        """Run one step under its heading; whether it held."""
        self.done += 1
        print(f"\n== {self.done}. {title} ".ljust(WIDTH, "="), flush=True)
        began = time.monotonic()
        try:
            action()
        except (StepFailed, LabError, OSError) as error:
            print(f"FAILED: {error}", flush=True)
            self.failed.append(title)
            return False
        print(f"ok ({time.monotonic() - began:.1f} s)", flush=True)
        return True

    def run(self, where: str, *argv: str, timeout: float = 30.0, show: bool = True) -> str:
        """Show and run a command on "client", "server" or "resolver"; its stdout."""
        self.command(where, shlex.join(argv))
        said = self.lab.run(getattr(self.net, where), *argv, timeout=timeout).stdout
        if show:
            say(said)
        return said

    def pqtun(self, where: str, *arguments: str, show: bool = True) -> str:
        """Show and run `pqtun ...`; its stdout."""
        self.command(where, shlex.join(["pqtun", *arguments]))
        full = pqtun.argv(*arguments)
        said = self.lab.run(getattr(self.net, where), *full, env=pqtun.environment(), timeout=60).stdout
        if show:
            say(said)
        return said

    @staticmethod
    def command(where: str, line: str) -> None:
        """Show a command line and the host that it runs on."""
        say(f"{where}# {line}", 2)

    # -- the steps -------------------------------------------------------------------------------

    def all_steps(self) -> None:
        """Every step; those that nothing works without end the rest when they fail."""
        needed: list[tuple[str, Callable[[], None]]] = [
            ("Three hosts and a router, as network namespaces", self.make_network),
            ("The server's long-term key", self.make_key),
            ("A DNS server that announces the key", self.start_dns),
            ("A web server and an SSH server, which know nothing of tunnels", self.start_services),
            ("pqtun server", self.start_server),
            ("pqtun check: each step on the way to the server, before any client runs", self.check),
            ("pqtun client", self.start_client),
        ]
        if not all(self.step(title, action) for title, action in needed):
            return
        self.step("dig: the name leads to a private address", self.dig)
        self.step("curl: the page comes through the tunnel", self.curl)
        self.step("ssh: a login with a key, through the tunnel", self.ssh)
        self.step("What the wire between client and server has seen of it", self.wire)
        self.step(f"A file of {FILE_BYTES // 10**6} MB", self.file)
        self.step("pqtun status on both ends", self.status)
        self.step("The same site under a name without announcement: directly, as without pqtun", self.direct)
        self.step("SIGTERM: both end and leave nothing behind", self.stop)

    def make_network(self) -> None:
        self.net = standard_topology(self.lab)
        say(f"client {CLIENT4} --- router --- server {SERVER4}\n                          `------ resolver {RESOLVER4}")
        self.run("client", "ping", "-c", "1", "-W", "5", "-q", SERVER4, show=False)

    def make_key(self) -> None:
        directory = self.lab.directory / "server"
        directory.mkdir()
        self.pqtun("server", "keygen", "--keys", str(directory / "keys"))
        self.server = PqtunServer(self.lab, self.net.server, directory)
        self.client = PqtunClient(self.lab, self.net.client, self.lab.directory / "client")

    def start_dns(self) -> None:
        keys = str(self.server.keys)
        records = self.pqtun("server", "announce", HOST, "--address", SERVER4, SERVER6, "--keys", keys)
        plain = f"{PLAIN}. 3600 IN A {SERVER4}\n"
        say(plain)
        self.dns = self.lab.dns_server(self.net.resolver, SOA + records + plain)
        address = self.run("client", "dig", "+short", HOST).split()[-1]
        require(address == SERVER4, "without a client the name must lead to the real address")

    def start_services(self) -> None:
        files = self.lab.directory / "www"
        files.mkdir()
        (files / "index.html").write_text(f"<p>Hello from the server.\n<p>{self.marker}\n")
        half = os.urandom(FILE_BYTES // 2)
        self.content = half + self.marker.encode() + half[: FILE_BYTES - len(half) - len(self.marker)]
        (files / "file").write_bytes(self.content)
        self.web = self.lab.web_server(self.net.server, files)
        self.sshd = SshServer(self.lab, self.net.server)
        say(f"web server on port 80; OpenSSH on port 22; a page that says\n{self.marker}")

    def start_server(self) -> None:
        self.command("server", f"pqtun server --keys {self.server.keys} --user {self.user}")
        say(self.server.start("--user", self.user).output())

    def check(self) -> None:
        self.pqtun("client", "check", HOST)

    def start_client(self) -> None:
        self.wire_tap = self.tap()
        self.command("client", f"pqtun client --state {self.client.directory / 'state'} --user {self.user}")
        say(self.client.start("--user", self.user).output())

    def dig(self) -> None:
        said = self.run("client", "dig", "+noall", "+answer", "+comments", HOST)
        address = self.run("client", "dig", "+short", HOST).split()[-1]
        require(is_private(address, CLIENT_SUBNET), f"{address} is not a private address of the client")
        require("status: NOERROR" in said, "the lookup failed")
        say("... and the real IPv6 address, which would lead around the tunnel, is left out:", 2)
        require(SERVER6 not in self.run("client", "dig", "+short", HOST, "AAAA"), "there is the real IPv6 address")

    def curl(self) -> None:
        page, _, address = self.fetch(HOST, "/")
        require(self.marker in page, "the page is not the one that is served")
        require(is_private(address, CLIENT_SUBNET), f"curl went to {address}, around the tunnel")
        seen = self.web.output().split()[-2]
        say(f"curl talked to {address}; the web server saw the client as {seen}")
        require(is_private(seen, SERVER_SUBNET), "the web server saw the real address")

    def ssh(self) -> None:
        remote = f"echo '{self.marker}'; echo $SSH_CONNECTION"
        self.command("client", f'ssh root@{HOST} "{remote}"')
        said = self.lab.run(self.net.client, *self.sshd.client_argv(HOST, remote), timeout=30).stdout
        say(said)
        require(self.marker in said, "the remote command's output did not arrive")
        source, _, target, _ = said.splitlines()[-1].split()
        require(is_private(source, SERVER_SUBNET), "sshd saw the real address")
        require(is_private(target, SERVER_SUBNET), "sshd was reached at the real address")

    def wire(self) -> None:
        self.wire_tap.stop()
        self.run("router", "tcpdump", "-n", "-q", "-c", "4", "-r", str(self.wire_tap.path))
        flows: Counter[str] = Counter()
        octets: Counter[str] = Counter()
        packets = self.wire_tap.packets()
        for packet in packets:
            kind = "UDP" if packet.protocol == UDP else f"protocol {packet.protocol}"
            ports = {packet.source_port, packet.destination_port}
            port = next((port for port in (42424, 42425) if port in ports), packet.destination_port)
            flows[f"{kind} port {port}"] += 1
            octets[f"{kind} port {port}"] += len(packet.frame)
        for flow, count in sorted(flows.items()):
            say(f"{flow}: {count} packets, {octets[flow]} bytes")
        require(packets and not self.wire_tap.missed, "the capture is incomplete")
        require(all(packet.protocol == UDP for packet in packets), "the wire carried more than UDP")
        require(not self.readable(self.wire_tap), "the marker text was readable on the wire")
        say("the marker text is nowhere in it")

    def file(self) -> None:
        got = self.lab.directory / "got"
        said = self.run(
            "client",
            *("curl", "-sS", "--fail", "-o", str(got), "-w", "%{speed_download} %{time_total} %{remote_ip}"),
            f"http://{HOST}/file",
            timeout=120,
            show=False,
        )
        speed, seconds, address = said.split()
        say(f"{FILE_BYTES} bytes in {float(seconds):.1f} s: {float(speed) * 8 / 1e6:.0f} Mbit/s, from {address}")
        sent, received = hashlib.sha256(self.content).hexdigest(), hashlib.sha256(got.read_bytes()).hexdigest()
        got.unlink()
        say(f"SHA-256 at the server  {sent}\nSHA-256 at the client  {received}")
        require(sent == received, "the file has changed on the way")
        require(is_private(address, CLIENT_SUBNET), "curl went around the tunnel")

    def status(self) -> None:
        for where, daemon in (("client", self.client), ("server", self.server)):
            self.pqtun(where, "status", daemon.role, "--run", str(daemon.run_directory))
            peers = daemon.status()["peers"]
            require(any(peer["state"] == "up" for peer in peers), f"the {where} has no tunnel")

    def direct(self) -> None:
        tap = self.tap()
        answer = self.run("client", "dig", "+short", PLAIN).split()
        require(answer == [SERVER4], "the answer is not the one of the DNS")
        page, _, address = self.fetch(PLAIN, "/")
        wait_until(lambda: self.readable(tap), 10, "the plaintext that must be in the capture")
        tap.stop()
        require(self.marker in page, "the page is not the one that is served")
        require(address == SERVER4, f"curl went to {address}")
        seen = self.web.output().split()[-2]
        say(f"curl talked to {address}; the web server saw the client as {seen}")
        require(seen == CLIENT4, "the web server saw another address")
        say("and here the marker text is readable on the wire")

    def stop(self) -> None:
        for where, daemon in (("client", self.client), ("server", self.server)):
            process = daemon.process
            require(process is not None and process.running, f"pqtun {daemon.role} does not run")
            assert process is not None
            self.command(where, f"kill -TERM {process.pid}")
            began = time.monotonic()
            code = self.terminate(process)
            seconds = time.monotonic() - began
            say(f"ended with {code} after {seconds:.2f} s")
            require(code == 0 and seconds < STOP_SECONDS, f"pqtun {where} did not end well:\n{process.output()}")
        links = self.run("client", "ip", "-brief", "link") + self.run("server", "ip", "-brief", "link")
        require("pqt" not in links, "a device is left")
        require(not self.run("client", "nft", "list", "tables"), "a firewall table is left")
        for daemon in (self.client, self.server):
            require(not daemon.run_directory.exists(), f"{daemon.run_directory} is left")
        address = self.run("client", "dig", "+short", HOST).split()[-1]
        require(address == SERVER4, "lookups are still changed")

    # -- parts of steps --------------------------------------------------------------------------

    def tap(self) -> Capture:
        """Begin to capture all that client and server send each other."""
        ends = f"(host {CLIENT4} and host {SERVER4}) or (host {CLIENT6} and host {SERVER6})"
        return Capture(self.lab, self.net.router, "server0", ends)

    def readable(self, tap: Capture) -> bool:
        """Whether the marker text is in what was captured."""
        return self.marker.encode() in tap.path.read_bytes()

    def fetch(self, host: str, path: str) -> tuple[str, str, str]:
        """The page, the seconds to its first byte and the address that curl talked to."""
        form = "%{time_starttransfer} %{remote_ip}"
        said = self.run("client", "curl", "-sS", "--fail", "-w", form, f"http://{host}{path}", show=False)
        page, _, figures = said.rpartition("\n")
        seconds, address = figures.split()
        say(f"{page}\nfirst byte after {float(seconds) * 1000:.0f} ms")
        return page, seconds, address

    @staticmethod
    def terminate(process: Process) -> int:
        """SIGTERM, and the exit code."""
        process.signal(signal.SIGTERM)
        return process.wait(STOP_SECONDS + 3)


def main() -> int:
    """Show everything; the exit code."""
    if os.geteuid() != 0:
        print("the demonstration makes network namespaces: run it as root", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        with Lab() as lab:
            # A terminal that is closed ends us like SIGTERM, for which the lab has a handler that cleans up.
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
            demo = Demo(lab)
            demo.all_steps()
    except KeyboardInterrupt:
        print("\ninterrupted; all is cleaned up", file=sys.stderr)
        return 130
    seconds = time.monotonic() - began
    if demo.failed:
        print(f"\nFAILED after {seconds:.0f} s: {'; '.join(demo.failed)}")
        return 1
    print(f"\nall {demo.done} steps held, in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
