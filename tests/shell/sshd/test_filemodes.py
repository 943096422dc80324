import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pqtun.shell.sshd import accounts, filemodes
from pqtun.shell.sshd.filemodes import FileRefused

pytestmark = pytest.mark.root

HOME = Path("/home/alice")
FILE = HOME / ".ssh" / "authorized_keys"


def files(change: Callable[[], None], name: str = "alice", path: Path = FILE) -> object:
    """What is read of a user's file, or why it is not, after `change`."""
    FILE.parent.mkdir(mode=0o700)
    FILE.write_text("content")
    FILE.chmod(0o600)
    os.chown(FILE, 4001, 4001)
    os.chown(FILE.parent, 4001, 4001)
    change()
    before = os.geteuid(), os.getegid(), os.getgroups()
    try:
        return filemodes.read(str(path), accounts.find(name))
    except FileRefused as refused:
        return str(refused)
    finally:
        assert (os.geteuid(), os.getegid(), os.getgroups()) == before


def nothing() -> None:
    pass


def linked_from_elsewhere(mode: int) -> Callable[[], None]:
    def change() -> None:
        other = Path("/home/shared")
        other.mkdir()
        FILE.rename(other / "keys")
        other.chmod(mode)
        FILE.symlink_to(other / "keys")

    return change


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        lambda: FILE.chmod(0o644),
        lambda: FILE.chmod(0o444),
        lambda: HOME.chmod(0o755),
        lambda: os.chown(HOME, 0, 0) or HOME.chmod(0o755),  # root's home: he may not change it himself
        lambda: os.chown(FILE, 0, 0) or FILE.chmod(0o644),
        linked_from_elsewhere(0o755),
    ],
)
def test_files_that_only_their_user_can_change(world, change):
    assert world.call(lambda: files(change)) == b"content"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: FILE.chmod(0o620), "bad ownership or modes of the file"),
        (lambda: FILE.chmod(0o602), "bad ownership or modes of the file"),
        (lambda: FILE.parent.chmod(0o770), "bad ownership or modes of the directory /home/alice/.ssh"),
        (lambda: FILE.parent.chmod(0o707), "bad ownership or modes of the directory /home/alice/.ssh"),
        (lambda: HOME.chmod(0o770), "bad ownership or modes of the directory /home/alice"),
        (lambda: os.chown(HOME, 4002, 4001), "bad ownership or modes of the directory /home/alice"),
        (lambda: os.chown(FILE, 4002, 4001) or FILE.chmod(0o644), "bad ownership or modes of the file"),
        (lambda: os.chown(FILE.parent, 4002, 4001) or FILE.parent.chmod(0o755), "directory /home/alice/.ssh"),
        (linked_from_elsewhere(0o777), "bad ownership or modes of the directory /home/shared"),
        (lambda: FILE.write_bytes(b"x" * (filemodes.MAX_FILE + 1)), "larger than"),
        (lambda: FILE.unlink() or FILE.mkdir(), "not a regular file"),
        (lambda: FILE.unlink() or os.mkfifo(FILE), "not a regular file"),
        (lambda: FILE.unlink() or FILE.symlink_to("/dev/zero"), "not a regular file"),
        (lambda: FILE.unlink() or FILE.symlink_to(FILE), "Too many levels of symbolic links"),
        (lambda: FILE.unlink() or FILE.symlink_to("/etc/shadow"), "Permission denied"),
        (lambda: os.chown(FILE, 0, 0), "Permission denied"),  # read as the user, not as root
        (lambda: os.chown(HOME, 0, 0), "Permission denied"),
    ],
)
def test_files_that_others_can_change_or_he_cannot_read(world, change, reason):
    told = world.call(lambda: files(change))
    assert isinstance(told, str)
    assert reason in told
    assert "content" not in told


def test_a_fifo_of_the_users_does_not_make_us_wait(world):
    """Nor does it, with a writer: what is no file is not read."""

    def with_writer() -> object:
        def change() -> None:
            FILE.unlink()
            os.mkfifo(FILE)
            os.chown(FILE, 4001, 4001)
            threading.Thread(target=lambda: os.open(FILE, os.O_WRONLY), daemon=True).start()

        return files(change)

    assert "not a regular file" in world.call(with_writer)


@pytest.mark.parametrize("change", [lambda: FILE.unlink(), lambda: FILE.unlink() or FILE.parent.rmdir()])
def test_no_file_is_nothing_to_complain_of(world, change):
    assert world.call(lambda: files(change)) is None


def test_files_outside_of_the_home_are_looked_at_up_to_the_root(world):
    def change(mode: int) -> None:
        Path("/etc/keys").mkdir()
        Path("/etc/keys/alice").write_text("content")
        Path("/etc/keys").chmod(mode)

    path = Path("/etc/keys/alice")
    assert world.call(lambda: files(lambda: change(0o755), path=path)) == b"content"
    assert "directory /etc/keys" in world.call(lambda: files(lambda: change(0o777), path=path))


def test_another_users_file_is_refused(world):
    told = world.call(lambda: files(lambda: HOME.chmod(0o755) or FILE.parent.chmod(0o755) or FILE.chmod(0o644), "bob"))
    assert "bad ownership" in told


def test_files_of_the_system_are_roots(world):
    def read() -> list[object]:
        found: list[object] = []
        for owner, mode in ((0, 0o600), (4001, 0o600), (0, 0o666)):
            Path("/etc/cas").write_text("content")
            os.chown("/etc/cas", owner, 0)
            os.chmod("/etc/cas", mode)
            try:
                found.append(filemodes.read_of_root("/etc/cas"))
            except FileRefused as refused:
                found.append(str(refused))
        return found

    good, *bad = world.call(read)
    assert good == b"content"
    assert bad == ["/etc/cas: bad ownership or modes of the file"] * 2
