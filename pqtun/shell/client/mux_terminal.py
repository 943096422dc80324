"""What a passed terminal is like, for the server's to be the same: its size and modes (RFC 4254, 8)."""

import fcntl
import struct
import termios
from typing import Final

# RFC 4254, 8: the numbers of modes, by their name in termios(3).
_CHARACTERS: Final = {
    "VINTR": 1,
    "VQUIT": 2,
    "VERASE": 3,
    "VKILL": 4,
    "VEOF": 5,
    "VEOL": 6,
    "VEOL2": 7,
    "VSTART": 8,
    "VSTOP": 9,
    "VSUSP": 10,
    "VREPRINT": 12,
    "VWERASE": 13,
    "VLNEXT": 14,
    "VDISCARD": 18,
}
_INPUT: Final = {
    "IGNPAR": 30,
    "PARMRK": 31,
    "INPCK": 32,
    "ISTRIP": 33,
    "INLCR": 34,
    "IGNCR": 35,
    "ICRNL": 36,
    "IXON": 38,
    "IXANY": 39,
    "IXOFF": 40,
    "IMAXBEL": 41,
}
_LOCAL: Final = {
    "ISIG": 50,
    "ICANON": 51,
    "ECHO": 53,
    "ECHOE": 54,
    "ECHOK": 55,
    "ECHONL": 56,
    "NOFLSH": 57,
    "TOSTOP": 58,
    "IEXTEN": 59,
    "ECHOCTL": 60,
    "ECHOKE": 61,
    "PENDIN": 62,
}
_OUTPUT: Final = {"OPOST": 70, "ONLCR": 72, "OCRNL": 73, "ONOCR": 74, "ONLRET": 75}
_CONTROL: Final = {"CS7": 90, "CS8": 91, "PARENB": 92, "PARODD": 93}
_IUTF8: Final = (0x4000, 42)  # linux/termbits.h, RFC 8160
_SPEEDS: Final = (128, 129)  # input, output: bits a second
_SPEED: Final = 38400  # what a terminal that is no line claims
_WINSIZE: Final = struct.Struct("=HHHH")


def size(fd: int) -> tuple[int, int, int, int]:
    """Return columns, rows, width and height (pixels). Raises OSError."""
    rows, columns, width, height = _WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINSIZE.size)))
    return columns, rows, width, height


def modes(fd: int) -> dict[int, int]:
    """Return the modes by their numbers in SSH. Raises termios.error."""
    input_, output, control, local, _, _, characters = termios.tcgetattr(fd)
    found = dict.fromkeys(_SPEEDS, _SPEED)
    for name, number in _CHARACTERS.items():
        character = characters[getattr(termios, name)]
        value = character[0] if isinstance(character, bytes) else int(character)
        found[number] = value or 255  # 255: this one is off
    for flags, names in ((input_, _INPUT), (local, _LOCAL), (output, _OUTPUT), (control, _CONTROL)):
        for name, number in names.items():
            bits = getattr(termios, name)
            found[number] = int(flags & bits == bits)
    found[_IUTF8[1]] = int(bool(input_ & _IUTF8[0]))
    return found
