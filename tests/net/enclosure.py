"""Where programs of a namespace run: /run, /var/log, /tmp and /home are its own, and they may be another Debian's.

What they leave there (utmp, sockets of agents) goes with the Lab, whose directory is where it was for them too.
"""

from __future__ import annotations

from pathlib import Path

from tests.net.lab import Lab
from tests.net.users import Users

ENTER = str(Path(__file__).with_name("enter.sh"))
CHECKOUT = Path(__file__).resolve().parents[2]


class Enclosure:
    """The mounts of the programs of one namespace; they share all of that but /tmp."""

    def __init__(self, lab: Lab, ns: str, users: Users) -> None:
        self._lab, self._users = lab, users
        self.directory = lab.directory / f"enclosure-{ns}"
        for name in ("run/sshd", "log", "tmp"):
            (self.directory / name).mkdir(parents=True, mode=0o755)
        # glibc's utmp functions write only to files that are there.
        for name in ("run/utmp", "log/wtmp", "log/lastlog"):
            (self.directory / name).touch(mode=0o664)

    def argv(self, *argv: str) -> list[str]:
        """The command line that runs a program of this machine in it."""
        return self._enter("", *argv)

    def chroot(self, root: Path, *argv: str) -> list[str]:
        """The command line that runs a program of the root folder in it."""
        return self.inside(root, "chroot", str(root), *argv)

    def inside(self, root: Path, *argv: str) -> list[str]:
        """The command line that runs a program of this machine with the root folder made ready, for it to chroot."""
        return self._enter(str(root), *argv)

    def _enter(self, root: str, *argv: str) -> list[str]:
        places = (self._lab.directory, self.directory, self._users.homes, CHECKOUT)
        return ["sh", "-e", ENTER, root, *map(str, places), *argv]
