"""The system's users: who they are, and why one may not log in (passwd(5), shadow(5), nologin(5))."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pqtun.shell.sshd.shadow import DAY, NEVER, Aging, aging_of

MAX_NAME: Final = 256  # bytes; useradd(8) makes 32 at most, directories of companies longer ones
MAX_NOLOGIN: Final = 4096  # bytes of the text that are shown
DEFAULT_SHELL: Final = "/bin/sh"  # passwd(5), where the field is empty
NOLOGIN_FILES: Final = (Path("/etc/nologin"), Path("/var/run/nologin"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of the system as passwd(5) and group(5) have him, by whatever NSS asks."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]  # all of them, the own one too
    home: str
    shell: str  # never empty
    gecos: str = ""


def find(name: str) -> Account | None:
    """The account of that login name, None where there is none or NSS cannot tell."""
    try:
        encoded = name.encode("utf-8")
        if not encoded or len(encoded) > MAX_NAME or b"\0" in encoded:
            return None
        entry = pwd.getpwnam(name)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError, UnicodeError):
        return None
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(dict.fromkeys([entry.pw_gid, *groups])),
        home=entry.pw_dir or "/",
        shell=entry.pw_shell or DEFAULT_SHELL,
        gecos=entry.pw_gecos,
    )


def refusal(account: Account, now: float, *, pam: bool = False) -> str | None:
    """Why this user may not log in at `now` (seconds since 1970), as one may tell him; None if he may.

    With `pam` only what sshd checks beside PAM: the shell and the account's last day. PAM's account modules say the
    rest, and theirs may differ: pam_unix lets a user in by key whose password is locked, sshd without PAM does not.
    """
    aging = aging_of(account.name)
    if (fault := _shell_fault(account.shell)) is not None:
        return fault
    # pam_unix counts the day itself as expired, sshd the day after; the earlier one rules where both are asked.
    if aging is not None and aging.expires != NEVER and now // DAY >= aging.expires:
        return "your account has expired"
    if pam:
        return None
    if (text := nologin(account)) is not None:
        return text
    return None if aging is None else _password_refusal(aging, now)


def nologin(account: Account) -> str | None:
    """What nologin(5) says to everyone but root while logins are closed; None if they are open."""
    if account.uid == 0:
        return None
    for path in NOLOGIN_FILES:
        try:
            with path.open("rb") as file:
                text = file.read(MAX_NOLOGIN)
        except FileNotFoundError:
            continue
        except OSError:
            text = b""
        return text.decode("utf-8", "replace").strip() or "logins are closed at the moment"
    return None


def _password_refusal(aging: Aging, now: float) -> str | None:
    if aging.password.startswith("!"):  # what passwd -l and usermod -L write; "*" only means that none fits
        return "your account is locked"
    if aging.changed == 0:
        return "your password has to be changed, which cannot be done here"
    age = now // DAY - aging.changed
    if aging.changed != NEVER and aging.maximum != NEVER and age > aging.maximum:
        return "your password has expired and cannot be changed here"
    return None


def _shell_fault(shell: str) -> str | None:
    try:
        mode = os.stat(shell).st_mode
    except OSError:
        return "your login shell does not exist"
    if not stat.S_ISREG(mode) or not mode & 0o111:
        return "your login shell cannot be executed"
    return None
