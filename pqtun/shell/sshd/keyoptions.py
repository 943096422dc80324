"""The options in front of a key in an authorized_keys(5) file, read as sshd reads them."""

import dataclasses
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pqtun.shell.endpoints import ANY_HOST, Endpoint
from pqtun.shell.sshd import sources

MAX_ENDPOINTS: Final = 4096  # permitopen and permitlisten, each; sshd's bound
MAX_ENVIRONMENT: Final = 1024  # as sshd

_WORD: Final = re.compile(r"[A-Za-z0-9-]+")
_VARIABLE: Final = re.compile(r"[A-Za-z0-9_]+")
_EXPIRY: Final = re.compile(r"(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?(Z|UTC)?", re.ASCII)
_BLANK: Final = " \t"

# What makes other code run inside a program before its first line: with these a key that may run one command could run
# any, and a login shell that restricts its user would not.
_LOADERS: Final = re.compile(
    "LD_.*|BASH_ENV|BASHOPTS|ENV|GCONV_PATH|GLIBC_TUNABLES|IFS|NODE_OPTIONS|PERL.*|PYTHON.*|RUBYLIB|RUBYOPT|SHELLOPTS"
)


class OptionError(ValueError):
    """Options that the key cannot be honoured with; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOptions:
    """Options of a line, or of a certificate. The defaults are those of a line without options."""

    command: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    pty: bool = True
    port_forwarding: bool = True
    agent_forwarding: bool = True
    x11_forwarding: bool = True
    permit_open: tuple[Endpoint, ...] | None = None
    permit_listen: tuple[Endpoint, ...] | None = None
    touch_required: bool = True
    verify_required: bool = False
    cert_authority: bool = False
    principals: tuple[str, ...] | None = None
    sources: str | None = None  # `from=`, as written
    expires: float | None = None  # seconds since 1970


def merge(line: KeyOptions, certificate: KeyOptions) -> KeyOptions:
    """What both allow, as a certificate of a CA in a ``cert-authority`` line is used. Raises OptionError."""
    if None not in (line.command, certificate.command) and line.command != certificate.command:
        raise OptionError("key and certificate each force another command")
    return dataclasses.replace(
        line,
        command=certificate.command if line.command is None else line.command,
        pty=line.pty and certificate.pty,
        port_forwarding=line.port_forwarding and certificate.port_forwarding,
        agent_forwarding=line.agent_forwarding and certificate.agent_forwarding,
        x11_forwarding=line.x11_forwarding and certificate.x11_forwarding,
        touch_required=line.touch_required or certificate.touch_required,
        verify_required=line.verify_required or certificate.verify_required,
    )


def length(line: str) -> int | None:
    """How many characters the options at the beginning of `line` take, up to the first blank outside of quotes.

    None if a quote does not end.
    """
    quoted = False
    position = 0
    while position < len(line) and (quoted or line[position] not in _BLANK):
        if line.startswith('\\"', position):
            position += 1
        elif line[position] == '"':
            quoted = not quoted
        position += 1
    return None if quoted else position


def parse(text: str) -> KeyOptions:
    """Options with commas between. Raises OptionError, also for unknown ones: they may be meant to restrict."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._flags = dict.fromkeys(("pty", "port_forwarding", "agent_forwarding", "x11_forwarding"), True)
        self._touch_required = True
        self._verify_required = False
        self._cert_authority = False
        self._texts: dict[str, str] = {}
        self._environment: dict[str, str] = {}
        self._endpoints: dict[str, list[Endpoint]] = {}
        self._expires: float | None = None

    def parse(self) -> KeyOptions:
        while True:
            self._option()
            if self._position == len(self._text):
                break
            if self._text[self._position] != ",":
                raise OptionError("unknown key option")
            self._position += 1
        return KeyOptions(
            command=self._texts.get("command"),
            environment=tuple(self._environment.items()),
            **self._flags,
            permit_open=_tuple(self._endpoints.get("permitopen")),
            permit_listen=_tuple(self._endpoints.get("permitlisten")),
            touch_required=self._touch_required,
            verify_required=self._verify_required,
            cert_authority=self._cert_authority,
            principals=tuple(self._texts["principals"].split(",")) if "principals" in self._texts else None,
            sources=self._texts.get("from"),
            expires=self._expires,
        )

    def _option(self) -> None:
        word = _WORD.match(self._text, self._position)
        if word is None:
            raise OptionError("unknown key option")
        self._position = word.end()
        name = word[0].lower()
        if self._text.startswith("=", self._position):
            self._position += 1
            setter = _VALUES.get(name)
            if setter is None:
                raise OptionError(f"unknown key option {name}=")
            setter(self, name, self._quoted())
        else:
            self._flag(name)

    def _flag(self, name: str) -> None:
        positive = name.removeprefix("no-")
        if name == "restrict":
            self._flags = dict.fromkeys(self._flags, False)
        elif name == "cert-authority":
            self._cert_authority = True
        elif positive in _FLAGS:
            self._flags[_FLAGS[positive]] = name == positive
        elif positive == "touch-required":
            self._touch_required = name == positive
        elif positive == "verify-required":
            self._verify_required = name == positive
        elif positive != "user-rc":  # ~/.ssh/rc is never run
            raise OptionError(f"unknown key option {name}")

    def _quoted(self) -> str:
        """A value in quotes, where only ``\\"`` stands for another character."""
        if not self._text.startswith('"', self._position):
            raise OptionError("missing start quote")
        self._position += 1
        value = []
        while self._position < len(self._text) and self._text[self._position] != '"':
            if self._text.startswith('\\"', self._position):
                self._position += 1
            value.append(self._text[self._position])
            self._position += 1
        if self._position == len(self._text):
            raise OptionError("missing end quote")
        self._position += 1
        return "".join(value)

    def _once(self, name: str, value: str) -> None:
        if name in self._texts:
            raise OptionError(f"{name}= stands there twice")
        if name == "from":
            try:
                sources.check(value)
            except sources.PatternError as error:
                raise OptionError(f"from=: {error}") from None
        self._texts[name] = value

    def _variable(self, _name: str, assignment: str) -> None:
        name, equals, value = assignment.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise OptionError("environment= without a name and a value")
        if _LOADERS.fullmatch(name):
            raise OptionError(f"environment= may not set {name}")
        if len(self._environment) >= MAX_ENVIRONMENT:
            raise OptionError("too many variables")
        self._environment.setdefault(name, value)

    def _endpoint(self, name: str, text: str) -> None:
        found = self._endpoints.setdefault(name, [])
        if len(found) >= MAX_ENDPOINTS:
            raise OptionError(f"too many {name}=")
        found.append(endpoint(text, bare_port=name == "permitlisten"))

    def _expiry(self, _name: str, text: str) -> None:
        moment = expiry(text)
        self._expires = moment if self._expires is None else min(self._expires, moment)

    def _tunnel(self, _name: str, _text: str) -> None:
        raise OptionError("tunnel= is for devices that pqtun does not make")


_FLAGS: Final = {
    "pty": "pty",
    "port-forwarding": "port_forwarding",
    "agent-forwarding": "agent_forwarding",
    "x11-forwarding": "x11_forwarding",
}
_VALUES: Final[dict[str, Callable[[_Parser, str, str], None]]] = {
    "command": _Parser._once,
    "principals": _Parser._once,
    "from": _Parser._once,
    "environment": _Parser._variable,
    "permitopen": _Parser._endpoint,
    "permitlisten": _Parser._endpoint,
    "expiry-time": _Parser._expiry,
    "tunnel": _Parser._tunnel,
}


def _tuple(endpoints: list[Endpoint] | None) -> tuple[Endpoint, ...] | None:
    return None if endpoints is None else tuple(endpoints)


def endpoint(text: str, *, bare_port: bool) -> Endpoint:
    """``host:port`` of permitopen, ``[host]:port`` for IPv6, ``*`` for any; of permitlisten also a port alone.

    Raises OptionError.
    """
    if bare_port and ":" not in text:
        text = f"{ANY_HOST}:{text}"
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:/\[]*)):(.*)", text, re.DOTALL)
    if match is None:
        raise OptionError("not host:port")
    host = match[2] if match[1] is None else match[1]
    if len(host) > 1024:  # sshd's NI_MAXHOST
        raise OptionError("too long a host")
    return host, None if match[3] == "*" else _port(match[3])


def _port(text: str) -> int:
    if re.fullmatch(r"\d{1,5}", text, re.ASCII):
        port = int(text)
    else:
        try:
            port = socket.getservbyname(text, "tcp")
        except (OSError, ValueError):
            port = 0
    if not 0 < port <= 0xFFFF:
        raise OptionError("not a port")
    return port


def expiry(text: str) -> float:
    """YYYYMMDD[HHMM[SS]][Z] as seconds since 1970; local time without Z. Raises OptionError."""
    match = _EXPIRY.fullmatch(text)
    if match is None:
        raise OptionError("expiry-time= is not YYYYMMDD[HHMM[SS]][Z]")
    numbers = [int(match[group] or 0) for group in range(1, 7)]
    try:
        return datetime(*numbers, tzinfo=UTC if match[7] else None).timestamp()  # type: ignore[misc,arg-type]
    except (ValueError, OverflowError, OSError):
        raise OptionError("expiry-time= is no date") from None
