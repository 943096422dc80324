"""What a user's process is told of the login that it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pqtun.daemon.settings import SshdSettings
from pqtun.shell.sshd.identity import UMASK


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """One authenticated connection."""

    settings: SshdSettings
    name: str  # of the connection, as the audit file has it
    source: str  # address of the client, as its packets have it
    source_port: int
    own: str  # address of this host that it came to
    own_port: int
    pam_environment: Mapping[str, str] | None = None  # None: PAM was not asked
    umask: int = UMASK
    texts: tuple[str, ...] = ()  # what PAM's modules want the user to read at a terminal

    def of_session(self, environment: Mapping[str, str] | None, umask: int, texts: tuple[str, ...]) -> "Login":
        """The same with what PAM's session added."""
        return replace(self, pam_environment=environment, umask=umask, texts=texts)
