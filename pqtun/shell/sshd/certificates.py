"""OpenSSH's certificates of users (PROTOCOL.certkeys of OpenSSH): taken apart, verified, and what they allow."""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from pqtun.shell import ssh
from pqtun.shell.sshd import sources
from pqtun.shell.sshd.keyoptions import KeyOptions

USER: Final = 1  # SSH2_CERT_TYPE_USER
MAX_PRINCIPALS: Final = 256  # SSHKEY_CERT_MAX_PRINCIPALS
MAX_TEXT: Final = 1024  # bytes of the key ID and of each principal

KEY_TYPES: Final = dict(zip(ssh.CERTIFICATE_ALGORITHMS, ssh.KEY_ALGORITHMS, strict=True))
# How many strings the key itself has there: a public key, and of security keys also the application.
_KEY_STRINGS: Final = {"ssh-mldsa44-ed25519": 1, "ssh-ed25519": 1, "sk-ssh-ed25519@openssh.com": 2}


class CertificateError(ValueError):
    """A certificate that does not let its holder in; the text says why."""


class Reader:
    """Fields of SSH's wire format (RFC 4251 section 5), from the beginning of some bytes on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def __bool__(self) -> bool:
        return self.position < len(self._data)

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise CertificateError("it ends too early")
        self.position += count
        return self._data[self.position - count : self.position]

    def number(self) -> int:
        """A uint32."""
        return int(struct.unpack(">I", self._take(4))[0])

    def long(self) -> int:
        """A uint64."""
        return int(struct.unpack(">Q", self._take(8))[0])

    def string(self) -> bytes:
        """A string. Raises CertificateError, as the others."""
        return self._take(self.number())

    def text(self) -> str:
        """A string of text, without control characters."""
        data = self.string()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise CertificateError("a text in it is not UTF-8") from None
        if len(data) > MAX_TEXT or not text.isprintable():
            raise CertificateError("a text in it is too long, or not printable")
        return text


def string(data: bytes) -> bytes:
    """A string of SSH's wire format."""
    return struct.pack(">I", len(data)) + data


def type_of(blob: bytes) -> str:
    """The name at the beginning of a key's or certificate's blob, "" if there is none."""
    try:
        return Reader(blob).string().decode("ascii")
    except (CertificateError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a certificate says, not yet verified."""

    key_blob: bytes  # the user's key, as without certificate
    serial: int
    kind: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int  # seconds since 1970
    valid_before: int
    critical: tuple[tuple[str, bytes], ...]
    extensions: tuple[tuple[str, bytes], ...]
    ca_blob: bytes
    signed: bytes
    signature: bytes

    def verify(self) -> None:
        """Raises CertificateError unless the CA's key has signed it."""
        if type_of(self.ca_blob) not in ssh.KEY_ALGORITHMS:
            raise CertificateError("the CA's key is of a type that is not used here")
        if not verify_signature(self.ca_blob, self.signed, self.signature):
            raise CertificateError("the CA's signature is wrong")

    def check(self, principals: Collection[str], source: sources.Address, now: float) -> KeyOptions:
        """What it allows one of these principals who comes from `source`. Raises CertificateError.

        A certificate without principals is nobody's, although older sshd take it as everybody's.
        """
        if self.kind != USER:
            raise CertificateError("it is not a user's")
        if now < self.valid_after:
            raise CertificateError("it is not valid yet")
        if now >= self.valid_before:
            raise CertificateError("it has expired")
        if not set(principals) & set(self.principals):
            raise CertificateError("it is not for this user")
        return self._options(source)

    def _options(self, source: sources.Address) -> KeyOptions:
        names = [name for name, _ in self.critical]
        if len(set(names)) != len(names):
            raise CertificateError("a critical option stands there twice")
        command: str | None = None
        for name, data in self.critical:
            if name == "force-command":
                command = _only_string(data).decode("utf-8", "surrogateescape")
            elif name == "source-address":
                _check_source(_only_string(data), source)
            elif name != "verify-required" or data:
                raise CertificateError(f"critical option {name} is not known")
        extensions = {name for name, data in self.extensions if not data}
        return KeyOptions(
            command=command,
            pty="permit-pty" in extensions,
            port_forwarding="permit-port-forwarding" in extensions,
            agent_forwarding="permit-agent-forwarding" in extensions,
            x11_forwarding="permit-X11-forwarding" in extensions,
            touch_required="no-touch-required" not in extensions,
            verify_required="verify-required" in names,
        )


def decode(blob: bytes) -> Certificate:
    """Take a certificate apart. Raises CertificateError."""
    reader = Reader(blob)
    key_type = KEY_TYPES.get(reader.text())
    if key_type is None:
        raise CertificateError("it is of a type that is not used here")
    reader.string()  # the nonce
    key_blob = b"".join([string(key_type.encode()), *(string(reader.string()) for _ in range(_KEY_STRINGS[key_type]))])
    serial, kind, key_id = reader.long(), reader.number(), reader.text()
    principals = _principals(reader.string())
    valid_after, valid_before = reader.long(), reader.long()
    critical, extensions = _pairs(reader.string()), _pairs(reader.string())
    reader.string()  # reserved
    ca_blob = reader.string()
    signed = blob[: reader.position]
    signature = reader.string()
    if reader:
        raise CertificateError("something follows it")
    return Certificate(
        key_blob=key_blob,
        serial=serial,
        kind=kind,
        key_id=key_id,
        principals=principals,
        valid_after=valid_after,
        valid_before=valid_before,
        critical=critical,
        extensions=extensions,
        ca_blob=ca_blob,
        signed=signed,
        signature=signature,
    )


def verify_signature(key_blob: bytes, message: bytes, signature: bytes, *, touch_required: bool = False) -> bool:
    """Whether the signature (algorithm and bytes, as SSH sends them) is that plain key's; False if either is broken."""
    ssh.prepare()
    import asyncssh
    from asyncssh.packet import PacketDecodeError
    from asyncssh.public_key import decode_ssh_public_key

    try:
        key = decode_ssh_public_key(key_blob)
        key.set_touch_required(touch_required)
        return key.verify(message, signature)
    except (asyncssh.KeyImportError, PacketDecodeError, ValueError, UnicodeDecodeError):
        return False


def _principals(data: bytes) -> tuple[str, ...]:
    reader = Reader(data)
    found: list[str] = []
    while reader:
        if len(found) == MAX_PRINCIPALS:
            raise CertificateError("too many principals")
        found.append(reader.text())
    return tuple(found)


def _pairs(data: bytes) -> tuple[tuple[str, bytes], ...]:
    reader = Reader(data)
    found: list[tuple[str, bytes]] = []
    while reader:
        found.append((reader.text(), reader.string()))
    return tuple(found)


def _only_string(data: bytes) -> bytes:
    reader = Reader(data)
    value = reader.string()
    if reader:
        raise CertificateError("a critical option is broken")
    return value


def _check_source(networks: bytes, source: sources.Address) -> None:
    try:
        if not sources.in_networks(networks.decode("ascii"), source):
            raise CertificateError("it is not for this address")
    except (UnicodeDecodeError, sources.PatternError):
        raise CertificateError("source-address is broken") from None
