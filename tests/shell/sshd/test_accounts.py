import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import accounts, shadow
from pqtun.shell.sshd.shadow import DAY, Aging

pytestmark = pytest.mark.root

NOW = 20_500 * DAY + 100.0


def refusal(world, fields: str, now: float = NOW, *, pam: bool = False) -> str | None:
    """What a user with these fields of shadow(5) is told."""
    world.user("carol", 4003, shadow=fields)
    return world.call(lambda: accounts.refusal(accounts.find("carol"), now, pam=pam))


def test_find(world):
    account = world.call(lambda: accounts.find("alice"))
    assert account == accounts.Account(
        name="alice",
        uid=4001,
        gid=4001,
        groups=(4001, 4100, 4101),
        home="/home/alice",
        shell="/bin/sh",
        gecos="alice of the tests",
    )


@pytest.mark.parametrize("name", ["", "nosuchuser", "a\0b", "x" * 300, "alice:x", "\udc80", "../alice", "-alice"])
def test_nobody_is_found(world, name):
    assert world.call(lambda: accounts.find(name)) is None


def test_an_empty_shell_is_sh(world):
    world.user("carol", 4003, shell="")
    assert world.call(lambda: accounts.find("carol").shell) == "/bin/sh"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ("*:20000:0:99999:7:::", None),
        ("$6$x$y:20000:0:99999:7:::", None),
        (":20000::::::", None),  # no password at all: keys only, so nothing to fear
        ("*:20499::1::::", None),
        ("*:20498::1:7:::", "your password has expired and cannot be changed here"),
        ("*:20498::1:7:0::", "your password has expired and cannot be changed here"),
        ("*:0:0:99999:7:::", "your password has to be changed, which cannot be done here"),
        ("!:20000:0:99999:7:::", "your account is locked"),
        ("!$6$x$y:20000:0:99999:7:::", "your account is locked"),
        ("!!:20000:0:99999:7:::", "your account is locked"),
        ("!*:20000:0:99999:7:::", "your account is locked"),
        ("*:20000:0:99999:7::20501:", None),
        ("*:20000:0:99999:7::20500:", "your account has expired"),
        ("*:20000:0:99999:7::0:", "your account has expired"),
    ],
)
def test_refusals_without_pam(world, fields, text):
    assert refusal(world, fields) == text


@pytest.mark.parametrize("fields", ["!:20000:0:99999:7:::", "*:0:0:99999:7:::"])
def test_pam_decides_over_passwords(world, fields):
    assert refusal(world, fields, pam=True) is None


def test_an_expired_account_is_refused_beside_pam_too(world):
    assert refusal(world, "*:20000:0:99999:7::20500:", pam=True) == "your account has expired"


def test_no_shadow_entry(world):
    world.shadow.clear()
    assert world.call(lambda: accounts.refusal(accounts.find("alice"), NOW)) is None


@pytest.mark.parametrize(
    ("shell", "text"),
    [
        ("/usr/sbin/nologin", None),  # it runs and says so
        ("/bin/none", "your login shell does not exist"),
        ("/etc/passwd", "your login shell cannot be executed"),
        ("/etc", "your login shell cannot be executed"),
    ],
)
def test_shells(world, shell, text):
    world.user("carol", 4003, shell=shell)
    assert world.call(lambda: accounts.refusal(accounts.find("carol"), NOW)) == text
    assert world.call(lambda: accounts.refusal(accounts.find("carol"), NOW, pam=True)) == text


@pytest.mark.parametrize("name", ["/etc/nologin", "/var/run/nologin"])
def test_nologin(world, name):
    def told() -> list[str | None]:
        found = []
        for content in ("back at noon\n", ""):
            Path(name).write_text(content)
            found += [accounts.refusal(accounts.find(user), time.time()) for user in ("alice", "root")]
        return found

    assert world.call(told) == ["back at noon", None, "logins are closed at the moment", None]


def test_nologin_is_bounded(world):
    world.etc["nologin"] = "x" * 100_000
    assert len(world.call(lambda: accounts.nologin(accounts.find("alice")))) == accounts.MAX_NOLOGIN


def test_the_file_says_what_nss_says(world):
    world.user("carol", 4003, shadow="!x:20001:0:90:7:14:20700:")

    def both() -> tuple[Aging | None, Aging | None, Aging | None]:
        return shadow.aging_of("carol"), shadow._of_file("carol"), shadow._of_file("nobody-else")

    by_nss, by_file, nobody = world.call(both)
    assert by_nss == by_file == Aging(password="!x", changed=20001, maximum=90, inactive=14, expires=20700)
    assert nobody is None


@given(st.binary(max_size=200))
def test_any_line_of_shadow(line):
    parsed = shadow.parse(line)
    assert parsed is None or line.count(b":") == 8


def test_only_root_may_read_shadow(world):
    def as_alice() -> object:
        os.setuid(4001)
        return shadow.aging_of("alice"), shadow._of_file("alice")

    assert world.call(as_alice) == (None, None)
