"""scp's old protocol, one message at a time, from a peer that need not be scp."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import scp
from pqtun.shell.sshd.scp import Options
from pqtun.shell.sshd.sftp import Transfer


def talk(arguments: list[str], said: bytes) -> tuple[int, bytes, list[Transfer]]:
    """Run the server's end with all that a client says, whatever it answers; status, answers, and what was copied."""
    ours, theirs = socket.socketpair()
    reports: list[Transfer] = []
    status: list[int] = []

    def serve() -> None:
        with theirs:
            status.append(scp.serve(theirs, arguments, reports.append))

    server = threading.Thread(target=serve)
    server.start()
    with ours:
        ours.settimeout(20)
        sending = threading.Thread(target=_say, args=(ours, said))
        sending.start()
        answers = b""
        try:
            while part := ours.recv(1 << 16):
                answers += part
        except ConnectionResetError:
            pass  # it ended before it had heard all
        sending.join()
    server.join()
    return status[0], answers, reports


def _say(sock: socket.socket, said: bytes) -> None:
    try:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it listens no more


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-t", "."], Options(False, ".")),
        (["-v", "-r", "-p", "-d", "-t", "--", "-x"], Options(False, "-x", True, True, True)),
        (["-rpf", "a b"], Options(True, "a b", True, True)),
        (["-q", "-f", "a"], Options(True, "a")),
    ],
)
def test_arguments(arguments: list[str], expected: Options) -> None:
    assert scp.options(arguments) == expected


@pytest.mark.parametrize("arguments", [[], ["-t"], ["-t", "a", "b"], ["-t", "-f", "a"], ["a"], ["-t", "-z", "a"]])
def test_other_arguments(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        scp.options(arguments)
    status, answers, _ = talk(arguments, b"")
    assert status == 1
    assert answers.startswith(b"\x02scp: ")


def test_a_file_with_mode_and_time(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"longer than what comes")
    said = b"T1100000000 0 1000000000 0\nC0750 5 name\nhello\0"
    status, answers, reports = talk(["-p", "-t", str(target)], said)
    assert (status, answers) == (0, b"\0\0\0\0")
    assert target.stat().st_mode & 0o7777 == 0o750
    assert (target.stat().st_mtime, target.stat().st_atime) == (1_100_000_000, 1_000_000_000)
    assert target.read_bytes() == b"hello"
    assert reports == [Transfer(os.fsencode(target), 0, 5)]


def test_the_umask_holds_without_preserve(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert talk(["-r", "-t", str(tmp_path)], b"D0777 0 d\nC0777 0 f\n\0C0444 0 g\n\0E\n")[0] == 0
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in [tmp_path / "d", *(tmp_path / "d").iterdir()]}
    assert modes == {"d": 0o750, "f": 0o750, "g": 0o440}


@pytest.mark.parametrize(
    "said",
    [
        b"C0644 1 ../escape\nx\0",
        b"C0644 1 /escape\nx\0",
        b"C0644 1 ..\nx\0",
        b"C0644 1 .\nx\0",
        b"C0644 1 \nx\0",
        b"C0644 -1 name\n",
        b"C064 1 name\nx\0",
        b"C0644 99999999999999999999 name\n",
        b"D0755 0 ..\nE\n",
        b"E\n",
        b"X\n",
        b"Tnonsense\n",
        b"\x02gone\n",
        b"C" + b"7" * 20000,
    ],
)
def test_what_breaks_the_protocol_ends_it(tmp_path: Path, said: bytes) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    status, _, reports = talk(["-r", "-t", str(inside)], said)
    assert status == 1
    assert reports == []
    assert list(inside.iterdir()) == []
    assert list(tmp_path.iterdir()) == [inside]


def test_a_directory_that_was_not_asked_for(tmp_path: Path) -> None:
    assert talk(["-t", str(tmp_path)], b"D0755 0 d\nE\n")[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_must_be_a_directory(tmp_path: Path) -> None:
    status, answers, _ = talk(["-d", "-t", str(tmp_path / "missing")], b"C0644 0 f\n\0")
    assert status == 1
    assert b"Not a directory" in answers


def test_a_file_that_ends_early_is_reported_as_far_as_it_came(tmp_path: Path) -> None:
    status, _, reports = talk(["-t", str(tmp_path / "f")], b"C0644 1000 f\n" + bytes(300))
    assert status == 1
    assert [transfer.written for transfer in reports] == [300]


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    status, answers, _ = talk(["-t", str(tmp_path)], b"\x01scp: gone: No such file\nC0644 1 good\nx\0")
    assert (status, answers) == (1, b"\0\0\0")
    assert (tmp_path / "good").read_bytes() == b"x"


def test_sending(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"content")
    (tmp_path / "d" / "f").chmod(0o640)
    (tmp_path / "d").chmod(0o755)
    status, said, reports = talk(["-r", "-f", str(tmp_path / "d")], bytes(10))
    assert (status, said) == (0, b"D0755 0 d\nC0640 7 f\ncontent\0E\n")
    assert [transfer.read for transfer in reports] == [7]


def test_what_cannot_be_sent_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("fifo", b"not a regular file"), ("missing", b"No such file"), ("", b"not a regular file")):
        status, said, _ = talk(["-f", str(tmp_path / name)], bytes(10))
        assert status == 1
        assert said.startswith(b"\x01scp: ")
        assert reason in said


def test_a_file_that_is_shorter_than_it_says_is_padded_and_said() -> None:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # 4096 bytes by stat(2), as all of sysfs(5)
    if not path.exists():
        pytest.skip("needs sysfs")
    code, said, _ = talk(["-f", str(path)], bytes(3))
    assert code == 1
    assert b" 4096 enabled\n" + path.read_bytes().ljust(4096, b"\0") + b"\x01scp: " in said


LINES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"C0644 3 f\nabc\0", b"D0755 0 d\n", b"E\n", b"T1 0 2 0\n", b"\x01x\n", b"\0", b"C0644 3 f\nab"]),
)


@given(st.lists(LINES, max_size=8).map(b"".join), st.booleans())
def test_anything_said_ends_well(tmp_path_factory: pytest.TempPathFactory, said: bytes, sends: bool) -> None:
    root = tmp_path_factory.mktemp("scp")
    inside = root / "inside"
    inside.mkdir()
    status, _, _ = talk(["-r", "-p", "-f" if sends else "-t", str(inside)], said)
    assert status in (0, 1)
    assert [path.name for path in root.iterdir()] == ["inside"]
