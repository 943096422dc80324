"""What processes give up; what they then have is looked at in tests/net/test_shell_sshd.py."""

import os
import resource
import signal
from pathlib import Path

import pytest

from pqtun.protocol.errors import UserError
from pqtun.shell.sshd import confinement
from tests.shell.sshd.world import World


@pytest.mark.parametrize(("before", "after"), [("-900\n", "0"), ("0\n", "0\n"), ("300\n", "300\n")])
def test_be_killable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(before)
    monkeypatch.setattr(confinement, "_OOM_SCORE", score)
    confinement.be_killable()
    assert score.read_text() == after


def test_without_proc_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "_OOM_SCORE", tmp_path / "none")
    confinement.be_killable()


@pytest.mark.root
def test_an_empty_directory(tmp_path: Path) -> None:
    path = confinement.empty_directory(tmp_path)
    assert path.stat().st_mode & 0o7777 == 0o755
    assert confinement.empty_directory(tmp_path) == path
    (path / "file").touch()
    with pytest.raises(UserError, match="empty"):
        confinement.empty_directory(tmp_path)
    (path / "file").unlink()
    path.chmod(0o777)
    with pytest.raises(UserError, match="root's own"):
        confinement.empty_directory(tmp_path)


@pytest.mark.root
def test_only_these_descriptors_stay(world: World) -> None:
    def body() -> tuple[set[int], set[int]]:
        pipes = [fd for _ in range(10) for fd in os.pipe()]
        kept = {pipes[3], pipes[10], 250}  # the answer goes by the last
        confinement.close_all_but(kept)
        return {int(name) for name in os.listdir("/proc/self/fd")}, kept

    found, kept = world.call(body)
    assert {fd for fd in found if fd > 2} - kept <= {3}  # that of listdir itself
    assert kept <= found


@pytest.mark.root
def test_memory_is_bounded(world: World) -> None:
    def body() -> tuple[int, bool]:
        confinement.limit_memory()
        try:
            bytearray(confinement.WORKER_MEMORY + (64 << 20))
        except MemoryError:
            return resource.getrlimit(resource.RLIMIT_AS)[1], True
        return 0, False

    most, refused = world.call(body)
    assert refused
    assert confinement.WORKER_MEMORY < most < confinement.WORKER_MEMORY + (2 << 30)


@pytest.mark.root
def test_apart_is_for_what_is_forked_within(world: World) -> None:
    def body() -> list[bool]:
        own = os.readlink("/proc/self/ns/pid")
        seen = []
        for within in (True, False):
            reading, writing = os.pipe()
            if within:
                with confinement.apart():
                    pid = os.fork()
            else:
                pid = os.fork()
            if pid == 0:
                os.write(writing, str(os.getpid()).encode())
                os._exit(0)
            os.close(writing)
            seen.append(os.read(reading, 20) == b"1")
            os.waitpid(pid, 0)
        return [*seen, os.readlink("/proc/self/ns/pid") == own]

    assert world.call(body) == [True, False, True]


@pytest.mark.root
def test_another_processes_network(world: World) -> None:
    def body() -> tuple[bool, bool, bool]:
        gate, opened = os.pipe()
        pid = os.fork()
        if pid == 0:
            confinement.leave_network()
            os.write(opened, b"x")
            signal.pause()
        same = confinement.network_of(os.getpid())
        os.read(gate, 1)
        fd = confinement.network_of(pid)
        other = fd is not None and os.readlink(f"/proc/self/fd/{fd}") == os.readlink(f"/proc/{pid}/ns/net")
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        return same is None, other, confinement.network_of(pid) is None

    assert world.call(body) == (True, True, True)
