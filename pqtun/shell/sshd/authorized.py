"""Which keys a user may log in with: authorized_keys(5), trusted CAs, revoked keys."""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from pqtun.shell import ssh
from pqtun.shell.sshd import certificates, filemodes, keyoptions, sources
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.certificates import Certificate, CertificateError
from pqtun.shell.sshd.filemodes import FileRefused
from pqtun.shell.sshd.keyoptions import KeyOptions, OptionError
from pqtun.shell.sshd.permission import Permission

MAX_LINE: Final = 16 << 10  # bytes; the key takes 1.8 KB of it at most
MAX_REMARKS: Final = 16  # for one question

_BLANK: Final = " \t"
# Names that begin a line without options. The types that we do not accept are in it too: what follows is no option.
_KEY_TYPES: Final = (
    "ssh-",
    "ecdsa-sha2-",
    "sk-ssh-",
    "sk-ecdsa-",
)

# Unknown users are looked up as this one is. Nothing can be below that home, whatever somebody makes on this host.
_NOBODY: Final = Account(name="nobody", uid=65534, gid=65534, groups=(65534,), home="/dev/null", shell="/bin/false")


class KeySettings(Protocol):
    """The settings of the server that say where keys are found."""

    @property
    def authorized_keys(self) -> tuple[str, ...]:
        """Files with %u, %h, %U and %%, below the home directory unless absolute."""

    @property
    def trusted_user_ca_keys(self) -> Path | None:
        """Public keys of CAs that any user's certificate may be of."""

    @property
    def revoked_keys(self) -> Path | None:
        """Public keys, of users and of CAs, that let nobody in."""


class _Line:
    """One line of a file that has a key of a type we know."""

    def __init__(self, text: str, origin: str) -> None:
        self.origin = origin
        self.options_text, key_text = _split(text)
        words = key_text.split(None, 2)
        if len(words) < 2:
            raise ValueError("no key")
        self.key_type = words[0]
        self.blob = base64.b64decode(words[1].encode(), validate=True)
        if certificates.type_of(self.blob) != self.key_type:
            raise ValueError("no key")

    def options(self) -> KeyOptions:
        """Raises OptionError."""
        return keyoptions.parse(self.options_text) if self.options_text else KeyOptions()


class Authorizer:
    """Finds what lets a key in. For root's process of one thread: it takes the user's rights on to read his files."""

    def __init__(self, settings: KeySettings) -> None:
        self._settings = settings
        # Why lines and files of this host were passed over for the last question, for the audit: nothing that anybody
        # who can connect could bring about with any key.
        self.remarks: list[str] = []

    def permission(
        self, account: Account | None, key_blob: bytes, source: sources.Address, now: float
    ) -> Permission | None:
        """What the holder of that key or certificate may do as this user, None if he may not log in.

        `now` is seconds since 1970. No account (None) takes the steps of an account without files; how long an answer
        takes still depends on the user's files, which the caller has to hide.
        """
        self.remarks = []
        found = _Question(self._settings, account or _NOBODY, source, now, self._remark).answer(key_blob)
        return None if account is None else found

    def _remark(self, text: str) -> None:
        if len(self.remarks) < MAX_REMARKS:
            self.remarks.append(text)


class _Question:
    """One key, asked for one user."""

    def __init__(
        self,
        settings: KeySettings,
        account: Account,
        source: sources.Address,
        now: float,
        remark: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._account = account
        self._source = source
        self._now = now
        self._remark = remark

    def answer(self, blob: bytes) -> Permission | None:
        key_type = certificates.type_of(blob)
        if key_type in ssh.KEY_ALGORITHMS:
            return None if self._revoked(blob) else self._of_lines(blob, None)
        if key_type not in certificates.KEY_TYPES:
            return None
        try:
            certificate = certificates.decode(blob)
        except CertificateError:
            return None
        if self._revoked(certificate.key_blob, certificate.ca_blob, blob):
            return None
        return self._of_trusted_ca(certificate) or self._of_lines(certificate.ca_blob, certificate)

    def _revoked(self, *blobs: bytes) -> bool:
        path = self._settings.revoked_keys
        if path is None:
            return False
        try:
            data = filemodes.read_of_root(str(path))
            if data is None:
                raise FileRefused(f"{path}: no such file")
        except FileRefused as refused:
            self._remark(f"{refused}; all keys count as revoked")
            return True
        if any(line.blob in blobs for line in self._lines(data, str(path))):
            self._remark(f"revoked in {path}")
            return True
        return False

    def _of_trusted_ca(self, certificate: Certificate) -> Permission | None:
        path = self._settings.trusted_user_ca_keys
        if path is None:
            return None
        try:
            data = filemodes.read_of_root(str(path)) or b""
        except FileRefused as refused:
            self._remark(str(refused))
            return None
        for line in self._lines(data, str(path)):
            if line.blob == certificate.ca_blob and not line.options_text:
                return self._of_certificate(certificate, (self._account.name,), None, line.origin)
        return None

    def _of_lines(self, blob: bytes, certificate: Certificate | None) -> Permission | None:
        for pattern in self._settings.authorized_keys:
            path = file_of(pattern, self._account)
            try:
                data = filemodes.read(path, self._account)
            except FileRefused as refused:
                self._remark(str(refused))
                continue
            for line in self._lines(data or b"", path):
                if line.blob == blob and (found := self._of_line(line, certificate)):
                    return found
        return None

    def _lines(self, data: bytes, path: str) -> Iterator[_Line]:
        for number, raw in enumerate(data.split(b"\n"), 1):
            text = raw.decode("utf-8", "surrogateescape").rstrip("\r").lstrip(_BLANK)
            if not text or text.startswith("#"):
                continue
            if len(raw) > MAX_LINE or "\0" in text:
                self._remark(f"{path}:{number}: too long a line, or not text")
                continue
            try:
                yield _Line(text, f"{path}:{number}")
            except (ValueError, binascii.Error):
                continue  # people leave other things there too; sshd says nothing either

    def _of_line(self, line: _Line, certificate: Certificate | None) -> Permission | None:
        try:
            options = line.options()
            if options.cert_authority is not (certificate is not None):
                return None
            if options.principals is not None and certificate is None:
                raise OptionError("principals= of a key that is no CA's")
            if options.sources is not None and not sources.listed(options.sources, self._source):
                self._remark(f"{line.origin}: not from this address")
                return None
        except (OptionError, sources.PatternError) as error:
            self._remark(f"{line.origin}: {error}")
            return None
        if options.expires is not None and self._now > options.expires:
            self._remark(f"{line.origin}: expired")
            return None
        if certificate is None:
            return _permission(options, line.blob, line.origin)
        return self._of_certificate(certificate, options.principals or (self._account.name,), options, line.origin)

    def _of_certificate(
        self, certificate: Certificate, principals: tuple[str, ...], line: KeyOptions | None, origin: str
    ) -> Permission | None:
        try:
            options = certificate.check(principals, self._source, self._now)
            if line is not None:
                options = keyoptions.merge(line, options)
            certificate.verify()
        except (CertificateError, OptionError) as error:
            self._remark(f"{origin}: certificate {certificate.key_id!r}: {error}")
            return None
        ca = f"CA {fingerprint(certificate.ca_blob)}"
        origin = f"{origin}: certificate {certificate.key_id!r} serial {certificate.serial} of {ca}"
        return _permission(options, certificate.key_blob, origin)


def fingerprint(blob: bytes) -> str:
    """A key's SHA-256 as ssh-keygen -l prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def file_of(pattern: str, account: Account) -> str:
    """The file that a pattern with %h, %u, %U and %% names for a user (AuthorizedKeysFile of sshd_config(5))."""
    values = {"h": account.home, "u": account.name, "U": str(account.uid), "%": "%"}
    named = re.sub("%(.)", lambda match: values.get(match[1], match[0]), pattern)
    return os.path.join(account.home, named)


def _split(text: str) -> tuple[str, str]:
    """Options, "" if there are none, and the key of a line. Raises ValueError."""
    if text.startswith(_KEY_TYPES):
        return "", text
    length = keyoptions.length(text)
    if length is None:
        raise ValueError("a quote does not end")
    return text[:length], text[length:]


def _permission(options: KeyOptions, key_blob: bytes, origin: str) -> Permission:
    return Permission(
        origin=origin,
        key_type=certificates.type_of(key_blob),
        fingerprint=fingerprint(key_blob),
        command=options.command,
        environment=options.environment,
        pty=options.pty,
        port_forwarding=options.port_forwarding,
        agent_forwarding=options.agent_forwarding,
        x11_forwarding=options.x11_forwarding,
        permit_open=options.permit_open,
        permit_listen=options.permit_listen,
        touch_required=options.touch_required,
        verify_required=options.verify_required,
    )
