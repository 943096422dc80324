"""The packets that programs sharing one SSH connection exchange on its control socket. Pure.

Source: OpenSSH's PROTOCOL.mux (version 4 of the protocol), and, where that is silent, what OpenSSH 9.2 does: a bool
is sent as a uint32, and descriptors follow their request one by one, each beside one zero byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from struct import Struct
from typing import Any, ClassVar, Final, TypeAlias

from pqtun.protocol.errors import MessageError

VERSION: Final = 4
MAX_PACKET: Final = 256 << 10  # bytes after the length; OpenSSH's own bound
MAX_VARIABLES: Final = 1024  # environment variables in one request
MAX_EXTENSIONS: Final = 64
MAX_DESCRIPTORS: Final = 3  # what one request may bring: stdin, stdout, stderr

# A port of this number says that the host beside it is the path of a Unix-domain socket.
PATH_PORT: Final = 0xFFFFFFFE
NO_ESCAPE: Final = 0xFFFFFFFF
LOCAL, REMOTE, DYNAMIC = 1, 2, 3  # kinds of forwards

_UINT = Struct(">I")
_MAX_PORT: Final = 65535


@dataclass(frozen=True)
class Hello:
    """First packet of both sides."""

    TYPE: ClassVar = 0x00000001
    version: int
    extensions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class NewSession:
    """Run ``command`` (empty: a shell) on the three descriptors that follow."""

    TYPE: ClassVar = 0x10000002
    request: int
    reserved: str
    tty: bool
    x11: bool
    agent: bool
    subsystem: bool
    escape: int  # a byte, or NO_ESCAPE
    terminal: str  # $TERM
    command: str
    environment: tuple[str, ...] = ()  # NAME=value


@dataclass(frozen=True)
class AliveCheck:
    """Is the master there, and what is its process id?"""

    TYPE: ClassVar = 0x10000004
    request: int


@dataclass(frozen=True)
class Terminate:
    """The master is to end at once, and the connection with it."""

    TYPE: ClassVar = 0x10000005
    request: int


@dataclass(frozen=True)
class Forward:
    """What is listened on and where it leads; a port of PATH_PORT makes its host a path, "" is the default host."""

    kind: int
    listen_host: str
    listen_port: int
    connect_host: str
    connect_port: int


@dataclass(frozen=True)
class OpenForward:
    """Begin to forward."""

    TYPE: ClassVar = 0x10000006
    request: int
    forward: Forward


@dataclass(frozen=True)
class CloseForward:
    """End a forward."""

    TYPE: ClassVar = 0x10000007
    request: int
    forward: Forward


@dataclass(frozen=True)
class StdioForward:
    """Join the two descriptors that follow to ``host``:``port`` as the server reaches it (``ssh -W``)."""

    TYPE: ClassVar = 0x10000008
    request: int
    reserved: str
    host: str
    port: int


@dataclass(frozen=True)
class StopListening:
    """The control socket is to go; sessions stay."""

    TYPE: ClassVar = 0x10000009
    request: int


@dataclass(frozen=True)
class Ok:
    """Done."""

    TYPE: ClassVar = 0x80000001
    request: int


@dataclass(frozen=True)
class PermissionDenied:
    """The person at the master's side said no."""

    TYPE: ClassVar = 0x80000002
    request: int
    reason: str


@dataclass(frozen=True)
class Failure:
    """It did not work."""

    TYPE: ClassVar = 0x80000003
    request: int
    reason: str


@dataclass(frozen=True)
class ExitMessage:
    """A session ended; the master closes the socket after this."""

    TYPE: ClassVar = 0x80000004
    session: int
    status: int


@dataclass(frozen=True)
class Alive:
    """Answer to AliveCheck."""

    TYPE: ClassVar = 0x80000005
    request: int
    pid: int


@dataclass(frozen=True)
class SessionOpened:
    """Answer to NewSession and StdioForward."""

    TYPE: ClassVar = 0x80000006
    request: int
    session: int


@dataclass(frozen=True)
class RemotePort:
    """Answer to OpenForward of a remote port 0."""

    TYPE: ClassVar = 0x80000007
    request: int
    port: int


@dataclass(frozen=True)
class TtyAllocFail:
    """The server gave no terminal, so the passenger's may leave raw mode."""

    TYPE: ClassVar = 0x80000008
    session: int


@dataclass(frozen=True)
class Unknown:
    """A request that this version does not know (proxy mode among them), to be answered with Failure."""

    type: int
    request: int


Message: TypeAlias = (
    Hello
    | NewSession
    | AliveCheck
    | Terminate
    | OpenForward
    | CloseForward
    | StdioForward
    | StopListening
    | Ok
    | PermissionDenied
    | Failure
    | ExitMessage
    | Alive
    | SessionOpened
    | RemotePort
    | TtyAllocFail
)
_KINDS: Final[tuple[type[Any], ...]] = Message.__args__
_BY_TYPE: Final = {kind.TYPE: kind for kind in _KINDS}
_DESCRIPTORS: Final = {NewSession: 3, StdioForward: 2}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def uint(self) -> int:
        if len(self._data) - self._at < _UINT.size:
            raise MessageError("truncated")
        (value,) = _UINT.unpack_from(self._data, self._at)
        self._at += _UINT.size
        return int(value)

    def string(self) -> str:
        size = self.uint()
        if size > len(self._data) - self._at:
            raise MessageError("truncated")
        value = self._data[self._at : self._at + size]
        self._at += size
        if b"\0" in value:  # paths and variables end there for the kernel: what was checked would not be used
            raise MessageError("zero_byte")
        return value.decode("utf-8", "surrogateescape")

    @property
    def more(self) -> bool:
        return self._at < len(self._data)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _UINT.pack(len(data)) + data


def _put(value: object) -> bytes:
    if isinstance(value, int):  # a bool too
        return _UINT.pack(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Forward):
        return b"".join(_put(getattr(value, field.name)) for field in fields(value))
    assert isinstance(value, tuple)
    return b"".join(map(_put, value))


def encode(message: Message) -> bytes:
    """Return the packet with its length; raises MessageError if it is longer than a master takes."""
    body = _UINT.pack(message.TYPE) + b"".join(_put(getattr(message, field.name)) for field in fields(message))
    if len(body) > MAX_PACKET:
        raise MessageError("too_long")
    return _UINT.pack(len(body)) + body


def _port(value: int) -> int:
    if value > _MAX_PORT and value != PATH_PORT:
        raise MessageError("port")
    return value


def _forward(reader: _Reader) -> Forward:
    kind = reader.uint()
    if kind not in (LOCAL, REMOTE, DYNAMIC):
        raise MessageError("forward_kind")
    listen_host, listen_port = reader.string(), _port(reader.uint())
    return Forward(kind, listen_host, listen_port, reader.string(), _port(reader.uint()))


def _strings(reader: _Reader, most: int) -> tuple[str, ...]:
    found: list[str] = []
    while reader.more:
        if len(found) == most:
            raise MessageError("too_many")
        found.append(reader.string())
    return tuple(found)


def _field(reader: _Reader, kind: object) -> object:
    if kind is int:
        return reader.uint()
    if kind is bool:
        return bool(reader.uint())
    if kind is str:
        return reader.string()
    if kind is Forward:
        return _forward(reader)
    return _strings(reader, MAX_VARIABLES)


def decode(body: bytes) -> Message | Unknown:
    """Read a packet without its length. Raises MessageError for anything else than a whole, known-shaped packet."""
    reader = _Reader(body)
    number = reader.uint()
    kind = _BY_TYPE.get(number)
    if kind is None:
        return Unknown(number, reader.uint())
    if kind is Hello:
        version, texts = reader.uint(), _strings(reader, 2 * MAX_EXTENSIONS)
        if len(texts) % 2:
            raise MessageError("truncated")
        return Hello(version, tuple(zip(texts[::2], texts[1::2], strict=True)))
    message: Message = kind(*[_field(reader, field.type) for field in fields(kind)])
    if reader.more:
        raise MessageError("over_long")
    if isinstance(message, StdioForward):
        _port(message.port)
    return message


class Decoder:
    """Takes the control socket's stream as it comes and gives messages, each with the descriptors that belong to it.

    After a MessageError nothing more can be read. Descriptors that no message took are in ``unclaimed``, for the owner
    to close.
    """

    def __init__(self) -> None:
        self.unclaimed: list[int] = []
        self._buffer = bytearray()
        self._pending: Message | None = None  # lacks descriptors yet

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> list[tuple[Message | Unknown, list[int]]]:
        """Take what one recvmsg(2) returned; raises MessageError."""
        self._buffer += data
        self.unclaimed += descriptors
        if len(self.unclaimed) > MAX_DESCRIPTORS:
            raise MessageError("descriptors")
        found: list[tuple[Message | Unknown, list[int]]] = []
        while (step := self._step()) is not None:
            found.append(step)
        return found

    def _step(self) -> tuple[Message | Unknown, list[int]] | None:
        if self._pending is None:
            if len(self._buffer) < _UINT.size:
                return None
            (size,) = _UINT.unpack_from(self._buffer)
            if size > MAX_PACKET:
                raise MessageError("too_long")
            end = _UINT.size + size
            if len(self._buffer) < end:
                return None
            message = decode(bytes(self._buffer[_UINT.size : end]))
            del self._buffer[:end]
            if type(message) not in _DESCRIPTORS:
                return message, []
            assert not isinstance(message, Unknown)
            self._pending = message
        wanted = _DESCRIPTORS[type(self._pending)]
        if len(self._buffer) < wanted:
            return None
        # The kernel ends a read behind a byte that carries descriptors, so with the last byte all have come.
        if any(self._buffer[:wanted]) or len(self.unclaimed) != wanted:
            raise MessageError("descriptors")
        del self._buffer[:wanted]
        message, self._pending = self._pending, None
        taken, self.unclaimed = self.unclaimed, []
        return message, taken
