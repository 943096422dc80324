"""Terminal modes and sizes, checked by what the kernel says of a pseudo-terminal."""

import fcntl
import os
import struct
import termios
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import pseudoterminal
from pqtun.shell.sshd.messages import MessageError
from pqtun.shell.sshd.pseudoterminal import Request, Size

IFLAG, OFLAG, CFLAG, LFLAG, ISPEED, OSPEED, CC = range(7)


def request(*modes: tuple[int, int], size: Size = Size(80, 24)) -> Request:  # noqa: B008 - frozen
    return Request("xterm", size, modes)


@pytest.fixture
def slave() -> Generator[int, None, None]:
    master, slave = pseudoterminal.open_pair(request())
    yield slave
    os.close(master)
    os.close(slave)


def test_size_reaches_the_other_end() -> None:
    master, slave = pseudoterminal.open_pair(request(size=Size(132, 43, 1056, 688)))
    try:
        assert os.get_terminal_size(slave) == (132, 43)
        pseudoterminal.resize(master, Size(100000, 5, 0, 0))
        answer = fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))
        assert struct.unpack("HHHH", answer) == (5, 0xFFFF, 0, 0)  # capped, never wrapped
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("opcode", "field", "bit"),
    [
        (36, IFLAG, termios.ICRNL),
        (38, IFLAG, termios.IXON),
        (42, IFLAG, 0o40000),
        (50, LFLAG, termios.ISIG),
        (51, LFLAG, termios.ICANON),
        (53, LFLAG, termios.ECHO),
        (70, OFLAG, termios.OPOST),
        (72, OFLAG, termios.ONLCR),
    ],
)
def test_flags(slave: int, opcode: int, field: int, bit: int) -> None:
    pseudoterminal.set_modes(slave, [(opcode, 1)])
    assert termios.tcgetattr(slave)[field] & bit
    pseudoterminal.set_modes(slave, [(opcode, 0)])
    assert not termios.tcgetattr(slave)[field] & bit


def test_characters_and_none(slave: int) -> None:
    pseudoterminal.set_modes(slave, [(1, 0x18), (3, 0x08), (10, 255)])
    characters = termios.tcgetattr(slave)[CC]
    assert characters[termios.VINTR] == b"\x18"
    assert characters[termios.VERASE] == b"\x08"
    assert characters[termios.VSUSP] == b"\0"  # _POSIX_VDISABLE


def test_speed(slave: int) -> None:
    pseudoterminal.set_modes(slave, [(128, 38400), (129, 9600), (129, 12345)])
    attributes = termios.tcgetattr(slave)
    assert attributes[OSPEED] == termios.B9600


def test_bits_and_parity_of_a_serial_line_are_passed_over(slave: int) -> None:
    pseudoterminal.set_modes(slave, [(90, 1), (91, 0), (92, 1), (93, 1)])
    assert termios.tcgetattr(slave)[CFLAG] & (termios.CSIZE | termios.PARENB) == termios.CS8


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 0xFFFFFFFF)), max_size=160))
def test_any_modes_leave_a_terminal(modes: list[tuple[int, int]]) -> None:
    master, slave = pseudoterminal.open_pair(request(*modes))
    try:
        assert os.isatty(slave)
    finally:
        os.close(master)
        os.close(slave)


def test_no_terminal() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            pseudoterminal.set_modes(reading, [(53, 1)])
    finally:
        os.close(reading)
        os.close(writing)


def test_json_and_back() -> None:
    asked = request((53, 1), (128, 38400), size=Size(80, 24, 640, 384))
    assert Request.from_json(asked.to_json()) == asked


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
FIELDS = st.fixed_dictionaries(
    {name: JSON | st.integers(0, 99) for name in ("columns", "rows", "width", "height")}
    | {"term": JSON | st.just("xterm"), "modes": JSON | st.just([[53, 1]])}
)


@given(JSON | FIELDS)
def test_other_json_is_refused(values: object) -> None:
    try:
        asked = Request.from_json(values)
    except MessageError:
        return
    assert isinstance(values, dict)
    assert asked.term.isprintable()
    assert all(0 <= number < 1 << 32 for pair in asked.modes for number in pair)


@pytest.mark.parametrize("term", ["x" * 129, "x\0y", "a\nb"])
def test_other_terms_are_refused(term: str) -> None:
    with pytest.raises(MessageError):
        Request.from_json(request().to_json() | {"term": term})


def test_more_modes_than_there_are_is_refused() -> None:
    with pytest.raises(MessageError):
        Request.from_json(request().to_json() | {"modes": [[1, 1]] * 161})
