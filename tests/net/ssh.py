"""OpenSSH in a namespace: a server with a throw-away host key, and the client's command line for it."""

from __future__ import annotations

import functools
import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.net.lab import Lab
from tests.net.process import LabError, Process

SSHD = "/usr/sbin/sshd"


@functools.cache
def no_penalties() -> str:
    """The line of sshd_config(5) for tests that try what is refused, all from one address; none before OpenSSH 9.8."""
    said = subprocess.run([SSHD, "-V"], capture_output=True, text=True, timeout=20, check=False).stderr
    version = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    assert version is not None, said
    return "PerSourcePenalties no\n" if (int(version[1]), int(version[2])) >= (9, 8) else ""


class SshServer:
    """A real sshd that lets root in by a key of its own; runs until the Lab is closed."""

    def __init__(self, lab: Lab, ns: str, *, port: int = 22) -> None:
        self._port = port
        self._directory = lab.directory / f"ssh-{ns}-{port}"
        self._directory.mkdir(mode=0o700)
        host_key, self._key = self._keygen("host"), self._keygen("user")
        # sshd insists on its privilege separation directory, which a machine without systemd may not have.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self._directory / "sshd_config"
        config.write_text(
            f"Port {port}\nHostKey {host_key}\nAuthorizedKeysFile {self._key}.pub\nPidFile none\n"
            "UsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nUseDNS no\nPrintMotd no\nPrintLastLog no\nLogLevel VERBOSE\n"
            f"Subsystem sftp internal-sftp\n{no_penalties()}"
        )
        self.process: Process = lab.spawn(ns, SSHD, "-D", "-e", "-f", str(config))
        lab.wait_listening(self.process, ns, port)

    def client_argv(self, host: str, *command: str) -> list[str]:
        """`ssh` to `host` as root, with no configuration of the user and this server's host key only."""
        known = self._directory / f"known_hosts_{host}"
        name = host if self._port == 22 else f"[{host}]:{self._port}"
        known.write_text(f"{name} {(self._directory / 'host.pub').read_text()}")
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "ConnectTimeout": "10",
        }
        argv = ["ssh", "-F", "none", "-i", str(self._key), "-p", str(self._port)]
        for key, value in options.items():
            argv += ["-o", f"{key}={value}"]
        return [*argv, f"root@{host}", *command]

    def _keygen(self, name: str) -> Path:
        path = self._directory / name
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)]
        subprocess.run(argv, check=True, capture_output=True, timeout=20)
        return path


class EchoSession:
    """An ssh session whose far end sends each line back."""

    COMMAND = "while read l; do echo $l; done"

    def __init__(self, argv: Sequence[str]) -> None:
        """`argv` is that of an SshServer's client, with COMMAND."""
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def echo(self, text: str, timeout: float = 10.0) -> float:
        """Seconds that a line took to come back; LabError if that is more than `timeout` or the session ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        begin = time.monotonic()
        try:
            self._process.stdin.write(text.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LabError("the ssh session ended") from None
        line = b""
        while not line.endswith(b"\n"):
            left = begin + timeout - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise LabError(f"ssh did not echo within {timeout:g} s")
            part = os.read(self._process.stdout.fileno(), 4096)
            if not part:
                raise LabError("the ssh session ended")
            line += part
        if line != text.encode() + b"\n":
            raise LabError(f"ssh sent back {line!r} for {text!r}")
        return time.monotonic() - begin

    def close(self) -> None:
        """End the session."""
        self._process.kill()
        self._process.communicate()
