"""The environment that the processes of a user who logs in are started with."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.permission import Permission

PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/games"  # Debian's sshd, where login.defs(5) says nothing
ROOT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOGIN_DEFS: Final = Path("/etc/login.defs")
SYSTEM_ENVIRONMENT: Final = (Path("/etc/environment"), Path("/etc/default/locale"))
MAX_FILE: Final = 64 << 10  # bytes read of each of these files
MAX_VALUE: Final = 1024  # characters of what the client may send
DEFAULT_TERM: Final = "dumb"

_SENT: Final = re.compile(r"LANG|LC_[A-Z]{1,32}")
_TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Ends(Protocol):
    """Both ends of the user's connection: addresses as text, as `sshd.login.Login` has them."""

    @property
    def source(self) -> str:
        """Address of the client."""

    @property
    def source_port(self) -> int:
        """Its port."""

    @property
    def own(self) -> str:
        """Address of this host that it came to."""

    @property
    def own_port(self) -> int:
        """The port that it came to."""


def accepted(name: str, value: str) -> bool:
    """Whether a client may set this variable: LANG and LC_* only, for they reach every program of the user's."""
    return _SENT.fullmatch(name) is not None and len(value) <= MAX_VALUE and value.isprintable()


def of_login(
    account: Account,
    permission: Permission,
    ends: Ends,
    *,
    sent: Mapping[str, str] | None = None,
    term: str | None = None,
    tty: str | None = None,
    pam: Mapping[str, str] | None = None,
    original_command: str | None = None,
) -> dict[str, str]:
    """The whole environment of a session's first process, later sources over earlier ones.

    What passwd(5) says; what PAM's modules set (None: no PAM, then the files that pam_env(8) would read); the client's
    LANG and LC_*, as its terminal shows them, which sshd puts first; `environment=` of the key; the connection.
    `term` and `tty` are None without a pty; `original_command` is what the client asked for where the key's command
    replaces it. DISPLAY and SSH_AUTH_SOCK are for the caller to add.
    """
    result = {
        "USER": account.name,
        "LOGNAME": account.name,
        "HOME": account.home,
        "PATH": _search_path(root=account.uid == 0),
        "MAIL": f"/var/mail/{account.name}",
        "SHELL": account.shell,
    }
    if (zone := os.environ.get("TZ")) is not None:
        result["TZ"] = zone
    result |= _of_system() if pam is None else pam
    result |= {name: value for name, value in (sent or {}).items() if accepted(name, value)}
    result |= dict(permission.environment)
    result["SSH_CLIENT"] = f"{ends.source} {ends.source_port} {ends.own_port}"
    result["SSH_CONNECTION"] = f"{ends.source} {ends.source_port} {ends.own} {ends.own_port}"
    if tty is not None:
        result["SSH_TTY"] = tty
    if term is not None:
        result["TERM"] = term if _TERM.fullmatch(term) else DEFAULT_TERM
    if original_command is not None:
        result["SSH_ORIGINAL_COMMAND"] = original_command
    return {name: value for name, value in result.items() if "\0" not in name + value and "=" not in name}


def parse_assignments(text: str) -> dict[str, str]:
    """NAME=value lines as pam_env(8) reads /etc/environment: `export`, comments and one pair of quotes are dropped."""
    result = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name = name.strip()
        if not equals or not _NAME.fullmatch(name):
            continue
        value = value.strip()
        quoted = value[:1] in ("'", '"')
        result[name] = value[1:].split(value[0], 1)[0] if quoted else value.split("#", 1)[0].rstrip()
    return result


def _search_path(*, root: bool) -> str:
    """ENV_PATH or ENV_SUPATH of login.defs(5), which Debian writes with ``PATH=`` in front."""
    wanted = "ENV_SUPATH" if root else "ENV_PATH"
    for line in _read(LOGIN_DEFS).splitlines():
        words = line.split(None, 1)
        if len(words) == 2 and words[0] == wanted:
            return words[1].strip().removeprefix("PATH=")
    return ROOT_PATH if root else PATH


def _of_system() -> dict[str, str]:
    return {name: value for path in SYSTEM_ENVIRONMENT for name, value in parse_assignments(_read(path)).items()}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
