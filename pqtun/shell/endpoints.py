"""Where forwards may go: permitopen of authorized_keys(5), PermitRemoteOpen of ssh_config(5)."""

from typing import Final

ANY_HOST: Final = "*"

Endpoint = tuple[str, int | None]  # a host as written, without brackets, or ANY_HOST; None is any port


def listed(endpoints: tuple[Endpoint, ...] | None, host: str, port: int) -> bool:
    """Whether they are in a list; None is no list, so all are. Hosts are compared as they are, never resolved."""
    return endpoints is None or any(
        allowed_host in (ANY_HOST, host) and allowed_port in (None, port) for allowed_host, allowed_port in endpoints
    )
