import dataclasses
import time

import pytest

from pqtun.shell.sshd import greeting
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.loginrecords import LastLogin

NOON = time.mktime((2026, 11, 2, 12, 0, 0, 0, 0, -1))


@pytest.fixture
def alice(tmp_path, monkeypatch):
    (tmp_path / "motd").write_bytes(b"welcome\nto you")
    monkeypatch.setattr(greeting, "MOTD_FILES", (tmp_path / "dynamic", tmp_path / "motd"))
    return Account(name="alice", uid=4001, gid=4001, groups=(), home=str(tmp_path), shell="/bin/sh")


def test_without_pam_the_files_are_read(alice):
    assert greeting.text(alice, None, None) == b"welcome\nto you\n"


def test_with_pam_it_says_what_modules_said(alice):
    assert greeting.text(alice, ["one", "two\n"], None) == b"one\ntwo\n"
    assert greeting.text(alice, [], None) == b""


def test_the_last_login(alice):
    last = LastLogin(time=NOON, line="pts/3", host="10.43.0.7")
    assert greeting.text(alice, [], last) == b"Last login: Mon Nov  2 12:00:00 2026 from 10.43.0.7\n"
    nowhere = dataclasses.replace(last, host="")
    assert greeting.text(alice, [], nowhere) == b"Last login: Mon Nov  2 12:00:00 2026\n"


def test_records_do_not_draw_on_the_terminal(alice):
    last = LastLogin(time=NOON, line="pts/3", host="a\x1b[2Jb")
    assert b"\x1b" not in greeting.text(alice, [], last)


def test_who_wants_nothing_gets_nothing(alice, tmp_path):
    (tmp_path / greeting.HUSH).touch()
    assert greeting.text(alice, ["one"], LastLogin(time=NOON, line="", host="")) == b""
