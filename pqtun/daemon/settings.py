"""What can be configured: one table of options serves the configuration file, the command line and the defaults."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, Final, TypeVar

from pqtun.daemon.policy import RuleError, Rules, parse_rules
from pqtun.protocol.constants import CLIENT_ADDRESS, CLIENT_PORT, KEY_SERVER_PORT, SERVER_ADDRESS, SERVER_PORT
from pqtun.protocol.errors import UserError
from pqtun.pump.limits import HANDSHAKES_PER_PREFIX, HANDSHAKES_PER_SECOND
from pqtun.pump.offload import ALL, Offload
from pqtun.pump.offload import parse as parse_offload

CONFIG_FILE: Final = Path("/etc/pqtun/pqtun.toml")
KEYS_DIRECTORY: Final = Path("/etc/pqtun/keys")
RUN_DIRECTORY: Final = Path("/run/pqtun")
STATE_DIRECTORY: Final = Path("/var/lib/pqtun")
HOST_KEYS_DIRECTORY: Final = Path("/etc/pqtun/ssh")
AUDIT_FILE: Final = Path("/var/log/pqtun/audit.jsonl")
PAM_SERVICE: Final = "pqtun-sshd"
USER: Final = "pqtun"
SERVER_INTERFACE: Final = "pqtsrv0"
SSHD_PORT: Final = 42422

MIN_MTU: Final = 576  # RFC 791: what every IPv4 host must take
MAX_MTU: Final = 4040  # PQConnect reads datagrams of up to 4096 bytes, 56 of them overhead

# RFC 1122 section 3.2.1.3, RFC 1112: this network, the loopback, multicast and what is reserved.
_NOT_FOR_HOSTS: Final = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")))

# TOML as far as it takes to find a line again: the beginning of a table's header, and one part of a dotted key.
_HEADER: Final = re.compile(r"\s*\[{1,2}")
_KEY: Final = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")

_CLIENT_INTERFACE: Final = IPv4Interface(CLIENT_ADDRESS)
_SERVER_INTERFACE: Final = IPv4Interface(SERVER_ADDRESS)

INCOMING: Final = ("block", "allow")
ENGINES: Final = ("auto", "native", "python")
MAX_WORKERS: Final = 64
MAX_DIRECT_MINUTES: Final = 24 * 60
MIN_HANDSHAKES: Final = 4  # sources that nobody expects get a quarter
MAX_HANDSHAKES: Final = 1_000_000  # a second: more than any machine can do
ROOT_LOGINS: Final = ("keys", "forced-commands-only", "no")
MAX_SSH_CONNECTIONS: Final = 10_000  # each is three processes
MAX_SSH_CHANNELS: Final = 1000  # of one connection; each may hold three descriptors
MAX_KEEPALIVE: Final = 3600  # seconds
MAX_PATTERNS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Options of all services."""

    user: str = USER
    run: Path = RUN_DIRECTORY


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings(ServiceSettings):
    """Options of both ends of tunnels."""

    engine: str = "auto"
    workers: int | None = None  # one a core
    offload: Offload = ALL
    mtu: int | None = None  # what the default route carries


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings(CommonSettings):
    """Options of ``pqtun client``."""

    port: int = CLIENT_PORT
    address: IPv4Interface = _CLIENT_INTERFACE
    interface: str = "pqtcli0"
    state: Path = STATE_DIRECTORY
    incoming: str = "block"
    direct_minutes: int = 10
    failure: Rules = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(CommonSettings):
    """Options of ``pqtun server``."""

    keys: Path = KEYS_DIRECTORY
    port: int = SERVER_PORT
    key_port: int = KEY_SERVER_PORT
    address: IPv4Interface = _SERVER_INTERFACE
    interface: str = SERVER_INTERFACE
    deliver_to: IPv4Address | None = None
    handshakes_per_second: int = HANDSHAKES_PER_SECOND
    handshakes_per_prefix: int = HANDSHAKES_PER_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class SshdSettings(ServiceSettings):
    """Options of ``pqtun sshd``."""

    port: int = SSHD_PORT
    interface: str = SERVER_INTERFACE  # what [server] says, where this section does not
    address: IPv4Interface | None = None  # those of the interface, and the server's deliver_to
    host_keys: Path = HOST_KEYS_DIRECTORY
    authorized_keys: tuple[str, ...] = (".ssh/authorized_keys",)
    trusted_user_ca_keys: Path | None = None
    revoked_keys: Path | None = None
    permit_root_login: str = "keys"
    allow_users: tuple[str, ...] = ()  # everybody
    deny_users: tuple[str, ...] = ()
    pam: str | None = PAM_SERVICE
    tcp_forwarding: bool = True
    stream_local_forwarding: bool = True
    agent_forwarding: bool = True
    x11_forwarding: bool = True
    max_startups: int = 100
    max_startups_source: int = 10
    max_connections_user: int = 64
    max_channels: int = 256
    keepalive: int = 30
    audit: Path | None = AUDIT_FILE


Settings = TypeVar("Settings", ClientSettings, ServerSettings)
SECTIONS: Final[Mapping[str, type[ServiceSettings]]] = {
    "client": ClientSettings,
    "server": ServerSettings,
    "sshd": SshdSettings,
}


def port(value: object) -> int:
    """A UDP or TCP port. Raises ValueError."""
    number = _integer(value)
    if not 1 <= number <= 0xFFFF:
        raise ValueError("a port is a number from 1 to 65535")
    return number


def subnet(value: object) -> IPv4Interface:
    """An own address with its prefix length, such as 10.42.0.1/16. Raises ValueError."""
    text = str(value)
    try:
        interface = IPv4Interface(text)
    except ValueError:
        raise ValueError("write an IPv4 address with a prefix length, such as 10.43.0.1/16") from None
    network = interface.network
    if "/" not in text or not 8 <= network.prefixlen <= 29:
        raise ValueError("the prefix length is a number from 8 to 29, such as in 10.43.0.1/16")
    if any(network.overlaps(other) for other in _NOT_FOR_HOSTS):
        raise ValueError("choose a private network, such as 10.43.0.1/16")
    if interface.ip in (network.network_address, network.broadcast_address):
        raise ValueError(f"{interface.ip} is the network's first or last address; take one between")
    return interface


def address(value: object) -> IPv4Address:
    """An IPv4 address. Raises ValueError."""
    try:
        return IPv4Address(str(value))
    except ValueError:
        raise ValueError("write an IPv4 address, such as 192.0.2.7") from None


def mtu(value: object) -> int | None:
    """Bytes of the largest inner packet; None for ``auto``. Raises ValueError."""
    return _auto_or_number(value, MIN_MTU, MAX_MTU)


def engine(value: object) -> str:
    """An engine's name. Raises ValueError."""
    if value not in ENGINES:
        raise ValueError(f"choose one of {', '.join(ENGINES)}")
    return str(value)


def workers(value: object) -> int | None:
    """Threads of the native engine; None for ``auto``. Raises ValueError."""
    return _auto_or_number(value, 1, MAX_WORKERS)


def direct_minutes(value: object) -> int:
    """For how long a server that failed is reached directly. Raises ValueError."""
    return _number(value, 1, MAX_DIRECT_MINUTES)


def handshakes(value: object) -> int:
    """How many handshakes a second. Raises ValueError."""
    return _number(value, MIN_HANDSHAKES, MAX_HANDSHAKES)


def offload(value: object) -> Offload:
    """What the engine may leave to the kernel: a list, or a text with commas. Raises ValueError."""
    words = value if isinstance(value, list) else str(value).split(",")
    return parse_offload([str(word).strip() for word in words])


def incoming(value: object) -> str:
    """Whether servers may begin connections to this host. Raises ValueError."""
    if value not in INCOMING:
        raise ValueError(f"choose one of {', '.join(INCOMING)}")
    return str(value)


def interface(value: object) -> str:
    """A network interface name (dev_valid_name in the kernel: 1 to 15 bytes). Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", value) or value in (".", ".."):
        raise ValueError("an interface name has 1 to 15 letters, digits, '_', '.' and '-'")
    return value


def user(value: object) -> str:
    """A user name; whether it exists is checked at start. Raises ValueError."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", value):
        raise ValueError("write the name of a system user, such as pqtun")
    return value


def path(value: object) -> Path:
    """A file or directory. Raises ValueError."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("write a path")
    return Path(value).absolute()


def own_address(value: object) -> IPv4Interface | None:
    """An own address with its prefix length; None for ``auto``. Raises ValueError."""
    return None if value == "auto" else subnet(value)


def root_login(value: object) -> str:
    """How root may log in. Raises ValueError."""
    if value not in ROOT_LOGINS:
        raise ValueError(f"choose one of {', '.join(ROOT_LOGINS)}")
    return str(value)


def switch(value: object) -> bool:
    """Whether something is allowed: a boolean of TOML's, or yes or no. Raises ValueError."""
    if isinstance(value, bool):
        return value
    if value not in ("yes", "no"):
        raise ValueError("write true or false (as a flag: yes or no)")
    return value == "yes"


def patterns(value: object) -> tuple[str, ...]:
    """Words such as user names with wildcards: a list, or a text with commas. Raises ValueError."""
    words = value if isinstance(value, list) else str(value).split(",") if value else []
    if len(words) > MAX_PATTERNS or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError('write a list of texts, such as ["alice", "team-*"]')
    if any(character.isspace() or character == "\0" for word in words for character in word.strip()):
        raise ValueError("there are no spaces in one of them")
    return tuple(word.strip() for word in words)


def key_files(value: object) -> tuple[str, ...]:
    """Files of a user's public keys, below the home directory unless absolute. Raises ValueError."""
    words = patterns(value)
    if not words:
        raise ValueError("write at least one file, such as .ssh/authorized_keys")
    return words


def path_or_none(value: object) -> Path | None:
    """A file, or None for ``none``. Raises ValueError."""
    return None if value == "none" else path(value)


def pam_service(value: object) -> str | None:
    """The name of a file in /etc/pam.d, or None for ``none``. Raises ValueError."""
    if value == "none":
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("write the name of a file in /etc/pam.d, or none")
    return value


def ssh_connections(value: object) -> int:
    """How many SSH connections. Raises ValueError."""
    return _number(value, 1, MAX_SSH_CONNECTIONS)


def ssh_channels(value: object) -> int:
    """How many channels in one SSH connection. Raises ValueError."""
    return _number(value, 1, MAX_SSH_CHANNELS)


def keepalive(value: object) -> int:
    """Seconds of silence until a client is asked whether it is there; 0: never. Raises ValueError."""
    return _number(value, 0, MAX_KEEPALIVE)


def _auto_or_number(value: object, least: int, most: int) -> int | None:
    try:
        return None if value == "auto" else _number(value, least, most)
    except ValueError:
        raise ValueError(f"write auto, or a number from {least} to {most}") from None


def _number(value: object, least: int, most: int) -> int:
    number = _integer(value)
    if not least <= number <= most:
        raise ValueError(f"write a number from {least} to {most}")
    return number


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("write a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError("write a whole number") from None


PARSERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "address": subnet,
    "agent_forwarding": switch,
    "allow_users": patterns,
    "audit": path_or_none,
    "authorized_keys": key_files,
    "deliver_to": address,
    "deny_users": patterns,
    "direct_minutes": direct_minutes,
    "engine": engine,
    "failure": parse_rules,
    "handshakes_per_prefix": handshakes,
    "handshakes_per_second": handshakes,
    "host_keys": path,
    "incoming": incoming,
    "interface": interface,
    "keepalive": keepalive,
    "key_port": port,
    "keys": path,
    "max_channels": ssh_channels,
    "max_connections_user": ssh_connections,
    "max_startups": ssh_connections,
    "max_startups_source": ssh_connections,
    "mtu": mtu,
    "offload": offload,
    "pam": pam_service,
    "permit_root_login": root_login,
    "port": port,
    "revoked_keys": path_or_none,
    "run": path,
    "state": path,
    "stream_local_forwarding": switch,
    "tcp_forwarding": switch,
    "trusted_user_ca_keys": path_or_none,
    "user": user,
    "workers": workers,
    "x11_forwarding": switch,
}
# Where an option of a section is not what others call so.
_OWN_PARSERS: Final[Mapping[tuple[str, str], Callable[[object], Any]]] = {("sshd", "address"): own_address}


def parse(section: str, option: str, value: object) -> Any:
    """Return the value of a section's option. Raises ValueError."""
    return _OWN_PARSERS.get((section, option), PARSERS[option])(value)


def option_names(section: type[ServiceSettings]) -> list[str]:
    """The options of a section, as they are named in the file; a flag has '-' for '_'."""
    return [field.name for field in fields(section)]


def load(section: str, config: Path | None, flags: Mapping[str, object]) -> tuple[ServiceSettings, frozenset[str]]:
    """Return a service's settings and the names of the options that somebody set.

    Defaults, overridden by the file, overridden by ``flags`` (None: flag not given). ``config`` None means the default
    file, which may be missing. Raises UserError that names the file and line, or the flag.
    """
    kind = SECTIONS[section]
    values: dict[str, object] = dict(_read_file(section, config))
    for name, value in flags.items():
        if value is not None:
            try:
                values[name] = parse(section, name, value)
            except ValueError as error:
                raise UserError(f"--{name.replace('_', '-')} {value}: {error}") from None
    return kind(**values), frozenset(values)  # type: ignore[arg-type]


def load_sshd(config: Path | None, flags: Mapping[str, object]) -> tuple[SshdSettings, IPv4Address | None]:
    """Return the settings of ``pqtun sshd``, and the server's ``deliver_to``.

    The interface is the server's unless something else is said. Raises UserError as ``load`` does.
    """
    loaded, chosen = load("sshd", config, flags)
    server, _ = load("server", config, {})
    assert isinstance(loaded, SshdSettings)
    assert isinstance(server, ServerSettings)
    if "interface" not in chosen:
        loaded = replace(loaded, interface=server.interface)
    return loaded, server.deliver_to


def _read_file(section: str, config: Path | None) -> dict[str, object]:
    file = config or CONFIG_FILE
    try:
        text = file.read_text()
    except FileNotFoundError:
        if config is None:
            return {}
        raise UserError(f"{file}: no such file; name an existing one with --config or leave the option out") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: {_lowered(str(error))}") from None
    values: dict[str, object] = {}
    for name, table in document.items():
        where = f"{file}, line {_line(text, name)}"
        if name not in SECTIONS:
            sections = ", ".join(f"[{known}]" for known in SECTIONS)
            raise UserError(f"{where}: unknown name {name!r}; there are {sections}")
        if not isinstance(table, dict):
            raise UserError(f"{where}: {name} is a section; write [{name}]")
        known = option_names(SECTIONS[name])
        for option, value in table.items():
            where = f"{file}, line {_line(text, name, option)}"
            if option not in known:
                raise UserError(f"{where}: unknown option {option!r} in [{name}]; there are {', '.join(known)}")
            try:
                parsed = parse(name, option, value)
            except RuleError as error:
                line = _line(text, name, option, error.pattern)
                raise UserError(f"{file}, line {line}: {error.pattern!r}: {error}") from None
            except ValueError as error:
                raise UserError(f"{where}: {option} = {value}: {error}") from None
            if name == section:
                values[option] = parsed
    return values


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _line(text: str, *path: str) -> int:
    """The line on which a section, an option or a table's key stands, or what is around it; tomllib keeps none."""
    best, depth = 1, 0
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            place = table = _keys(line[header.end() :], "]")
        else:
            place = (*table, *keys) if (keys := _keys(line, "=")) else ()
        if place[: len(path)] == path:
            return number
        if len(place) > depth and place == path[: len(place)]:
            best, depth = number, len(place)
    return best


def _keys(text: str, end: str) -> tuple[str, ...]:
    """The dotted key that a text begins with; nothing if ``end`` does not follow it."""
    keys: list[str] = []
    while (key := _KEY.match(text)) is not None:
        keys.append(key[1] or key[2] or key[3] or "")
        text = text[key.end() :]
        if not text.startswith("."):
            return tuple(keys) if text.startswith(end) else ()
        text = text[1:]
    return ()
