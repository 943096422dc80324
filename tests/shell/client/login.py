"""`pqtun ssh` to a Sshd, without a tunnel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from tests.net import pqtun
from tests.net.process import Process
from tests.shell.client.sshd import ADDRESS, Sshd

HOST = f"root@{ADDRESS}"


def words(sshd: Sshd, *arguments: str) -> list[str]:
    """The command line, as it is inside the namespace."""
    return pqtun.argv("ssh", "--direct", *sshd.options(), *arguments)


def argv(sshd: Sshd, *arguments: str) -> list[str]:
    """The command line that anybody can run."""
    return sshd.lab.argv(sshd.ns, *words(sshd, *arguments))


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """No agent, no screen and no language of who runs the tests."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("SSH_AUTH_SOCK", "DISPLAY", "SSH_ASKPASS")
    }
    kept = {name: value for name, value in kept.items() if name != "LANG" and not name.startswith("LC_")}
    return {**kept, **pqtun.environment(), "TERM": "xterm", **(extra or {})}


def run(
    sshd: Sshd, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end."""
    return subprocess.run(
        argv(sshd, *arguments), input=stdin, capture_output=True, timeout=timeout, env=environment(env)
    )


def spawn(sshd: Sshd, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """Start it, without stdin."""
    return sshd.lab.spawn(sshd.ns, *words(sshd, *arguments), env={**pqtun.environment(), **(env or {})})
