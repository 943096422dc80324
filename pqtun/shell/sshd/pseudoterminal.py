"""Pseudo-terminals: their size, and terminal modes as SSH has them (RFC 4254 section 8, RFC 8160, termios(3))."""

import fcntl
import os
import struct
import termios
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pqtun.shell.sshd.messages import MessageError

MAX_SIDE: Final = 0xFFFF  # struct winsize has 16 bits a field
MAX_MODES: Final = 160  # opcodes below 160 have an argument
MAX_TERM: Final = 128  # characters of TERM

_ISPEED: Final = 128
_OSPEED: Final = 129
_DISABLED: Final = 255  # no character, RFC 4254; _POSIX_VDISABLE of Linux is 0

# linux/asm-generic/termbits.h, which Python's termios leaves out
_IUCLC: Final = 0o1000
_IUTF8: Final = 0o40000
_XCASE: Final = 0o4
_OLCUC: Final = 0o2

_IFLAG: Final = 0
_OFLAG: Final = 1
_LFLAG: Final = 3
_CC: Final = 6

_CHARACTERS: Final = {
    1: termios.VINTR,
    2: termios.VQUIT,
    3: termios.VERASE,
    4: termios.VKILL,
    5: termios.VEOF,
    6: termios.VEOL,
    7: termios.VEOL2,
    8: termios.VSTART,
    9: termios.VSTOP,
    10: termios.VSUSP,
    12: termios.VREPRINT,
    13: termios.VWERASE,
    14: termios.VLNEXT,
    16: termios.VSWTC,
    18: termios.VDISCARD,
}
_FLAGS: Final = {
    30: (_IFLAG, termios.IGNPAR),
    31: (_IFLAG, termios.PARMRK),
    32: (_IFLAG, termios.INPCK),
    33: (_IFLAG, termios.ISTRIP),
    34: (_IFLAG, termios.INLCR),
    35: (_IFLAG, termios.IGNCR),
    36: (_IFLAG, termios.ICRNL),
    37: (_IFLAG, _IUCLC),
    38: (_IFLAG, termios.IXON),
    39: (_IFLAG, termios.IXANY),
    40: (_IFLAG, termios.IXOFF),
    41: (_IFLAG, termios.IMAXBEL),
    42: (_IFLAG, _IUTF8),
    50: (_LFLAG, termios.ISIG),
    51: (_LFLAG, termios.ICANON),
    52: (_LFLAG, _XCASE),
    53: (_LFLAG, termios.ECHO),
    54: (_LFLAG, termios.ECHOE),
    55: (_LFLAG, termios.ECHOK),
    56: (_LFLAG, termios.ECHONL),
    57: (_LFLAG, termios.NOFLSH),
    58: (_LFLAG, termios.TOSTOP),
    59: (_LFLAG, termios.IEXTEN),
    60: (_LFLAG, termios.ECHOCTL),
    61: (_LFLAG, termios.ECHOKE),
    62: (_LFLAG, termios.PENDIN),
    70: (_OFLAG, termios.OPOST),
    71: (_OFLAG, _OLCUC),
    72: (_OFLAG, termios.ONLCR),
    73: (_OFLAG, termios.OCRNL),
    74: (_OFLAG, termios.ONOCR),
    75: (_OFLAG, termios.ONLRET),
}
# CS7, CS8, PARENB and PARODD (90 to 93) are no matter of a pseudo-terminal, which always has 8 bits and no parity.
# Only speeds that Python's termios names: any other is left as it is.
_SPEEDS: Final = {
    int(name[1:]): getattr(termios, name) for name in dir(termios) if name[0] == "B" and name[1:].isdigit()
}


@dataclass(frozen=True, slots=True)
class Size:
    """A window's size, in characters and in pixels (0 where not known)."""

    columns: int
    rows: int
    width: int = 0
    height: int = 0


def resize(fd: int, size: Size) -> None:
    """Set the size of a terminal by either end; its foreground process group gets SIGWINCH. Raises OSError."""
    sides = (min(max(side, 0), MAX_SIDE) for side in (size.rows, size.columns, size.width, size.height))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *sides))


@dataclass(frozen=True, slots=True)
class Request:
    """A pseudo-terminal that a client asks for."""

    term: str
    size: Size
    modes: tuple[tuple[int, int], ...]  # opcodes and arguments

    def to_json(self) -> dict[str, object]:
        """The fields as JSON has them."""
        sides = {name: getattr(self.size, name) for name in ("columns", "rows", "width", "height")}
        return {"term": self.term, "modes": self.modes, **sides}

    @classmethod
    def from_json(cls, values: object) -> "Request":
        """What ``to_json`` gave, through JSON or not. Raises MessageError."""
        try:
            return cls._from_json(values)
        except (TypeError, KeyError, ValueError):
            raise MessageError("no request of a terminal") from None

    @classmethod
    def _from_json(cls, values: object) -> "Request":
        if not isinstance(values, dict) or not isinstance(values["term"], str):
            raise TypeError
        # What it is not made of cannot be in an environment, and would be no name of a terminal.
        term = values["term"]
        if not term.isprintable() or len(term) > MAX_TERM:
            raise ValueError
        if len(values["modes"]) > MAX_MODES:
            raise ValueError
        modes = tuple((_number(opcode), _number(value)) for opcode, value in values["modes"])
        return cls(term, Size(*(_number(values[name]) for name in ("columns", "rows", "width", "height"))), modes)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise ValueError
    return value


def open_pair(request: Request) -> tuple[int, int]:
    """Return master and slave of a new pseudo-terminal of this process' user; devpts gives owner and mode.

    Raises OSError.
    """
    master, slave = os.openpty()
    try:
        set_modes(slave, request.modes)
        resize(master, request.size)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


def set_modes(fd: int, modes: Iterable[tuple[int, int]]) -> None:
    """Set terminal modes as RFC 4254 encodes them; opcodes that Linux has nothing for are passed over.

    Raises OSError if `fd` is no terminal.
    """
    try:
        attributes = termios.tcgetattr(fd)
        for opcode, value in modes:
            _set_mode(attributes, opcode, value)
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as error:
        raise OSError(*error.args) from None


def _set_mode(attributes: list[object], opcode: int, value: int) -> None:
    if opcode in _CHARACTERS:
        characters = attributes[_CC]
        assert isinstance(characters, list)
        characters[_CHARACTERS[opcode]] = bytes([0 if value == _DISABLED else value & 0xFF])
    elif opcode in _FLAGS:
        field, bit = _FLAGS[opcode]
        flags = attributes[field]
        assert isinstance(flags, int)
        attributes[field] = flags | bit if value else flags & ~bit
    elif opcode in (_ISPEED, _OSPEED) and value in _SPEEDS:
        attributes[4 if opcode == _ISPEED else 5] = _SPEEDS[value]
