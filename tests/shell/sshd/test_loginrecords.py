import os
import pty
import subprocess
import time
from pathlib import Path

import pytest

from pqtun.shell.sshd import accounts, loginrecords
from pqtun.shell.sshd.loginrecords import LastLogin

pytestmark = pytest.mark.root

UTMP, WTMP, LASTLOG = Path("/run/utmp"), Path("/var/log/wtmp"), Path("/var/log/lastlog")


def terminal(uid: int) -> tuple[int, str]:
    """The master of a pseudo-terminal of this user's, and its name."""
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    os.chown(name, uid, -1)
    return master, name


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout


def test_who_and_last_see_the_login_and_its_end(world):
    def seen() -> tuple[str, ...]:
        for path in (UTMP, WTMP):
            path.touch()
        _, tty = terminal(4001)
        line = tty.removeprefix("/dev/")
        assert loginrecords.login(accounts.find("alice"), tty, "10.43.0.7", os.getpid())
        during = output("who", str(UTMP)), output("last", "-i", "-f", str(WTMP))
        loginrecords.logout(tty, os.getpid())
        return line, *during, output("who", str(UTMP)), output("last", "-i", "-f", str(WTMP))

    line, who, last, who_after, last_after = world.call(seen)
    assert who.split()[:2] == ["alice", line]
    assert "(10.43.0.7)" in who
    assert last.split()[:3] == ["alice", line, "10.43.0.7"]
    assert "gone" in last or "still logged in" in last
    assert not who_after
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


def test_an_ipv6_address(world):
    def seen() -> str:
        WTMP.touch()
        _, tty = terminal(4001)
        loginrecords.login(accounts.find("alice"), tty, "fd00::7", os.getpid())
        return output("last", "-i", "-f", str(WTMP))

    assert world.call(seen).split()[2] == "fd00::7"


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


def test_a_long_name_fits(world):
    name = "a" * 40
    world.user(name, 4009)

    def seen() -> str:
        WTMP.touch()
        _, tty = terminal(4009)
        loginrecords.login(accounts.find(name), tty, "10.43.0.7", os.getpid())
        return output("last", "-w", "-f", str(WTMP))

    assert set(world.call(seen).split()[0]) == {"a"}
