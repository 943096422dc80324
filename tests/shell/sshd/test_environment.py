import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import environment
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.permission import Permission

ALICE = Account(name="alice", uid=4001, gid=4001, groups=(4001,), home="/home/alice", shell="/bin/bash")
ROOT = dataclasses.replace(ALICE, name="root", uid=0, gid=0, home="/root")
PLAIN = Permission(origin="f:1", key_type="ssh-ed25519", fingerprint="SHA256:x")


class Ends:
    source, source_port, own, own_port = "fd00::7", 50000, "fd00::1", 42422


def of_login(**given) -> dict[str, str]:
    return environment.of_login(given.pop("account", ALICE), given.pop("permission", PLAIN), Ends(), **given)


def test_what_every_session_has(monkeypatch):
    monkeypatch.delenv("TZ", raising=False)
    variables = of_login(pam={})
    assert variables.pop("PATH")
    assert variables == {
        "USER": "alice",
        "LOGNAME": "alice",
        "HOME": "/home/alice",
        "MAIL": "/var/mail/alice",
        "SHELL": "/bin/bash",
        "SSH_CLIENT": "fd00::7 50000 42422",
        "SSH_CONNECTION": "fd00::7 50000 fd00::1 42422",
    }


def test_a_terminal_and_a_forced_command():
    variables = of_login(pam={}, term="xterm-256color", tty="/dev/pts/3", original_command="scp -t x")
    assert variables["TERM"] == "xterm-256color"
    assert variables["SSH_TTY"] == "/dev/pts/3"
    assert variables["SSH_ORIGINAL_COMMAND"] == "scp -t x"


@pytest.mark.parametrize("term", ["", "a b", "x\n", "a\0b", "../x", "x" * 65])
def test_a_terminal_of_no_name_is_dumb(term):
    assert of_login(pam={}, term=term)["TERM"] == "dumb"


def test_the_client_sends_its_language_and_nothing_else():
    sent = {"LANG": "de_DE.UTF-8", "LC_ALL": "C", "LD_PRELOAD": "x", "LC_": "x", "PATH": "x", "LANGUAGE": "de"}
    variables = of_login(pam={}, sent=sent)
    assert (variables["LANG"], variables["LC_ALL"]) == ("de_DE.UTF-8", "C")
    assert variables["PATH"] != "x"
    assert not variables.keys() & {"LD_PRELOAD", "LC_", "LANGUAGE"}


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "x" * 1025])
def test_values_that_are_no_language(value):
    assert "LANG" not in of_login(pam={}, sent={"LANG": value})


def test_later_sources_win():
    permission = dataclasses.replace(PLAIN, environment=(("EDITOR", "ed"), ("LC_TIME", "C")))
    pam = {"MAIL": "/m", "EDITOR": "vim", "LANG": "C", "SSH_CLIENT": "a lie"}
    variables = of_login(permission=permission, sent={"LANG": "de", "LC_TIME": "de"}, pam=pam)
    assert variables["MAIL"] == "/m"
    assert variables["LANG"] == "de"
    assert (variables["EDITOR"], variables["LC_TIME"]) == ("ed", "C")
    assert variables["SSH_CLIENT"] == "fd00::7 50000 42422"


def test_the_services_own_environment_stays_with_it(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("TZ", "UTC")
    variables = of_login(pam={})
    assert "SECRET" not in variables
    assert variables["TZ"] == "UTC"


def test_search_paths_of_login_defs(tmp_path, monkeypatch):
    defs = tmp_path / "login.defs"
    monkeypatch.setattr(environment, "LOGIN_DEFS", defs)
    assert of_login(pam={})["PATH"] == environment.PATH
    assert of_login(pam={}, account=ROOT)["PATH"] == environment.ROOT_PATH
    defs.write_text("# ENV_PATH no\nENV_SUPATH\tPATH=/sbin:/bin\nENV_PATH /bin\n")
    assert of_login(pam={})["PATH"] == "/bin"
    assert of_login(pam={}, account=ROOT)["PATH"] == "/sbin:/bin"


def test_files_of_the_system_are_read_where_pam_is_not_asked(tmp_path, monkeypatch):
    first, second = tmp_path / "environment", tmp_path / "locale"
    monkeypatch.setattr(environment, "SYSTEM_ENVIRONMENT", (first, second, tmp_path / "none"))
    first.write_text('EDITOR="vim" # the best\nexport A=b\n')
    second.write_text("LANG=C.UTF-8\n")
    variables = of_login()
    assert (variables["EDITOR"], variables["A"], variables["LANG"]) == ("vim", "b", "C.UTF-8")
    assert "EDITOR" not in of_login(pam={})


def test_assignments():
    text = "# c\n\nA=1\n B = 2 \nC='x # y' z\nexport D=4 # four\nnot one\n=x\nE-F=1\nG=\nH=\"open\n"
    assert environment.parse_assignments(text) == {"A": "1", "B": "2", "C": "x # y", "D": "4", "G": "", "H": "open"}


@given(st.text(max_size=80))
def test_any_file_of_assignments(text):
    for name, value in environment.parse_assignments(text).items():
        assert name.isidentifier()
        assert "\n" not in value


@given(
    st.dictionaries(st.text(max_size=8), st.text(max_size=8)), st.dictionaries(st.text(max_size=8), st.text(max_size=8))
)
def test_whatever_is_sent_can_be_executed_with(sent, pam):
    variables = of_login(sent=sent, pam=pam, term="x", original_command="a\0b")
    assert all("\0" not in name + value and "=" not in name for name, value in variables.items())
    assert variables["SSH_CONNECTION"] == "fd00::7 50000 fd00::1 42422"
