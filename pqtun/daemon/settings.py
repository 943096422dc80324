"""What can be configured: one table of options serves the configuration file, the command line and the defaults."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
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
USER: Final = "pqtun"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """Options of both services."""

    engine: str = "auto"
    workers: int | None = None  # one a core
    offload: Offload = ALL
    user: str = USER
    mtu: int | None = None  # what the default route carries
    run: Path = RUN_DIRECTORY


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
    interface: str = "pqtsrv0"
    deliver_to: IPv4Address | None = None
    handshakes_per_second: int = HANDSHAKES_PER_SECOND
    handshakes_per_prefix: int = HANDSHAKES_PER_PREFIX


Settings = TypeVar("Settings", ClientSettings, ServerSettings)
SECTIONS: Final[Mapping[str, type[CommonSettings]]] = {"client": ClientSettings, "server": ServerSettings}


def port(value: object) -> int:
    """A UDP port. Raises ValueError."""
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
    "deliver_to": address,
    "direct_minutes": direct_minutes,
    "engine": engine,
    "failure": parse_rules,
    "handshakes_per_prefix": handshakes,
    "handshakes_per_second": handshakes,
    "incoming": incoming,
    "interface": interface,
    "key_port": port,
    "keys": path,
    "mtu": mtu,
    "offload": offload,
    "port": port,
    "run": path,
    "state": path,
    "user": user,
    "workers": workers,
}


def option_names(section: type[CommonSettings]) -> list[str]:
    """The options of a section, as they are named in the file; a flag has '-' for '_'."""
    return [field.name for field in fields(section)]


def load(section: str, config: Path | None, flags: Mapping[str, object]) -> tuple[CommonSettings, frozenset[str]]:
    """Return a service's settings and the names of the options that somebody set.

    Defaults, overridden by the file, overridden by ``flags`` (None: flag not given). ``config`` None means the default
    file, which may be missing. Raises UserError that names the file and line, or the flag.
    """
    kind = SECTIONS[section]
    values: dict[str, object] = dict(_read_file(section, config))
    for name, value in flags.items():
        if value is not None:
            try:
                values[name] = PARSERS[name](value)
            except ValueError as error:
                raise UserError(f"--{name.replace('_', '-')} {value}: {error}") from None
    return kind(**values), frozenset(values)  # type: ignore[arg-type]


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
            sections = " and ".join(f"[{known}]" for known in SECTIONS)
            raise UserError(f"{where}: unknown name {name!r}; there are {sections}")
        if not isinstance(table, dict):
            raise UserError(f"{where}: {name} is a section; write [{name}]")
        known = option_names(SECTIONS[name])
        for option, value in table.items():
            where = f"{file}, line {_line(text, name, option)}"
            if option not in known:
                raise UserError(f"{where}: unknown option {option!r} in [{name}]; there are {', '.join(known)}")
            try:
                parsed = PARSERS[option](value)
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
