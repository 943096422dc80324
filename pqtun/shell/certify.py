"""Certificates as `ssh-keygen -s` makes them and `ssh-keygen -L` shows them.

Sources: OpenSSH's PROTOCOL.certkeys, ssh-keygen(1) (CERTIFICATES).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any, Final

import asyncssh
from asyncssh.packet import SSHPacket, String
from asyncssh.public_key import CERT_TYPE_HOST, SSHOpenSSHCertificate

from pqtun.protocol.errors import UserError
from pqtun.shell.keyfile import printable, type_name
from pqtun.shell.validity import FOREVER, describe

MAX_SERIAL: Final = (1 << 64) - 1

PERMITS: Final = {
    "x11-forwarding": "permit_x11_forwarding",
    "agent-forwarding": "permit_agent_forwarding",
    "port-forwarding": "permit_port_forwarding",
    "pty": "permit_pty",
    "user-rc": "permit_user_rc",
}
"""What a user certificate permits unless told otherwise: the names in `-O no-NAME`, and asyncssh's."""


@dataclass(frozen=True, slots=True)
class UserOptions:
    """What a user certificate allows."""

    permits: frozenset[str] = frozenset(PERMITS)
    force_command: str | None = None
    source_address: tuple[str, ...] = ()


def parse_options(options: Sequence[str]) -> UserOptions:
    """The options of `-O`, in order: clear, no-NAME, permit-NAME, force-command=, source-address=. UserError."""
    permits = set(PERMITS)
    command: str | None = None
    addresses: tuple[str, ...] = ()
    for option in options:
        name, _, value = option.partition("=")
        right = name.lower().removeprefix("no-").removeprefix("permit-")
        if option == "clear":
            permits, command, addresses = set(), None, ()
        elif name == "force-command" and value:
            command = value
        elif name == "source-address" and value:
            addresses = _networks(value)
        elif right in PERMITS and not value and name.lower() in (f"no-{right}", f"permit-{right}"):
            (permits.discard if name.lower().startswith("no-") else permits.add)(right)
        else:
            raise UserError(f"certificate option {option!r} is none that pqtun knows")
    return UserOptions(frozenset(permits), command, addresses)


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(address)) for address in text.split(","))
    except ValueError as error:
        raise UserError(f"source-address: {error}") from None


@dataclass(frozen=True, slots=True)
class Request:
    """What a certificate is to say. Times in seconds since 1970; no principals means any."""

    key_id: str
    host: bool = False
    principals: tuple[str, ...] = ()
    first: int = 0
    last: int = FOREVER
    serial: int = 0
    options: UserOptions = field(default_factory=UserOptions)


def certify(authority: asyncssh.SSHKey, key: asyncssh.SSHKey, request: Request) -> SSHOpenSSHCertificate:
    """A certificate of the public half of `key`, signed by the private key `authority`. UserError."""
    if not 0 <= request.serial <= MAX_SERIAL:
        raise UserError("the serial number of a certificate is between 0 and 2^64 - 1")
    comment = key.get_comment_bytes() if key.has_comment() else None
    fields: dict[str, Any] = {
        "serial": request.serial,
        "principals": list(request.principals),
        "valid_after": request.first,
        "valid_before": request.last,
        "comment": comment,
    }
    permits: dict[str, Any] = {PERMITS[name]: name in request.options.permits for name in PERMITS}
    try:
        if request.host:
            return authority.generate_host_certificate(key, request.key_id, **fields)
        return authority.generate_user_certificate(
            key,
            request.key_id,
            force_command=request.options.force_command,
            source_address=request.options.source_address or None,
            **fields,
            **permits,
        )
    except (asyncssh.KeyGenerationError, asyncssh.KeyExportError) as error:
        raise UserError(f"no certificate can be made: {error}") from None


def signed_line(path: str, certificate: SSHOpenSSHCertificate) -> str:
    """What is printed when a certificate has been made."""
    kind = "host" if certificate._cert_type == CERT_TYPE_HOST else "user"
    whom = f" for {','.join(certificate.principals)}" if certificate.principals else ""
    valid = describe(certificate._valid_after, certificate._valid_before)
    return f'Signed {kind} key {path}: id "{certificate._key_id}" serial {certificate._serial}{whom} valid {valid}'


def describe_certificate(certificate: asyncssh.SSHCertificate) -> list[str]:
    """The lines of `ssh-keygen -L`, after the file's name. UserError for X.509."""
    if not isinstance(certificate, SSHOpenSSHCertificate):
        raise UserError("that is no certificate of OpenSSH's kind")
    host = certificate._cert_type == CERT_TYPE_HOST
    authority = certificate.signing_key
    options = certificate.options
    critical = [name for name in options if name in ("force-command", "source-address")]
    extensions = [name for name in options if name not in critical]
    return [
        f"Type: {certificate.get_algorithm()} {'host' if host else 'user'} certificate",
        f"Public key: {type_name(certificate.key)[0]}-CERT {certificate.key.get_fingerprint()}",
        f"Signing CA: {type_name(authority)[0]} {authority.get_fingerprint()} (using {_signed_with(certificate)})",
        f'Key ID: "{printable(certificate._key_id)}"',
        f"Serial: {certificate._serial}",
        f"Valid: {describe(certificate._valid_after, certificate._valid_before)}",
        *_list("Principals", [printable(name) for name in certificate.principals]),
        *_list("Critical Options", [f"{name} {_value(options[name])}" for name in critical]),
        *_list("Extensions", extensions),
    ]


def _signed_with(certificate: SSHOpenSSHCertificate) -> str:
    """The algorithm of the signature, the last field, which comes after the CA's key; RSA keys have several."""
    signature = certificate.public_data.rpartition(String(certificate.signing_key.public_data))[2]
    return SSHPacket(SSHPacket(signature).get_string()).get_string().decode(errors="replace")


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else printable(str(value))


def _list(title: str, lines: list[str]) -> list[str]:
    return [f"{title}:", *(f"        {line}" for line in lines)] if lines else [f"{title}: (none)"]
