"""What a user's process is told of the login that it was made for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pqtun.daemon.settings import SshdSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """One authenticated connection."""

    settings: SshdSettings
    source: str  # address of the client, as its packets have it
    source_port: int
    own: str  # address of this host that it came to
    own_port: int
    pam_environment: Mapping[str, str] = field(default_factory=dict)
