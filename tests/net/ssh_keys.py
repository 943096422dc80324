"""Keys of users, hosts and certificate authorities, made by OpenSSH 10.6."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.interop.debian import OPENSSH, Unavailable
from tests.net.enclosure import Enclosure
from tests.net.lab import Lab
from tests.net.users import User

ED25519, MLDSA = "ed25519", "mldsa44-ed25519"
PLAIN = (ED25519, MLDSA)
CERTIFIED = tuple(f"certified-{kind}" for kind in PLAIN)
STRANGER = "stranger"  # an ed25519 key that opens nothing
OLDEST = (10, 6)  # the first OpenSSH with ssh-mldsa44-ed25519 under its name

# A certificate is good for any user whose name stands in it, and its key is in nobody's authorized_keys.
_MAKE = """
cd "$1"; shift
for kind in ed25519 mldsa44-ed25519; do
    for name in $kind certified-$kind ca-$kind host-$kind; do ssh-keygen -q -t $kind -N '' -C $name -f $name; done
    ssh-keygen -q -s ca-$kind -I $kind -n "$1" -V -5m:+1d certified-$kind
done
ssh-keygen -q -t ed25519 -N '' -C stranger -f stranger
"""


class Keys:
    """The directory of the keys, those of users being readable for one user only."""

    def __init__(self, lab: Lab, ns: str, enclosure: Enclosure, owner: User, principals: str) -> None:
        self.directory = lab.directory / f"keys-{ns}"
        self.directory.mkdir(mode=0o755)
        root = openssh_root(lab, ns, enclosure)
        make = ("sh", "-ec", _MAKE, "sh", str(self.directory), principals)
        lab.run(ns, *enclosure.chroot(root, *make), timeout=60)
        for name in (*PLAIN, *CERTIFIED, STRANGER):
            os.chown(self.directory / name, owner.uid, owner.gid)

    def path(self, name: str) -> Path:
        """The private key."""
        return self.directory / name

    def public(self, name: str) -> str:
        """The line of a public key."""
        return self.path(name).with_name(f"{name}.pub").read_text().strip()

    def authorities(self, *kinds: str) -> Path:
        """A file of the public keys of these authorities (for sshd's TrustedUserCAKeys)."""
        path = self.directory / f"authorities-{'-'.join(kinds)}"
        path.write_text("".join(f"{self.public(f'ca-{kind}')}\n" for kind in kinds))
        return path


def openssh_root(lab: Lab, ns: str, enclosure: Enclosure) -> Path:
    """The folder of OpenSSH >= 10.6; Unavailable if Debian sid has none."""
    root = OPENSSH.root()
    said = lab.run(ns, *enclosure.chroot(root, "ssh", "-V")).stderr
    version = re.match(r"OpenSSH_(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise Unavailable(f"{root} holds {said.strip()}, not OpenSSH {OLDEST[0]}.{OLDEST[1]} or later: remove it")
    return root
