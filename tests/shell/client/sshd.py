"""A real sshd in a namespace whose clients may open many sessions, and which can be ended and started again."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from pathlib import Path

from tests.net.lab import Lab
from tests.net.process import Process, wait_until
from tests.net.ssh import no_penalties

ADDRESS, PORT = "127.0.0.1", 22


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


class Sshd:
    """Lets root in by a key; all in `directory`. Runs until the Lab is closed."""

    def __init__(self, lab: Lab, ns: str, directory: Path) -> None:
        self.lab, self.ns, self.directory = lab, ns, directory
        # What the machine's own root has in .bashrc takes time, and locks that a killed session would leave behind.
        home = directory / "home"
        home.mkdir(mode=0o700)
        (Path("/etc/netns") / ns / "passwd").write_text(
            f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:{_uid('sshd')}:65534::/run/sshd:/usr/sbin/nologin\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        )
        for name in ("host", "user"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(directory / name)]
            subprocess.run(argv, check=True, capture_output=True, timeout=20)
        self.key = directory / "user"
        self.known_hosts = directory / "known_hosts"
        self.known_hosts.write_text(f"{ADDRESS} {(directory / 'host.pub').read_text()}")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._config = directory / "sshd_config"
        self._config.write_text(
            f"Port {PORT}\nHostKey {directory / 'host'}\nAuthorizedKeysFile {self.key}.pub\nPidFile none\nUsePAM no\n"
            "StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nUseDNS no\nPrintMotd no\nPrintLastLog no\nLogLevel VERBOSE\n"
            "KexAlgorithms -mlkem768x25519-sha256\nMaxSessions 64\nAcceptEnv SHARED_*\n"
            f"Subsystem sftp internal-sftp\n{no_penalties()}"
        )
        self.process: Process
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.process = self.lab.spawn(self.ns, "/usr/sbin/sshd", "-D", "-e", "-f", str(self._config))
        self.lab.wait_listening(self.process, self.ns, PORT)

    def kill(self) -> None:
        """End it at once, and all that it serves."""
        for pid in self.descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.kill()
        wait_until(lambda: not self.lab.listening(self.ns, PORT), 10, "sshd to be gone")

    def options(self) -> list[str]:
        """What ssh needs to come in, and to read no configuration of the user."""
        given = {
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
        }
        argv = ["-F", "none", "-i", str(self.key), "-p", str(PORT)]
        for name, value in given.items():
            argv += ["-o", f"{name}={value}"]
        return argv

    def descendants(self) -> list[int]:
        """The processes of its sessions (sessions(7) of their own, so no process group holds them)."""
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found, left = [], [self.process.pid]
        while left:
            found.append(left.pop())
            left += children.get(found[-1], [])
        return found[1:]
