"""PQConnect's server and client, from a Debian 13 root folder, as daemons in a namespace of the lab."""

from __future__ import annotations

import re
from pathlib import Path

from tests.net.lab import Lab
from tests.net.process import LabError, Process, wait_until

PORT, KEY_PORT = 42424, 42425
SERVER_ADDRESS, CLIENT_ADDRESS = "10.42.0.1", "10.43.0.1"

_LAUNCHER = Path(__file__).with_name("launcher.py")
# `ip netns exec` has given this shell a mount namespace of its own: the mounts end with the program.
_ENTER = """
root=$1; data=$2; launcher=$3; shift 3
umask 022
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/data"
mount --bind "$data" "$root/run/data"
touch "$root/run/launcher.py"
mount --bind "$launcher" "$root/run/launcher.py"
exec chroot "$root" /usr/bin/python3 -u /run/launcher.py "$@"
"""


class _Program:
    """One of PQConnect's programs in a namespace, with `data` as its /run/data."""

    def __init__(self, lab: Lab, ns: str, root: Path, data: Path) -> None:
        self.lab, self.ns = lab, ns
        self._root, self._data = root, data
        data.mkdir(exist_ok=True)

    def _argv(self, command: str, *arguments: str) -> list[str]:
        enter = ["sh", "-ec", _ENTER, "sh", str(self._root), str(self._data), str(_LAUNCHER)]
        return [*enter, command, *arguments]


class PqconnectServer(_Program):
    """PQConnect's server with keys of its own making in `data`/keys (made when missing)."""

    def __init__(self, lab: Lab, ns: str, root: Path, data: Path) -> None:
        super().__init__(lab, ns, root, data)
        self.keys = data / "keys"
        self.name = self._keygen()
        self._process: Process | None = None

    def _keygen(self) -> str:
        """PQConnect's own pqconnect-keygen; the label that it wants in the DNS."""
        config = self._data / "config"
        arguments = ["-c", "/run/data/config", "-d", "/run/data/keys"]
        if self.keys.exists():
            arguments.append("-D")
        else:
            # It asks questions about directories and ports that it does not find.
            self.keys.mkdir()
            config.mkdir()
            (config / "pqcport").write_text(str(PORT))
            (config / "keyport").write_text(str(KEY_PORT))
        said = self.lab.run(self.ns, *self._argv("keygen", *arguments), timeout=120)
        label = re.search(r"CNAME +SUBDOMAIN +(pq1\w+)", said.stdout + said.stderr)
        if label is None:
            raise LabError(f"pqconnect-keygen named no label\n{said.stdout}{said.stderr}")
        return label[1]

    def start(self) -> Process:
        """Start it and wait until it serves keys and takes handshakes."""
        argv = self._argv("server", "-d", "/run/data/keys")
        self._process = self.lab.spawn(self.ns, *argv)
        # It makes the ephemeral keys of a whole day first.
        self._process.wait_output("Done generating ephemeral keypairs", 120)
        self.lab.wait_listening(self._process, self.ns, PORT, "udp")
        self.lab.wait_listening(self._process, self.ns, KEY_PORT, "udp")
        return self._process

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()


class PqconnectClient(_Program):
    """PQConnect's client."""

    def __init__(self, lab: Lab, ns: str, root: Path, data: Path) -> None:
        super().__init__(lab, ns, root, data)
        self._process: Process | None = None

    def start(self) -> Process:
        """Start it and wait until it gets to see DNS answers."""
        process = self._process = self.lab.spawn(self.ns, *self._argv("client"))
        process.wait_output("Listening on port", 60)

        def queue_bound() -> bool:
            if not process.running:
                raise LabError(f"pqconnect ended: {process.returncode}\n{process.output()}")
            return bool(self.lab.run(self.ns, "cat", "/proc/net/netfilter/nfnetlink_queue").stdout)

        wait_until(queue_bound, 20, "PQConnect's netfilter queue")
        return process

    def stop(self) -> None:
        """End it, and take away the rule that would now swallow all DNS answers."""
        if self._process is not None:
            self._process.stop()
            argv = ["chroot", str(self._root), "/usr/sbin/iptables-legacy", "-t", "mangle", "-F"]
            self.lab.run(self.ns, *argv)


def zone(label: str, addresses: list[str]) -> str:
    """A zone example.net whose www is announced under the pq1 label, and whose `plain` is the same host unannounced."""
    lines = ["$TTL 60", "example.net. IN SOA ns.example.net. host.example.net. 1 60 60 60 60"]
    lines.append(f"www.example.net. IN CNAME {label}.example.net.")
    for address in addresses:
        kind = "AAAA" if ":" in address else "A"
        lines += [f"{name}.example.net. IN {kind} {address}" for name in (label, "plain")]
    return "\n".join(lines) + "\n"
