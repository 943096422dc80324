"""pqtun scp's copies, over both protocols, with OpenSSH's sshd at the other end."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.client.pipeline import Throttle
from tests.shell.client.openssh import InetdSshd, OwnServer, scp

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("old", [(), ("-O",)], ids=["sftp", "old"])
MTIME = 1_600_000_000
NOBODY = 65534


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InetdSshd]:
    server = InetdSshd(Path(tmp_path_factory.mktemp("sshd")))
    yield server
    server.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with what directories have."""
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "large").write_bytes(os.urandom(1_234_567))
    (top / "empty").touch()
    (top / "run me").write_text("#!/bin/sh\n")
    (top / "run me").chmod(0o750)
    (top / "link").symlink_to("sub")
    (top / "sub" / "old").write_text("old")
    os.utime(top / "sub" / "old", (MTIME - 5, MTIME))
    (top / "sub").chmod(0o500)
    os.utime(top / "sub", (MTIME, MTIME))
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\x1bname")).write_text("not UTF-8")
    return top


def contents(top: Path) -> dict[str, bytes]:
    """Relative names and bytes of all files, links followed."""
    return {
        os.path.relpath(os.path.join(where, name), top): Path(where, name).read_bytes()
        for where, _, names in os.walk(top, followlinks=True)
        for name in names
    }


@BOTH
def test_tree_there_back_and_from_host_to_host(sshd: InetdSshd, tree: Path, tmp_path: Path, old: tuple[str]) -> None:
    there, back, other = tmp_path / "there", tmp_path / "back", tmp_path / "other"
    assert scp(sshd.connect, "-rp", *old, tree, f"host:{there}") == 0
    assert scp(sshd.connect, "-rp", *old, f"user@host:{there}", back) == 0
    assert scp(sshd.connect, "-rp", *old, f"host:{back}", f"second:{other}") == 0
    for copy in (there, back, other):
        assert contents(copy) == contents(tree)
        assert not (copy / "link").is_symlink()
        assert (copy / "run me").stat().st_mode & 0o7777 == 0o750
        assert (copy / "sub").stat().st_mode & 0o7777 == 0o500
        assert (copy / "sub").stat().st_mtime == MTIME
        assert (copy / "sub" / "old").stat().st_mtime == MTIME


def test_tree_with_another_server(tree: Path, tmp_path: Path) -> None:
    server = OwnServer(sftp=asyncssh.SFTPServer)
    (tree / "sub").chmod(0o700)
    assert scp(server.connect, "-rp", tree, f"host:{tmp_path}/there") == 0
    assert scp(server.connect, "-rp", "--resume", f"host:{tmp_path}/there", tmp_path / "back") == 0
    (tmp_path / "back" / "sub" / "large").write_bytes((tree / "sub" / "large").read_bytes()[:-1])
    assert scp(server.connect, "-r", "--resume", f"{tmp_path}/there/.", f"host:{tmp_path}/back") == 0
    assert contents(tree) == contents(tmp_path / "there") == contents(tmp_path / "back")


@BOTH
def test_into_a_directory_that_is_there(sshd: InetdSshd, tree: Path, tmp_path: Path, old: tuple[str]) -> None:
    target = tmp_path / "target"
    target.mkdir()
    assert scp(sshd.connect, "-r", *old, tree, tree / "empty", f"host:{target}") == 0
    assert contents(target / "tree") == contents(tree)
    assert scp(sshd.connect, *old, f"host:{tree}/run me" if not old else f"host:{tree}/run*", target) == 0
    assert (target / "run me").read_text() == "#!/bin/sh\n"
    assert (target / "empty").read_bytes() == b""


@BOTH
def test_patterns_on_the_server(sshd: InetdSshd, tmp_path: Path, old: tuple[str]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    for name in ("a1", "a2", "b1", ".a3", "c[1]"):
        (source / name).write_text(name)
    assert scp(sshd.connect, *old, f"host:{source}/[ab]?", f"host:{source}/c\\[1\\]", target) == 0
    assert sorted(os.listdir(target)) == ["a1", "a2", "b1", "c[1]"]


def test_braces_and_names_that_look_like_patterns(sshd: InetdSshd, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for name in ("x.one", "x.two", "y[1]", "z\\z"):
        (tmp_path / name).write_text(name)
    assert scp(sshd.connect, f"host:{tmp_path}/x.{{one,two}}", f"host:{tmp_path}/y[1]", tmp_path / "target") == 0
    assert scp(sshd.connect, f"host:{tmp_path}/z\\z", tmp_path / "target") == 0
    assert sorted(os.listdir(tmp_path / "target")) == ["x.one", "x.two", "y[1]", "z\\z"]


@pytest.mark.parametrize(("name", "old"), [("a,{b,c}", ()), ("[x]", ()), ("?[", ()), ("[x]", ("-O",)), ("?[", ("-O",))])
def test_a_pattern_that_fits_nothing_else_is_a_name(
    sshd: InetdSshd, tmp_path: Path, name: str, old: tuple[str]
) -> None:
    (tmp_path / name).write_text(name)
    assert scp(sshd.connect, *old, f"host:{tmp_path}/{name}", tmp_path / "copy") == 0
    assert (tmp_path / "copy").read_text() == name


@BOTH
def test_faults_are_told_and_the_rest_is_copied(
    sshd: InetdSshd, tmp_path: Path, capfd: pytest.CaptureFixture[str], old: tuple[str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for directory in (source, target):
        directory.mkdir()
    os.mkfifo(source / "fifo")
    (source / "good").write_text("good")
    (source / "esc\x1b[2J").symlink_to("nowhere")
    assert scp(sshd.connect, "-r", *old, source, f"host:{target}") == 2
    assert scp(sshd.connect, "-r", *old, f"host:{source}", target / "back") == 2
    assert (target / "source" / "good").read_text() == (target / "back" / "good").read_text() == "good"
    said = capfd.readouterr().err
    assert said.count("not a regular file") == 2
    assert said.count("No such file or directory") == 2
    assert "\x1b" not in said


@BOTH
def test_what_cannot_be_is_refused(
    sshd: InetdSshd, tmp_path: Path, capfd: pytest.CaptureFixture[str], old: tuple[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "directory").mkdir()
    assert scp(sshd.connect, *old, f"host:{tmp_path}/none", tmp_path / "copy") == 1
    assert scp(sshd.connect, *old, f"host:{tmp_path}/file", tmp_path / "none" / "copy") == 1
    assert scp(sshd.connect, *old, tmp_path / "file", f"host:{tmp_path}/none/copy") == 1
    assert scp(sshd.connect, *old, f"host:{tmp_path}/directory", tmp_path / "copy") == 1
    assert scp(sshd.connect, *old, tmp_path / "directory", f"host:{tmp_path}/copy") == 1
    assert scp(sshd.connect, *old, tmp_path / "file", tmp_path / "file", f"host:{tmp_path}/none") == (2 if old else 1)
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]
    assert len(capfd.readouterr().err.splitlines()) == (7 if old else 6)


def test_paths_begin_at_home(sshd: InetdSshd, tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path, os.path.expanduser("~"))
    (tmp_path / "file").write_text("x")
    assert scp(sshd.connect, f"host:{relative}/file", tmp_path / "a") == 0
    assert scp(sshd.connect, f"host:~/{relative}/file", tmp_path / "b") == 0
    assert scp(sshd.connect, f"scp://host/{relative}/file", tmp_path / "c") == 0
    assert scp(sshd.connect, f"scp://host/{tmp_path}/file", tmp_path / "d") == 0
    assert scp(sshd.connect, f"host:~someone/{relative}/file", tmp_path / "e") == 1
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d", "file"]


def test_local_names_with_colons_and_local_copies(sshd: InetdSshd, tmp_path: Path) -> None:
    (tmp_path / "a:b").write_text("colon")
    assert scp(sshd.connect, tmp_path / "a:b", f"host:{tmp_path}/there") == 0
    assert scp(sshd.connect, tmp_path / "there", tmp_path / "here") == 0
    assert (tmp_path / "here").read_text() == "colon"
    assert sshd.processes[-1].wait(10) is not None


def test_a_file_is_not_copied_onto_itself(sshd: InetdSshd, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("file")
    for one, other in (("file", "link"), ("link", "file"), ("file", ".")):
        assert scp(sshd.connect, tmp_path / one, tmp_path / other) == 1
        assert scp(sshd.connect, f"host:{tmp_path}/{one}", f"host:{tmp_path}/{other}") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_a_directory_is_not_copied_into_itself(
    sshd: InetdSshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "file").write_text("x")
    for host in ("", "host:"):
        assert scp(sshd.connect, "-r", f"{host}{tmp_path}/top", f"{host}{tmp_path}/top/sub") == 1
        assert contents(tmp_path) == {"top/file": b"x", "top/sub/top/file": b"x"}
        assert "top/sub/top: a directory is not copied into itself" in capfd.readouterr().err


@BOTH
def test_a_directory_gets_no_more_than_the_umask_lets(sshd: InetdSshd, tmp_path: Path, old: tuple[str]) -> None:
    for name in ("open", "closed"):
        (tmp_path / "there" / name).mkdir(parents=True)
        (tmp_path / "there" / name / "file").write_text("x")
        (tmp_path / "there" / name).chmod(0o577 if name == "open" else 0o111)
    assert scp(sshd.connect, "-r", *old, f"host:{tmp_path}/there", tmp_path / "here") == 0
    assert (tmp_path / "here" / "open").stat().st_mode & 0o777 == 0o577 & ~0o022
    assert (tmp_path / "here" / "closed").stat().st_mode & 0o777 == 0o111


def test_each_file_that_cannot_be_seen_is_told(
    sshd: InetdSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, mode in (("list", 0o444), ("out", 0o777), (".", 0o755)):  # of list, names can be read, nothing else can
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name).chmod(mode)
    for name in ("one", "two"):
        (tmp_path / "list" / name).touch()
    monkeypatch.chdir(tmp_path)  # there is no way to it for others
    os.seteuid(NOBODY)
    try:
        assert scp(sshd.connect, "-r", "list", "out") == 2
    finally:
        os.seteuid(0)
    said = capfd.readouterr().err
    assert all(f"list/{name}: Permission denied" in said for name in ("one", "two"))


@BOTH
def test_devices_and_pipes_as_targets(sshd: InetdSshd, tmp_path: Path, old: tuple[str]) -> None:
    (tmp_path / "file").write_bytes(data := os.urandom(2_000_000))
    assert scp(sshd.connect, *old, f"host:{tmp_path}/file", "/dev/null") == 0
    reading, writing = os.pipe()
    got = bytearray()

    def read() -> None:
        with open(reading, "rb") as pipe:
            got.extend(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    with open(writing, "wb"):
        assert scp(sshd.connect, *old, f"host:{tmp_path}/file", f"/proc/self/fd/{writing}") == 0
    reader.join()
    assert got == data


def test_a_file_of_proc_is_read_to_its_end(sshd: InetdSshd, tmp_path: Path) -> None:
    assert scp(sshd.connect, "host:/proc/version", tmp_path) == 0
    assert (tmp_path / "version").read_text() == Path("/proc/version").read_text()


@pytest.mark.parametrize("direction", ["get", "put", "relay"])
def test_resume_goes_on_behind_four_gigabytes(sshd: InetdSshd, tmp_path: Path, direction: str) -> None:
    size, present = (5 << 30) + 12345, (5 << 30) - 1
    source, target = tmp_path / "source", tmp_path / "target"
    end = os.urandom(size - present)
    with source.open("wb") as file:
        file.seek(present)
        file.write(end)
    with target.open("wb") as file:
        file.truncate(present)
    names = {
        "get": (f"host:{source}", target),
        "put": (source, f"host:{target}"),
        "relay": (f"host:{source}", f"other:{target}"),
    }
    assert scp(sshd.connect, "--resume", *names[direction]) == 0
    assert target.stat().st_size == size
    with target.open("rb") as file:
        file.seek(present)
        assert file.read() == end


@pytest.mark.parametrize("direction", ["get", "put"])
def test_resume_takes_only_a_beginning(
    sshd: InetdSshd, tmp_path: Path, capfd: pytest.CaptureFixture[str], direction: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    data = os.urandom(3_000_000)
    source.write_bytes(data)

    def resume(present: bytes) -> bytes:
        target.write_bytes(present)
        before = (f"host:{source}", target) if direction == "get" else (source, f"host:{target}")
        faults = scp(sshd.connect, "--resume", *before)
        return target.read_bytes() if not faults else b"refused"

    for length in (0, 1, 65536, 65537, 2_000_000, 3_000_000):
        assert resume(data[:length]) == data
    for wrong in (b"x", data + b"x", b"x" + data[1:100_000], data[:1_999_999] + bytes([data[1_999_999] ^ 1])):
        assert resume(wrong) == b"refused"
        assert target.read_bytes() == wrong
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert all("no part of it" in line for line in said)


def test_disk_full(sshd: InetdSshd, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    disk, source = tmp_path / "disk", tmp_path / "source"
    disk.mkdir()
    source.write_bytes(bytes(3 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
    try:
        for target in (f"host:{disk}/there", disk / "here"):
            before = "" if isinstance(target, str) else "host:"
            assert scp(sshd.connect, f"{before}{source}", target) == 1
            assert scp(sshd.connect, "-O", f"{before}{source}", target) == 1
            for file in disk.iterdir():
                file.unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert all("no space left" in line.lower() for line in said)
    assert all("is not whole" in line for line in said)


@BOTH
@pytest.mark.parametrize("direction", ["get", "put"])
def test_a_server_that_dies_leaves_a_clear_line(
    sshd: InetdSshd, tmp_path: Path, capfd: pytest.CaptureFixture[str], direction: str, old: tuple[str]
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(4 << 20))
    connections: list[socket.socket] = []

    async def connect():  # type: ignore[no-untyped-def]  # as InetdSshd has it
        connection = await sshd.connect()
        connections.append(connection.get_extra_info("socket"))
        return connection

    def cut() -> None:
        while not (target.exists() and target.stat().st_size > 0):
            if ended.wait(0.01):
                return
        connections[0].shutdown(socket.SHUT_RDWR)

    ended = threading.Event()
    watcher = threading.Thread(target=cut)
    watcher.start()
    names = (f"host:{source}", target) if direction == "get" else (source, f"host:{target}")
    try:
        faults = scp(connect, "-l", "16000", *old, *names)  # so slowly that it is under way when it is cut
    finally:
        ended.set()
        watcher.join()
    assert faults == 1
    said = capfd.readouterr().err
    assert "the connection was lost" in said
    assert len(said.splitlines()) == 1
    assert 0 < target.stat().st_size < source.stat().st_size
    if not old:
        assert "is not whole" in said
        assert scp(sshd.connect, "--resume", *names) == 0
        assert target.read_bytes() == source.read_bytes()


@given(rate=st.floats(1e3, 1e9), sizes=st.lists(st.integers(1, 1 << 20), min_size=1))
def test_a_limit_holds_the_rate(rate: float, sizes: list[int]) -> None:
    throttle = Throttle(rate)
    now = sent = 0.0
    for size in sizes:
        now += throttle.delay(size, now)
        assert sent <= now * rate * (1 + 1e-9) + 1e-6
        assert 1 <= throttle.block_size(1 << 18) <= 1 << 18
        sent += size
    assert now == pytest.approx((sent - sizes[-1]) / rate)  # and no slower
