"""What people read when they have logged in to a terminal: the message of the day, the last login."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.loginrecords import LastLogin

MOTD_FILES: Final = (Path("/run/motd.dynamic"), Path("/etc/motd"))  # as Debian's sshd has pam_motd(8) show them
HUSH: Final = ".hushlogin"  # in the home directory: nothing is shown
MAX_MOTD: Final = 64 << 10  # bytes of each file


def text(account: Account, said: Sequence[str] | None, last: LastLogin | None) -> bytes:
    """What an interactive login finds on its terminal; b"" for one who wants nothing. Ask as the user.

    `said` is what PAM's modules said, pam_motd(8) among them; None without PAM, then the files are read here.
    """
    if os.path.exists(os.path.join(account.home, HUSH)):
        return b""
    parts = [_file(path) for path in MOTD_FILES] if said is None else [part.encode() for part in said]
    if last is not None:
        parts.append(_last_login(last).encode())
    return b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts if part)


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_MOTD)
    except OSError:
        return b""


def _last_login(last: LastLogin) -> str:
    moment = time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(last.time))
    host = "".join(character for character in last.host if character.isprintable())
    return f"Last login: {moment}" + (f" from {host}" if host else "")
