import os
import resource
import time
from pathlib import Path

import pytest

from pqtun.shell.sshd import accounts, pamsession
from pqtun.shell.sshd.messages import Refused
from pqtun.shell.sshd.pamsession import Session
from tests.shell.sshd.world import install_pam

pytestmark = pytest.mark.root

SERVICE = "pqtun-sshd"


def session(name: str = "alice", service: str | None = SERVICE) -> Session:
    account = accounts.find(name)
    assert account is not None
    return Session(account, "10.43.0.7", service=service)


def refusal(world, name: str = "alice", service: str | None = SERVICE) -> str | None:
    def ask() -> str | None:
        if not Path("/etc/pam.d", SERVICE).exists():
            install_pam()
        asked = session(name, service)
        try:
            return asked.account_refusal(time.time())
        finally:
            asked.close()

    return world.call(ask)


@pytest.mark.parametrize("name", ["alice", "bob", "root"])
def test_our_file_lets_users_in(world, name):
    assert refusal(world, name) is None


def test_a_session_and_its_end(world):
    world.etc["environment"] = 'EDITOR="vim"\nLANG=C.UTF-8\n'
    world.etc["motd"] = "welcome to the machine\n"

    def begin_and_end() -> tuple[object, ...]:
        install_pam()
        opened = session()
        own_groups = os.getgroups()
        refused = opened.account_refusal(time.time())
        environment = opened.open()
        login_uid = Path("/proc/self/loginuid").read_text()
        opened.close()
        opened.close()
        return refused, environment, login_uid, opened.texts, os.getgroups() == own_groups, opened.account.groups

    refused, environment, login_uid, texts, as_before, groups = world.call(begin_and_end)
    assert refused is None
    assert environment["EDITOR"] == "vim"
    assert environment["LANG"] == "C.UTF-8"
    assert login_uid == "4001"
    assert "welcome to the machine" in "".join(texts)
    assert as_before
    assert groups == (4001, 4100, 4101)


def test_an_expired_account(world):
    world.user("carol", 4003, shadow="*:20000:0:99999:7::20001:")
    assert refusal(world, "carol") == "your account has expired"


def test_an_expired_password_is_refused_with_what_pam_says(world):
    world.user("carol", 4003, shadow="*:0:0:99999:7:::")
    told = refusal(world, "carol")
    assert told is not None
    assert "password" in told


def test_a_locked_password_does_not_lock_keys_out(world):
    """As with sshd: pam_unix looks at the password only to authenticate."""
    world.user("carol", 4003, shadow="!:20000:0:99999:7:::")
    assert refusal(world, "carol") is None
    assert refusal(world, "carol", service=None) == "your account is locked"


def test_nologin_is_pams_to_say(world):
    world.etc["nologin"] = "closed for the night\n"
    assert refusal(world) == "closed for the night"
    assert refusal(world, "root") is None


def test_a_module_that_refuses(world):
    world.etc[f"pam.d/{SERVICE}"] = "account requisite pam_deny.so\n"
    assert refusal(world) == "you may not log in at the moment"


def test_a_session_that_a_module_refuses(world):
    world.etc[f"pam.d/{SERVICE}"] = "account required pam_permit.so\nsession required pam_exec.so /bin/false\n"

    def begin() -> str:
        opened = session()
        assert opened.account_refusal(time.time()) is None
        try:
            opened.open()
        except Refused as error:
            return str(error)
        finally:
            opened.close()
        return "open"

    assert world.call(begin).startswith("PAM did not open a session: ")


def test_texts_are_bounded(world):
    world.etc["motd"] = "x" * 60_000
    world.etc[f"pam.d/{SERVICE}"] = "account required pam_permit.so\n" + "session optional pam_motd.so noupdate\n" * 4
    world.etc[f"pam.d/{SERVICE}"] += "session required pam_permit.so\n"

    def length() -> int:
        opened = session()
        opened.account_refusal(time.time())
        opened.open()
        opened.close()
        return sum(map(len, opened.texts))

    assert 0 < world.call(length) <= pamsession.MAX_TEXT


def test_limits_umask_and_groups_are_pams(world):
    world.etc["security/limits.conf"] = "alice hard nofile 333\nalice soft nofile 222\n"
    world.etc["security/group.conf"] = "*;*;alice;Al0000-2400;operators\n"
    world.etc[f"pam.d/{SERVICE}"] = (
        "auth optional pam_group.so\naccount required pam_permit.so\n"
        "session required pam_limits.so\nsession optional pam_umask.so nousergroups umask=027\n"
    )
    world.group.append("operators:x:4200:")

    def found() -> tuple[object, ...]:
        os.umask(0o077)
        own_groups = os.getgroups()
        opened = session()
        opened.account_refusal(time.time())
        opened.open()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        own = os.umask(0)
        opened.close()
        return limits, opened.umask, own, opened.account.groups, os.getgroups() == own_groups

    limits, umask, own, groups, as_before = world.call(found)
    assert limits == (222, 333)
    assert umask == 0o027
    assert own == 0o077
    assert set(groups) == {4001, 4100, 4101, 4200}
    assert as_before


def test_a_module_that_asks_gets_no_answer(world):
    """pam_setcred and pam_acct_mgmt seldom ask, so the question is put by pam_authenticate, which we never call."""
    world.etc[f"pam.d/{SERVICE}"] = "auth required pam_unix.so\naccount required pam_permit.so\n"
    world.user("carol", 4003, shadow="$6$x$y:20000:0:99999:7:::")

    def ask() -> tuple[int, list[str]]:
        asked = session("carol")
        code = asked._start().pam_authenticate(asked._handle, 0)
        asked.close()
        return code, asked.texts

    code, texts = world.call(ask)
    assert code != 0
    assert not texts


@pytest.mark.parametrize("service", [None, "no-such-service", "../etc/pam.d/login", ""])
def test_without_pam_the_checks_are_our_own(world, service):
    world.etc["nologin"] = "closed\n"

    def ask() -> tuple[object, ...]:
        asked = session(service=service)
        told = asked.account_refusal(time.time()), asked.open(), asked.uses_pam
        asked.close()
        return told

    assert world.call(ask) == ("closed", None, False)


def test_without_libpam(world):
    """python-pam finds no library: as in a container without one."""

    def ask() -> tuple[object, ...]:
        install_pam()
        import pam.__internals as internals

        internals.find_library = lambda name: None
        asked = session()
        return asked.account_refusal(time.time()), asked.uses_pam, pamsession.available(SERVICE)

    assert world.call(ask) == (None, False, False)
