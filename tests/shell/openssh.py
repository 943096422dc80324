"""This machine's OpenSSH without a network: sshd on one end of a socket pair, ssh on a Unix socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = "/usr/sbin/sshd"
_BRIDGE = """
import os, socket, sys, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
def up():
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := peer.recv(65536):
    os.write(1, data)
"""


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=20)
    return path


@contextmanager
def sshd(directory: Path, user_key: str, *lines: str) -> Iterator[socket.socket]:
    """One connection to a server that lets root in with a public key; the client's end of it."""
    host_key = keygen(directory / "host")
    authorized = directory / "authorized_keys"
    authorized.write_text(user_key)
    config = directory / "sshd_config"
    text = [
        f"HostKey {host_key}",
        f"AuthorizedKeysFile {authorized}",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin prohibit-password",
        "PidFile none",
        "PrintLastLog no",
        *lines,
    ]
    config.write_text("\n".join(text) + "\n")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and a machine without systemd may not have it
    ours, theirs = socket.socketpair()
    server = subprocess.Popen(
        [SSHD, "-i", "-f", str(config)], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, close_fds=True
    )
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        server.kill()
        server.communicate(timeout=20)


def ssh_argv(directory: Path, path: Path, *options: str) -> list[str]:
    """`ssh` to a server that listens on a Unix socket; it takes any host key."""
    bridge = directory / "bridge.py"
    bridge.write_text(_BRIDGE)
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "ProxyCommand": f"{sys.executable} {bridge} {path}",
    }
    argv = ["ssh", "-F", "none", "-v"]
    for key, value in settings.items():
        argv += ["-o", f"{key}={value}"]
    return [*argv, *options, "somebody@pqtun.test"]
