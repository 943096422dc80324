"""The SSH servers of the matrix: sshd of this machine and of Debian sid, TinySSH, and pqtun's own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop.debian import TINYSSH
from tests.net.enclosure import Enclosure
from tests.net.lab import Lab
from tests.net.process import Process
from tests.net.ssh import no_penalties
from tests.net.ssh_keys import CERTIFIED, ED25519, MLDSA, PLAIN, Keys

SSHD_9, SSHD_10, TINYSSHD, PQTUN_SSHD = "sshd-9.2", "sshd-10.6", "tinysshd", "pqtun-sshd"
SERVERS = (SSHD_9, SSHD_10, TINYSSHD, PQTUN_SSHD)
PORTS = {SSHD_9: 2292, SSHD_10: 2216, TINYSSHD: 2213, PQTUN_SSHD: 42422}
USER_KEYS = {
    SSHD_9: (ED25519, CERTIFIED[0]),
    SSHD_10: (*PLAIN, *CERTIFIED),
    TINYSSHD: (ED25519,),
    PQTUN_SSHD: (*PLAIN, *CERTIFIED),
}
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
INETD = Path(__file__).with_name("inetd.py")

_CONFIG = """
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PrintMotd no
PrintLastLog no
LogLevel VERBOSE
AcceptEnv LANG LC_*
X11Forwarding yes
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class SshService:
    """A server that runs: where, its host keys ("TYPE BASE64"), and the process."""

    name: str
    port: int
    host_keys: tuple[str, ...]
    process: Process

    def known_hosts(self, host: str) -> list[str]:
        """The lines by which a client knows it under a name."""
        return [f"[{host}]:{self.port} {key}" for key in self.host_keys]


class SshServers:
    """Starts them in one namespace."""

    def __init__(self, lab: Lab, ns: str, enclosure: Enclosure, keys: Keys, openssh: Path) -> None:
        self._lab, self._ns, self._enclosure, self._keys, self._openssh = lab, ns, enclosure, keys, openssh

    def start(self, name: str, environment: dict[str, str] | None = None, *arguments: str) -> SshService:
        """Start one of SERVERS and wait until it listens; `environment` and `arguments` are for pqtun's."""
        if name == PQTUN_SSHD:
            return self._pqtun(environment or {}, arguments)
        return self._tinysshd() if name == TINYSSHD else self._sshd(name)

    def _sshd(self, name: str) -> SshService:
        new = name == SSHD_10
        kinds = (ED25519, MLDSA) if new else (ED25519,)
        config = self._keys.directory / f"{name}.conf"
        lines = [f"Port {PORTS[name]}", f"TrustedUserCAKeys {self._keys.authorities(*kinds)}"]
        lines += [f"HostKey {self._keys.path(f'host-{kind}')}" for kind in kinds]
        # The tests try what is refused, all from one address; and 10.6 wants to be told that authorities may sign so.
        lines += ["PerSourcePenalties no", "CASignatureAlgorithms +ssh-mldsa44-ed25519"] if new else [no_penalties()]
        config.write_text("\n".join(lines) + _CONFIG)
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        enclosure = self._enclosure
        host_keys = [_bare(self._keys.public(f"host-{kind}")) for kind in kinds]
        return self._spawn(name, enclosure.chroot(self._openssh, *argv) if new else enclosure.argv(*argv), host_keys)

    def _tinysshd(self) -> SshService:
        root, keys = TINYSSH.root(), self._keys.directory / "tinysshd"
        self._run(root, "tinysshd-makekey", str(keys))
        printed = self._run(root, "tinysshd-printkey", str(keys)).splitlines()
        host_keys = [f"ssh-ed25519 {line.split()[1]}" for line in printed if line.startswith("ssh-ed25519 ")]
        tinysshd = ["/usr/sbin/tinysshd", "-v", "-v", "-v", "-x", f"sftp={SFTP_SERVER}", str(keys)]
        inetd = [sys.executable, str(INETD), str(PORTS[TINYSSHD]), "chroot", str(root), *tinysshd]
        return self._spawn(TINYSSHD, self._enclosure.inside(root, *inetd), host_keys)

    def _pqtun(self, environment: dict[str, str], arguments: Sequence[str]) -> SshService:
        directory = self._keys.directory.parent / f"sshd-{self._ns}"
        keys = directory / "host-keys"
        places = ["--host-keys", str(keys), "--audit", str(directory / "audit.jsonl"), "--run", str(directory / "run")]
        # Not below /tmp, to which everybody may write: such a file is not trusted.
        shutil.copy(self._keys.authorities(ED25519, MLDSA), self._enclosure.directory / "run/authorities")
        authorities = ["--trusted-user-ca-keys", "/run/authorities"]
        directory.mkdir(exist_ok=True)
        argv = [sys.executable, "-m", "pqtun", "sshd", "--user", "pqtun", *places, *authorities, *arguments]
        service = self._spawn(PQTUN_SSHD, self._enclosure.argv(*argv), [], environment)
        service.process.wait_output("sshd is ready", 20)
        host_keys = [_bare(path.read_text()) for path in sorted(keys.glob("*.pub"))]
        return SshService(service.name, service.port, tuple(host_keys), service.process)

    def _spawn(
        self, name: str, argv: Sequence[str], host_keys: Sequence[str], environment: dict[str, str] | None = None
    ) -> SshService:
        process = self._lab.spawn(self._ns, *argv, env=environment)
        self._lab.wait_listening(process, self._ns, PORTS[name])
        return SshService(name, PORTS[name], tuple(host_keys), process)

    def _run(self, root: Path, *argv: str) -> str:
        return self._lab.run(self._ns, *self._enclosure.chroot(root, *argv)).stdout


def _bare(public: str) -> str:
    """A public key without its comment."""
    return " ".join(public.split()[:2])
