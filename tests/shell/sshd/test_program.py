"""What a session runs: the client's wish, the key's command, the servers built in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import program
from pqtun.shell.sshd.messages import Refused
from pqtun.shell.sshd.program import Kind, Scp, Sftp, Shell

NOWHERE = "/nonexistent"


def with_scp(directory: Path) -> str:
    (directory / "scp").touch(mode=0o755)
    return str(directory)


@pytest.mark.parametrize(
    ("kind", "command", "expected"),
    [
        ("shell", None, Shell(None)),
        ("exec", b"ls -l", Shell(b"ls -l")),
        ("exec", b"", Shell(b"")),
        ("exec", b"echo \xff", Shell(b"echo \xff")),
        ("subsystem", b"sftp", Sftp()),
        ("exec", b"scp -t .", Scp(("-t", "."))),
        ("exec", b"scp -v -r -p -f -- 'a b'", Scp(("-v", "-r", "-p", "-f", "--", "a b"))),
        ("exec", b"internal-sftp", Shell(b"internal-sftp")),
    ],
)
def test_what_the_client_asks_for(kind: Kind, command: bytes | None, expected: program.Plan) -> None:
    assert program.plan(kind, command, None, path=NOWHERE) == expected


def test_the_hosts_own_scp_comes_first(tmp_path: Path) -> None:
    assert program.plan("exec", b"scp -t .", None, path=with_scp(tmp_path)) == Shell(b"scp -t .")


@pytest.mark.parametrize("kind", ["shell", "exec", "subsystem"])
@pytest.mark.parametrize("command", ["date", "", "/usr/lib/openssh/sftp-server"])
def test_a_forced_command_replaces_all(kind: Kind, command: str) -> None:
    asked = {"shell": None, "exec": b"scp -t .", "subsystem": b"sftp"}[kind]
    assert program.plan(kind, asked, command, path=NOWHERE) == Shell(command.encode())


@pytest.mark.parametrize(
    ("forced", "expected"),
    [
        ("internal-sftp", Sftp()),
        ("internal-sftp -R", Sftp(read_only=True)),
        ("internal-sftp -u 0027 -d '/srv/a b' -l INFO -f AUTH -e", Sftp(umask=0o27, directory="/srv/a b")),
    ],
)
def test_a_forced_internal_sftp(forced: str, expected: Sftp) -> None:
    assert program.plan("subsystem", b"sftp", forced, path=NOWHERE) == expected


@pytest.mark.parametrize(
    ("kind", "command"), [("shell", None), ("exec", b"id"), ("exec", b"sftp"), ("subsystem", b"other")]
)
def test_a_forced_internal_sftp_is_nothing_else(kind: Kind, command: bytes | None) -> None:
    with pytest.raises(Refused, match="sftp only"):
        program.plan(kind, command, "internal-sftp", path=NOWHERE)


@pytest.mark.parametrize("options", ["-P remove", "-p read", "-u", "-u 9", "-d", "-x", "-R -x", "-d 'a"])
def test_options_that_are_not_known_are_not_passed_over(options: str) -> None:
    with pytest.raises(Refused):
        program.plan("subsystem", b"sftp", f"internal-sftp {options}", path=NOWHERE)


def test_other_subsystems() -> None:
    with pytest.raises(Refused, match="no such subsystem"):
        program.plan("subsystem", b"netconf", None, path=NOWHERE)


@pytest.mark.parametrize(
    "command", [b"scp", b"scp -t", b"scp a b", b"scpx -t .", b"scp -t 'a", b"cd x; scp -t .", b"\xff scp -t ."]
)
def test_what_is_no_end_of_scp(command: bytes) -> None:
    assert program.scp_arguments(command) is None


@given(st.binary(max_size=40))
def test_any_command(command: bytes) -> None:
    words = program.scp_arguments(b"scp -t " + command)
    assert words is None or words[0] == "-t"


def test_login_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shells = tmp_path / "shells"
    monkeypatch.setattr(program, "SHELLS", shells)
    assert program.is_login_shell("/bin/sh")
    assert not program.is_login_shell("/usr/sbin/nologin")
    shells.write_text("# comment\n/bin/zsh\n")
    assert program.is_login_shell("/bin/zsh")
    assert not program.is_login_shell("/bin/sh")


@pytest.mark.parametrize(
    ("protocol", "cookie", "safe"),
    [
        ("MIT-MAGIC-COOKIE-1", "00ff" * 8, True),
        ("MIT-MAGIC-COOKIE-1", "00ff\nadd x", False),
        ("MIT-MAGIC-COOKIE-1", "00f", False),
        ("MIT-MAGIC-COOKIE-1", "", False),
        ("x\nremove y", "00ff", False),
        ("", "00ff", False),
        ("MIT", "00" * 129, False),
        ("MIT-MAGIC-COOKIE-1\n", "00ff", False),
        ("MIT-MAGIC-COOKIE-1", "00ff\n", False),
    ],
)
def test_what_may_be_given_to_xauth(protocol: str, cookie: str, safe: bool) -> None:
    assert program.is_safe_for_xauth(protocol, cookie) == safe
