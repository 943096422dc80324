"""What holds for one connection: the command line, then ~/.ssh/config, then /etc/ssh/ssh_config, then what we say."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client.configfile import SYSTEM_DIRECTORY, Reader
from pqtun.shell.client.forwardspec import Forward
from pqtun.shell.client.options import Options, split_hop

PORT: Final = 42422  # where pqtun sshd listens inside tunnels
DIRECT_PORT: Final = 22
_UNSAFE_IN_HOST: Final = "'`\"$\\;&<>|(){}, "  # as OpenSSH 9.6
_UNSAFE_IN_USER: Final = "'`\";&<>|(){}"
_MAX_HOST: Final = 1024
_TOKEN: Final = re.compile(r"%(.?)", re.DOTALL)
_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class Config:
    """The settings of one connection, expanded; the names are those of ssh_config(5).

    Lists of algorithms are as written (with + - ^); times are in seconds, None for none. Paths have no ~ and no
    tokens left, except where said.
    """

    original: str  # the host as typed
    hostname: str
    user: str
    local_user: str
    port: int
    tokens: Mapping[str, str] = field(repr=False)  # for commands that are expanded when they are run
    addressfamily: str = "any"
    batchmode: bool = False
    bindaddress: str | None = None
    bindinterface: str | None = None
    certificatefile: tuple[str, ...] = ()
    ciphers: str | None = None
    compression: bool = False
    connectionattempts: int = 1
    connecttimeout: int | None = None
    controlmaster: str = "no"
    controlpath: str | None = None
    controlpersist: int | None = None
    enableescapecommandline: bool = True
    escapechar: bytes | None = b"~"
    exitonforwardfailure: bool = False
    forkafterauthentication: bool = False
    forwardagent: str = "no"  # yes, no, or the path of a socket
    forwards: tuple[Forward, ...] = ()
    forwardx11: bool = False
    forwardx11timeout: int | None = 1200
    forwardx11trusted: bool = False
    gatewayports: bool = False
    globalknownhostsfile: tuple[str, ...] = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
    hashknownhosts: bool = False
    hostkeyalgorithms: str | None = None
    hostkeyalias: str | None = None
    identitiesonly: bool = False
    identityagent: str | None = None  # None: $SSH_AUTH_SOCK; "none": no agent
    identityfile: tuple[str, ...] = ()  # empty: the usual ones
    kexalgorithms: str | None = None
    localcommand: str | None = None
    loglevel: str = "INFO"
    macs: str | None = None
    nohostauthenticationforlocalhost: bool = False
    permitlocalcommand: bool = False
    permitremoteopen: tuple[str, ...] = ("any",)
    proxycommand: str | None = None  # with tokens
    proxyjump: str | None = None
    pubkeyacceptedalgorithms: str | None = None
    pubkeyauthentication: str = "yes"
    remotecommand: str | None = None
    requesttty: str = "auto"
    sendenv: tuple[str, ...] = ("LANG", "LC_*")
    serveralivecountmax: int = 3
    serveraliveinterval: int | None = None
    sessiontype: str = "default"
    setenv: tuple[tuple[str, str], ...] = ()
    stdinnull: bool = False
    streamlocalbindmask: str = "0177"
    streamlocalbindunlink: bool = False
    stricthostkeychecking: str = "ask"
    tcpkeepalive: bool = True
    userknownhostsfile: tuple[str, ...] = ()
    xauthlocation: str = "/usr/bin/xauth"
    direct: bool = False  # --direct

    @property
    def name(self) -> str:
        """The host as messages call it."""
        return self.hostname

    def expand(self, text: str) -> str:
        """Put the values for %h, %p, %r … into a command. Raises UserError for a token that ssh does not know."""
        return expand(text, self.tokens)

    def verbosity(self) -> int:
        """How often -v was given, or LogLevel says so: 0 to 3."""
        level = self.loglevel
        return {"DEBUG": 1, "DEBUG1": 1, "DEBUG2": 2, "DEBUG3": 3}.get(level, 0)


def expand(text: str, tokens: Mapping[str, str]) -> str:
    """Put values for the tokens of ssh_config(5). Raises UserError for an unknown one."""

    def value(match: re.Match[str]) -> str:
        letter = match.group(1)
        if letter == "%":
            return "%"
        if letter not in tokens:
            raise UserError(f"unknown key %{letter} in {text!r}")
        return tokens[letter]

    return _TOKEN.sub(value, text)


def resolve(options: Options) -> Config:
    """Return the settings for the destination of a command line. Raises UserError."""
    # Both may come from somebody else (a link, a submodule) and end up in a shell's command by %h and %r.
    if _is_unsafe(options.host, _UNSAFE_IN_HOST) or len(options.host) > _MAX_HOST:
        raise UserError("hostname contains invalid characters")
    if _is_unsafe(options.setting("user") or "", _UNSAFE_IN_USER):
        raise UserError("remote username contains invalid characters")
    local_user = _local_user()
    reader = _read(options, local_user)
    if reader.wants_final:
        reader = _read(options, local_user, first=reader)
    return _config(options, reader.values, _hostname(reader), local_user)


def _is_unsafe(name: str, characters: str) -> bool:
    return name.startswith("-") or any(letter in characters or not letter.isprintable() for letter in name)


def _local_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise UserError(f"No user exists for uid {os.getuid()}") from None


def _read(options: Options, local_user: str, first: Reader | None = None) -> Reader:
    def expanded(reader: Reader, command: str) -> str:
        port = int(reader.values.get("port", _default_port(options)))
        user = str(reader.values.get("user", local_user))
        return expand(command, _tokens(options.host, reader.hostname, port, user, local_user, reader.values))

    command = " ".join(options.command)
    if first is None:
        reader = Reader(options.host, local_user, expanded, command=command)
        for keyword, value in options.settings:
            reader.setting(keyword, value)
    else:
        reader = Reader(options.host, local_user, expanded, command=command, final=_hostname(first))
        reader.values = {
            name: list(value) if isinstance(value, list) else value for name, value in first.values.items()
        }
    if options.config_file == "none":
        return reader
    if options.config_file is not None:
        reader.file(Path(options.config_file), user=True, missing=False)
        return reader
    home = Path(os.path.expanduser("~"))
    reader.file(home / ".ssh" / "config", user=True, check=True)
    reader.file(SYSTEM_DIRECTORY / "ssh_config", user=False)
    return reader


def _hostname(reader: Reader) -> str:
    name = reader.values.get("hostname")
    return reader.original if name is None else expand(name, {"h": reader.original})


def _default_port(options: Options) -> int:
    return DIRECT_PORT if options.direct else PORT


def _tokens(
    original: str, hostname: str, port: int, user: str, local_user: str, values: Mapping[str, Any]
) -> dict[str, str]:
    name = socket.gethostname()
    jump = split_hop((_jump(values) or "").rpartition(",")[2].removeprefix("ssh://"))[1]
    connection = hashlib.sha1(f"{name}{hostname}{port}{user}{jump}".encode(), usedforsecurity=False).hexdigest()
    return {
        "C": connection,
        "L": name.split(".")[0],
        "d": os.path.expanduser("~"),
        "h": hostname,
        "i": str(os.getuid()),
        "j": jump,
        "k": str(values.get("hostkeyalias") or original),
        "l": name,
        "n": original,
        "p": str(port),
        "r": user,
        "u": local_user,
    }


def _jump(values: Mapping[str, Any]) -> str | None:
    jump = values.get("proxyjump")
    return None if jump is None or jump.lower() == "none" else str(jump)


def _config(options: Options, given: Mapping[str, Any], hostname: str, local_user: str) -> Config:
    values = dict(given)
    if options.stdio_forward is not None:
        values.setdefault("clearallforwardings", True)
        values.setdefault("exitonforwardfailure", True)
    port = values.pop("port", _default_port(options))
    user = values.pop("user", local_user)
    tokens = _tokens(options.host, hostname, port, user, local_user, values)

    def path(text: str) -> str:
        return os.path.expanduser(_with_environment(expand(text, tokens)))

    jump, command = _jump(values), values.get("proxycommand")
    _settle_proxies(values, list(given), jump, command)
    for name in ("identityfile", "certificatefile"):
        files = dict.fromkeys(values.get(name, ()))
        values[name] = tuple(path(text) for text in files if text.lower() != "none")
    known = values.get("userknownhostsfile", ("~/.ssh/known_hosts", "~/.ssh/known_hosts2"))
    values["userknownhostsfile"] = tuple(map(path, known))
    if "sendenv" in values:
        values["sendenv"] = tuple(name for names in values["sendenv"] for name in names)
    values["controlpath"] = _unless_none(values.get("controlpath"), path)
    agent = values.get("identityagent")
    values["identityagent"] = _agent(agent, path)
    forward_agent = str(values.get("forwardagent", "no"))
    flags = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
    values["forwardagent"] = flags.get(forward_agent.lower()) or _agent(forward_agent, path) or "no"
    for name in ("remotecommand", "localcommand"):
        if values.get(name, "none").lower() == "none":
            values[name] = None
    if values.get("remotecommand") is not None:
        values["remotecommand"] = expand(values["remotecommand"], tokens)
    forwards: list[Forward] = []
    if not values.pop("clearallforwardings", False):
        for name in ("localforward", "remoteforward", "dynamicforward"):
            forwards += (_expanded(forward, path) for forward in values.get(name, ()))
    if values.get("serveraliveinterval") == 0:
        values["serveraliveinterval"] = None
    known_fields = Config.__dataclass_fields__.keys()
    kept = {name: value for name, value in values.items() if name in known_fields}
    return Config(
        **{
            **kept,
            "original": options.host,
            "hostname": hostname,
            "user": user,
            "local_user": local_user,
            "port": port,
            "tokens": tokens,
            "forwards": tuple(forwards),
            "direct": options.direct,
        }
    )


def _settle_proxies(values: dict[str, Any], order: Sequence[str], jump: str | None, command: str | None) -> None:
    """Of ProxyJump and ProxyCommand the one that was said first holds."""
    if "proxyjump" in order and "proxycommand" in order:
        if order.index("proxyjump") < order.index("proxycommand"):
            command = None
        else:
            jump = None
    values["proxyjump"] = jump
    values["proxycommand"] = None if command is None or command.lower() == "none" else command


def _with_environment(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UserError(f"env var ${{{name}}} has no value")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def _unless_none(text: str | None, path: Any) -> str | None:
    return None if text is None or text.lower() == "none" else str(path(text))


def _agent(text: str | None, path: Any) -> str | None:
    """Return the path of an agent's socket as IdentityAgent and ForwardAgent name it."""
    if text is None or text == "SSH_AUTH_SOCK":
        return None
    if text.lower() == "none":
        return "none"
    if text.startswith("$") and not text.startswith("${"):
        return os.environ.get(text[1:], "none")
    return str(path(text))


def _expanded(forward: Forward, path: Any) -> Forward:
    return replace(
        forward,
        listen_path=None if forward.listen_path is None else path(forward.listen_path),
        connect_path=None if forward.connect_path is None else path(forward.connect_path),
    )
