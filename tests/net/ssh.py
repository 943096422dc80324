"""OpenSSH in a namespace: a server with a throw-away host key, and the client's command line for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.net.lab import Lab
from tests.net.process import Process

SSHD = "/usr/sbin/sshd"


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
            "Subsystem sftp internal-sftp\n"
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
