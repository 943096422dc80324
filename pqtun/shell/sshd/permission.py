"""What a key or certificate that was accepted lets its holder do."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pqtun.shell.endpoints import ANY_HOST, Endpoint, listed
from pqtun.shell.sshd.messages import MessageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Options of authorized_keys(5) and of a certificate, merged; the defaults are those of a line without options.

    It says nothing of what the server's settings forbid to everyone.
    """

    origin: str  # where it comes from, for the audit: "/home/u/.ssh/authorized_keys:3", or what CA signed
    key_type: str  # of the user's own key, never a certificate's
    fingerprint: str  # of that key: "SHA256:" and base64 as ssh-keygen -l prints it
    command: str | None = None  # instead of whatever the client asks for; may be "" or "internal-sftp"
    environment: tuple[tuple[str, str], ...] = ()
    pty: bool = True
    port_forwarding: bool = True  # TCP and Unix-domain sockets
    agent_forwarding: bool = True
    x11_forwarding: bool = True
    permit_open: tuple[Endpoint, ...] | None = None  # None: no list, so all
    permit_listen: tuple[Endpoint, ...] | None = None
    touch_required: bool = True  # of a security key: the user was present
    verify_required: bool = False  # and gave a PIN or a fingerprint

    def permits(self, host: str, port: int) -> bool:
        """Whether -L, -D, -J or -W may connect there. `host` is compared as it was sent, never resolved, as by sshd."""
        return self.port_forwarding and listed(self.permit_open, host, port)

    def permits_listen(self, host: str, port: int) -> bool:
        """Whether -R may listen there; `host` as it was sent: "localhost" where the client named none, "" for all.

        A port of 0 (let the server choose) needs a list with ``*`` as the port, or none.
        """
        return self.port_forwarding and listed(self.permit_listen, host or ANY_HOST, port)

    def permits_unix(self) -> bool:
        """Whether a connection to a Unix-domain socket may be asked for: no to any list but ``*:*``."""
        return self.port_forwarding and _all_listed(self.permit_open)

    def permits_listen_unix(self) -> bool:
        """Whether -R may make a Unix-domain socket."""
        return self.port_forwarding and _all_listed(self.permit_listen)

    def to_json(self) -> dict[str, object]:
        """The fields as JSON has them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Permission":
        """What `to_json` gave, through JSON or not. Raises MessageError."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise MessageError("other fields than a permission has")
        try:
            return cls(
                origin=_text(values["origin"]),
                key_type=_text(values["key_type"]),
                fingerprint=_text(values["fingerprint"]),
                command=None if values["command"] is None else _text(values["command"]),
                environment=tuple((_text(name), _text(value)) for name, value in _pairs(values["environment"])),
                pty=_flag(values["pty"]),
                port_forwarding=_flag(values["port_forwarding"]),
                agent_forwarding=_flag(values["agent_forwarding"]),
                x11_forwarding=_flag(values["x11_forwarding"]),
                permit_open=_endpoints(values["permit_open"]),
                permit_listen=_endpoints(values["permit_listen"]),
                touch_required=_flag(values["touch_required"]),
                verify_required=_flag(values["verify_required"]),
            )
        except (TypeError, ValueError):
            raise MessageError("a permission with values of other types") from None


def _all_listed(endpoints: tuple[Endpoint, ...] | None) -> bool:
    return endpoints is None or (ANY_HOST, None) in endpoints


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _endpoints(values: Any) -> tuple[Endpoint, ...] | None:
    if values is None:
        return None
    return tuple((_text(host), _port(port)) for host, port in _pairs(values))


def _pairs(values: Any) -> list[Any]:
    """A text is a sequence of texts, too, and would do for a list of pairs."""
    if not isinstance(values, list | tuple) or not all(isinstance(pair, list | tuple) for pair in values):
        raise TypeError(values)
    return list(values)


def _port(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(value)
    return value
