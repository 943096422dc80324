"""System users that exist in one namespace of the lab only, with homes in the lab's directory.

`ip netns exec` binds the files of /etc/netns/NAME over those of /etc: programs started in the namespace from then on
know these users and no others. An Enclosure has their homes as /home. They go with the Lab.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tests.net.lab import Lab

FIRST_ID = 61_000  # above what adduser gives out, below the nobodies
# What programs of this machine look up by name; the numbers are Debian's (base-passwd).
SYSTEM_GROUPS = {"root": 0, "tty": 5, "shadow": 42, "utmp": 43, "nogroup": 65_534}


@dataclass(frozen=True)
class User:
    """A line of passwd(5), and the groups beside its own."""

    name: str
    uid: int
    gid: int
    shell: str
    directory: Path  # what is /home/NAME in an Enclosure
    groups: tuple[str, ...] = ()

    @property
    def home(self) -> str:
        """The home directory, as passwd(5) names it."""
        return f"/home/{self.name}"

    @property
    def authorized_keys(self) -> Path:
        """Its file of public keys, as this machine names it."""
        return self.directory / ".ssh" / "authorized_keys"


class Users:
    """The users and groups of a namespace: at first those that daemons need."""

    def __init__(self, lab: Lab, ns: str, first_id: int = FIRST_ID) -> None:
        """Numbers from `first_id` on are given out: hosts share the machine's processes, so none may have two names."""
        self._etc = Path("/etc/netns") / ns
        self.homes = lab.directory / f"homes-{ns}"
        self.homes.mkdir(mode=0o755)
        self._first_id = first_id
        self._users: dict[str, User] = {}
        self._groups: dict[str, tuple[int, list[str]]] = {name: (gid, []) for name, gid in SYSTEM_GROUPS.items()}
        self._shadow: dict[str, str] = {}
        self.root = self._put(User("root", 0, 0, "/bin/bash", self.homes / "root"))
        nowhere = Path("/nonexistent")
        for uid, name in enumerate(("sshd", "pqtun"), first_id):
            self._put(User(name, uid, self._group(name, uid), "/usr/sbin/nologin", nowhere))
        self._put(User("nobody", 65_534, SYSTEM_GROUPS["nogroup"], "/usr/sbin/nologin", nowhere))
        self._write()

    def __getitem__(self, name: str) -> User:
        return self._users[name]

    def add(
        self,
        name: str,
        *,
        shell: str = "/bin/bash",
        groups: tuple[str, ...] = (),
        password: str = "*",
        expires: str = "",
    ) -> User:
        """Make a user with a group of its own; `password` and `expires` (days since 1970) are fields of shadow(5)."""
        uid = self._first_id + len(self._users)
        user = User(name, uid, self._group(name, uid), shell, self.homes / name, groups)
        for group in groups:
            self._group(group, self._first_id + 500 + len(self._groups))
            self._groups[group][1].append(name)
        self._put(user, password, expires)
        self._write()
        return user

    def authorize(self, user: User, *lines: str) -> None:
        """Add lines to a user's authorized_keys."""
        with user.authorized_keys.open("a") as file:
            file.writelines(f"{line.strip()}\n" for line in lines)

    def gids(self, user: User) -> set[int]:
        """The numbers of all groups that a user is in."""
        return {user.gid} | {self._groups[name][0] for name in user.groups}

    def _put(self, user: User, password: str = "*", expires: str = "") -> User:
        self._users[user.name] = user
        self._shadow[user.name] = f"{user.name}:{password}:20000:0:99999:7::{expires}:\n"
        if user.directory.is_relative_to(self.homes):
            (user.directory / ".ssh").mkdir(parents=True)
            for path, mode in ((user.directory, 0o750), (user.directory / ".ssh", 0o700)):
                path.chmod(mode)
            user.authorized_keys.touch(mode=0o600)
            for path in (user.directory, *user.directory.rglob("*")):
                os.chown(path, user.uid, user.gid)
        return user

    def _group(self, name: str, gid: int) -> int:
        return self._groups.setdefault(name, (gid, []))[0]

    def _write(self) -> None:
        passwd = [f"{u.name}:x:{u.uid}:{u.gid}:{u.name}:{u.home}:{u.shell}\n" for u in self._users.values()]
        (self._etc / "passwd").write_text("".join(passwd))
        groups = [f"{name}:x:{gid}:{','.join(members)}\n" for name, (gid, members) in self._groups.items()]
        (self._etc / "group").write_text("".join(groups))
        shadow = self._etc / "shadow"
        shadow.touch(mode=0o600)
        shadow.write_text("".join(self._shadow.values()))
