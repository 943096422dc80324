import os
import pty
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from pqtun.shell.sshd import accounts, loginrecords
from pqtun.shell.sshd.loginrecords import LastLogin

pytestmark = pytest.mark.root

of_debian_12 = pytest.mark.skipif(shutil.which("last") is None, reason="no last(1) and lastlog(8) since Debian 13")

UTMP, WTMP, LASTLOG = Path("/run/utmp"), Path("/var/log/wtmp"), Path("/var/log/lastlog")


def terminal(uid: int) -> tuple[int, str]:
    """The master of a pseudo-terminal of this user's, and its name."""
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    os.chown(name, uid, -1)
    return master, name


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout


def around_a_login(*argv: str) -> tuple[str, str, str]:
    """The line of a terminal, and what a program says while somebody is logged in there, and after that."""
    for path in (UTMP, WTMP):
        path.touch()
    _, tty = terminal(4001)
    assert loginrecords.login(accounts.find("alice"), tty, "10.43.0.7", os.getpid())
    during = output(*argv)
    loginrecords.logout(tty, os.getpid())
    return tty.removeprefix("/dev/"), during, output(*argv)


def test_who_sees_the_login_and_its_end(world):
    line, who, after = world.call(lambda: around_a_login("who", str(UTMP)))
    assert who.split()[:2] == ["alice", line]
    assert "(10.43.0.7)" in who
    assert not after


@of_debian_12
def test_last_sees_the_login_and_its_end(world):
    line, last, last_after = world.call(lambda: around_a_login("last", "-i", "-f", str(WTMP)))
    assert last.split()[:3] == ["alice", line, "10.43.0.7"]
    assert "gone" in last or "still logged in" in last
    assert "still logged in" not in last_after.splitlines()[0]


def test_a_terminal_that_is_somebody_elses_login_by_now_stays_that(world):
    def seen() -> str:
        for path in (UTMP, WTMP):
            path.touch()
        _, tty = terminal(4001)
        loginrecords.login(accounts.find("alice"), tty, "10.43.0.7", os.getppid())
        os.chown(tty, 4002, -1)
        loginrecords.login(accounts.find("bob"), tty, "10.43.0.8", os.getpid())
        loginrecords.logout(tty, os.getppid())
        return output("who", str(UTMP))

    assert world.call(seen).split()[0] == "bob"


@of_debian_12
def test_an_ipv6_address(world):
    def seen() -> str:
        WTMP.touch()
        _, tty = terminal(4001)
        loginrecords.login(accounts.find("alice"), tty, "fd00::7", os.getpid())
        return output("last", "-i", "-f", str(WTMP))

    assert world.call(seen).split()[2] == "fd00::7"


@of_debian_12
def test_lastlog_is_what_lastlog_reads(world):
    def seen() -> tuple[object, ...]:
        LASTLOG.touch()
        alice = accounts.find("alice")
        first = loginrecords.last(alice)
        _, tty = terminal(4001)
        loginrecords.login(alice, tty, "10.43.0.7", os.getpid())
        return first, loginrecords.last(alice), output("lastlog", "-u", "alice"), tty, LASTLOG.stat().st_blocks

    first, last, shown, tty, blocks = world.call(seen)
    assert first is None
    assert isinstance(last, LastLogin)
    assert (last.line, last.host) == (tty.removeprefix("/dev/"), "10.43.0.7")
    assert last.time <= time.time()
    assert shown.splitlines()[1].split()[:3] == ["alice", last.line, "10.43.0.7"]
    assert blocks * 512 < 4001 * 292  # sparse


def test_nothing_is_made_where_there_are_no_files(world):
    def without() -> tuple[bool, list[bool]]:
        _, tty = terminal(4001)
        entered = loginrecords.login(accounts.find("alice"), tty, "10.43.0.7", os.getpid())
        loginrecords.logout(tty, os.getpid())
        assert loginrecords.last(accounts.find("alice")) is None
        return entered, [path.exists() for path in (UTMP, WTMP, LASTLOG)]

    assert world.call(without) == (True, [False, False, False])


@pytest.mark.parametrize(
    "tty", ["/dev/null", "/dev/pts/ptmx", "/dev/pts/../null", "pts/0", "", "/dev/pts/999999", "/etc"]
)
def test_only_pseudo_terminals(world, tty):
    def tried() -> tuple[bool, int]:
        WTMP.touch()
        entered = loginrecords.login(accounts.find("alice"), tty, "10.43.0.7", os.getpid())
        return entered, WTMP.stat().st_size

    assert world.call(tried) == (False, 0)


def test_only_the_users_own_terminal(world):
    def tried() -> bool:
        _, tty = terminal(4002)
        return loginrecords.login(accounts.find("alice"), tty, "10.43.0.7", os.getpid())

    assert not world.call(tried)


@of_debian_12
def test_a_long_name_fits(world):
    name = "a" * 40
    world.user(name, 4009)

    def seen() -> str:
        WTMP.touch()
        _, tty = terminal(4009)
        loginrecords.login(accounts.find(name), tty, "10.43.0.7", os.getpid())
        return output("last", "-w", "-f", str(WTMP))

    assert set(world.call(seen).split()[0]) == {"a"}
