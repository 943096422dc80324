"""The same lines of authorized_keys, asked of OpenSSH's sshd and of ours: who is let in, and to what."""

import os
import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest

from pqtun.shell.sshd import accounts
from pqtun.shell.sshd.authorized import Authorizer
from tests.net.process import wait_until
from tests.net.ssh import no_penalties
from tests.shell.sshd.keys import KeyFile
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root

FILE = Path("/home/alice/.ssh/authorized_keys")
SOURCE = "127.0.0.1"
PORT = 2222
EVER = ("-V", "20200101:20400101")

# {key}, {ca}: lines of those public keys. Each line alone, offered with the certificate where the CA is named.
LINES = [
    "{key}",
    "\t {key}",
    "pty {key}",
    "PTY,No-X11-Forwarding\t{key}",
    "pty,{key}",
    "pty , {key}",
    "unknown {key}",
    'command="echo forced" {key}',
    'command="echo \\"two  words\\"" {key}',
    'command="echo a\\\\b" {key}',
    "command=echo {key}",
    'command="echo {key}',
    'command="echo a",command="echo b" {key}',
    'from="127.0.0.1" {key}',
    'from="127.0.0.0/8,!127.0.0.1" {key}',
    'from="!127.0.0.2,127.*" {key}',
    'from="127.0.0.?" {key}',
    'from="127.0.0.1/8" {key}',
    'from="127.0.0.1," {key}',
    'from="" {key}',
    'expiry-time="20200101" {key}',
    'expiry-time="20400101Z" {key}',
    'permitopen="localhost:80",permitopen="[::1]:*" {key}',
    'permitlisten="80" {key}',
    'environment="A=b" {key}',
    'environment="A-B=c" {key}',
    'principals="alice" {key}',
    "cert-authority {key}",
    "cert-authority {ca}",
    'cert-authority,principals="bob,alice" {ca}',
    'cert-authority,principals="bob" {ca}',
    'cert-authority,principals="al*" {ca}',
    'cert-authority,command="echo forced" {ca}',
]


@dataclass(frozen=True)
class Settings:
    authorized_keys: tuple[str, ...] = (".ssh/authorized_keys",)
    trusted_user_ca_keys: Path | None = None
    revoked_keys: Path | None = None


@dataclass
class Both:
    """A server of OpenSSH's, and our Authorizer, over the same file."""

    directory: Path = field(default_factory=lambda: Path("/home/keys"))

    def __enter__(self) -> "Both":
        self.directory.mkdir()
        self.key, self.ca, host = (KeyFile.make(self.directory / name) for name in ("user", "ca", "host"))
        self.certificate = self.ca.certify(self.key, *EVER)
        (self.directory / "user-cert.pub").rename(self.directory / "certificate.pub")  # not offered beside the key
        FILE.parent.mkdir(mode=0o700)
        FILE.touch()
        os.chown(FILE.parent, 4001, 4001)
        config = self.directory / "sshd_config"
        config.write_text(
            f"Port {PORT}\nListenAddress {SOURCE}\nHostKey {host.path}\nPidFile none\nUsePAM no\nUseDNS no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nPrintLastLog no\n"
            f"{no_penalties()}"
        )
        (self.directory / "known_hosts").write_text(f"[{SOURCE}]:{PORT} {host.line}\n")
        log = (self.directory / "log").open("w")
        self.sshd = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=log)
        wait_until(lambda: "listening" in (self.directory / "log").read_text(), 10, "sshd to listen")
        return self

    def __exit__(self, *_: object) -> None:
        self.sshd.terminate()
        self.sshd.wait(10)

    def sshds(self, certified: bool) -> str | None:
        """What a login prints with sshd, None if it is refused."""
        options = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "KexAlgorithms": "curve25519-sha256",  # the fastest
            "UserKnownHostsFile": str(self.directory / "known_hosts"),
        }
        argv = ["ssh", "-F", "none", "-i", str(self.key.path), "-p", str(PORT)]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        if certified:
            argv += ["-o", f"CertificateFile={self.directory / 'certificate.pub'}"]
        done = subprocess.run([*argv, f"alice@{SOURCE}", "echo asked"], capture_output=True, text=True, timeout=20)
        return None if done.returncode == 255 else done.stdout

    def ours(self, certified: bool) -> str | None:
        """What it would print with ours."""
        blob = self.certificate if certified else self.key.blob
        found = Authorizer(Settings()).permission(accounts.find("alice"), blob, ip_address(SOURCE), time.time())
        if found is None:
            return None
        command = "echo asked" if found.command is None else found.command
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False).stdout


def test_sshd_and_we_let_the_same_in(world: World) -> None:
    world.passwd.append("sshd:x:4099:4099::/home/sshd:/usr/sbin/nologin")

    def answers() -> list[tuple[str, str | None, str | None]]:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Path("/run/sshd").mkdir(mode=0o755)
        found = []
        with Both() as both:
            for line in LINES:
                FILE.write_text(line.replace("{key}", both.key.line).replace("{ca}", both.ca.line) + "\n")
                certified = "{ca}" in line
                found.append((line, both.sshds(certified), both.ours(certified)))
        return found

    found = world.call(answers)
    assert [(line, ours) for line, _, ours in found] == [(line, theirs) for line, theirs, _ in found]
    assert {theirs is None for _, theirs, _ in found} == {True, False}
