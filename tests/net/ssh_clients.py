"""The SSH clients of the matrix: ssh of this machine and of Debian sid, and pqtun's own; run by a plain user."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.net import pqtun
from tests.net.enclosure import Enclosure
from tests.net.lab import Lab
from tests.net.process import Process
from tests.net.ssh_keys import CERTIFIED, ED25519, PLAIN
from tests.net.users import User

SSH_9, SSH_10, PQTUN_SSH = "ssh-9.2", "ssh-10.6", "pqtun-ssh"
CLIENTS = (SSH_9, SSH_10, PQTUN_SSH)
CLIENT_KEYS = {SSH_9: (ED25519, CERTIFIED[0]), SSH_10: (*PLAIN, *CERTIFIED), PQTUN_SSH: (*PLAIN, *CERTIFIED)}


class SshClient:
    """ssh, scp, sftp and rsync of one kind, with one configuration file (ssh_config(5))."""

    def __init__(self, name: str, lab: Lab, ns: str, enclosure: Enclosure, user: User, openssh: Path) -> None:
        self.name, self.ns, self.user = name, ns, user
        self._lab, self._enclosure, self._openssh = lab, enclosure, openssh
        self.config = lab.directory / "ssh_config"
        self.environment: dict[str, str] = {
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm",
            "HOME": user.home,
            "USER": user.name,
            **pqtun.environment(),
        }

    def words(self, program: str, *arguments: str) -> list[str]:
        """ssh, scp or sftp with the configuration file, as a shell inside would start it."""
        start = [sys.executable, "-m", "pqtun", program] if self.name == PQTUN_SSH else [program]
        return [*start, "-F", str(self.config), *arguments]

    def argv(self, program: str, *arguments: str) -> list[str]:
        """The whole command line, to be run outside the namespace; `program` may be another one than those of SSH."""
        ours = program in ("ssh", "scp", "sftp")
        return self.argv_below((), self.words(program, *arguments) if ours else [program, *arguments])

    def argv_below(self, above: Sequence[str], words: Sequence[str]) -> list[str]:
        """argv() of a program of this machine (`above`) that starts `words`, which are of this kind."""
        if self.name == SSH_10:
            userspec = f"--userspec={self.user.uid}:{self.user.gid}"
            inside = self._enclosure.inside(self._openssh, *above, "chroot", userspec, str(self._openssh), *words)
        else:
            ids = [f"--reuid={self.user.uid}", f"--regid={self.user.gid}", "--clear-groups"]
            inside = self._enclosure.argv("setpriv", *ids, *above, *words)
        return self._lab.argv(self.ns, *inside)

    def run(
        self, program: str, *arguments: str, timeout: float = 30, check: bool = True, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of it to its end; LabError as Lab.run says."""
        argv = self.argv(program, *arguments)[4:]  # what Lab.run adds
        return self._lab.run(self.ns, *argv, timeout=timeout, check=check, env=self.environment, stdin=stdin)

    def spawn(self, program: str, *arguments: str) -> Process:
        """Start a program of it, without stdin."""
        return self._lab.spawn(self.ns, *self.argv(program, *arguments)[4:], env=self.environment)

    def rsync(self, *arguments: str, options: tuple[str, ...] = (), timeout: float = 60) -> None:
        """rsync by way of it; `options` are ssh's."""
        self.run("rsync", "-e", shlex.join(self.words("ssh", *options)), *arguments, timeout=timeout)

    def all_environment(self) -> Mapping[str, str]:
        """For programs that are started by other means."""
        return {**os.environ, **self.environment}
