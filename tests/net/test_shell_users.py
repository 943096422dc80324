"""Several users log in to `pqtun sshd`: each is where sshd would put it, and nobody else's things are within reach."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.net.process import wait_until
from tests.net.shell_stage import ShellStage, shell_stage
from tests.net.ssh_clients import SSH_9
from tests.net.ssh_keys import ED25519, STRANGER
from tests.net.ssh_servers import PQTUN_SSHD, SSHD_9
from tests.net.terminal import Terminal
from tests.net.users import User

INSIDE = Path(__file__).with_name("inside.py")
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")
OF_PAM = {"MAIL", "MOTD_SHOWN"}  # which this sshd does without
# Since Debian 13 sessions have pam_umask(8), which leaves the group its rights where it is the user's own.
UMASK = 0o002 if "pam_umask.so" in Path("/etc/pam.d/common-session").read_text() else 0o022
REFUSED = "Permission denied (publickey)."
GLIBCS_OWN = 1 << 31 | 1 << 32  # signals 32 and 33: posix_spawn may leave them ignored, and nobody can change that
MARK = "PQTUN_TEST_OF_ROOT"  # in the environment that the daemon was started with


@pytest.fixture(scope="module")
def shell() -> Iterator[ShellStage]:
    os.environ[MARK] = "secret"
    with ExitStack() as stack:
        try:
            made = stack.enter_context(shell_stage(PQTUN_SSHD, SSHD_9))
        finally:
            del os.environ[MARK]
        key = made.keys.public(ED25519)
        for user in (
            made.users.add("nora", shell="/usr/sbin/nologin"),
            made.users.add("old", expires="10000"),  # 1997
            made.users.add("lost"),
        ):
            made.users.authorize(user, key)
        (made.users["lost"].directory / ".ssh").chmod(0o777)
        yield made


def said(shell: ShellStage, server: str, user: str, *options: str) -> dict[str, Any]:
    """What inside.py says in a session of the user."""
    argv = ["-i", str(shell.keys.path(ED25519)), "-l", user, *options, server, f"/usr/bin/python3 {INSIDE}"]
    found: dict[str, Any] = json.loads(shell.clients[SSH_9].run("ssh", *argv).stdout)
    return found


def own(shell: ShellStage, name: str) -> User:
    return shell.users[name]


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_session_is_that_of_the_user(shell: ShellStage, name: str) -> None:
    user, found = own(shell, name), said(shell, PQTUN_SSHD, name)
    uids, gids, groups = found["ids"]
    assert uids == [user.uid] * 3
    assert gids == [user.gid] * 3
    assert set(groups) == shell.users.gids(user)
    assert [int(found["status"][name], 16) for name in CAPABILITIES] == [0] * 4
    argv = ["-i", str(shell.keys.path(ED25519)), "-l", name, PQTUN_SSHD, "grep -E '^Sig(Blk|Ign)' /proc/self/status"]
    masks = [int(word, 16) for word in shell.clients[SSH_9].run("ssh", *argv).stdout.split()[1::2]]
    assert [mask & ~GLIBCS_OWN for mask in masks] == [0] * 2
    assert found["umask"] == UMASK
    assert found["cwd"] == user.home
    assert set(found["descriptors"]) == {"0", "1", "2"}
    assert all(target.startswith(("pipe:", "socket:")) for target in found["descriptors"].values())
    environment = found["environment"]
    wanted = {"HOME": user.home, "SHELL": user.shell, "USER": name, "LOGNAME": name}
    assert {key: environment.get(key) for key in wanted} == wanted
    assert MARK not in environment


@pytest.mark.parametrize("options", [(), ("-tt",)], ids=["pipes", "terminal"])
def test_a_session_is_what_sshd_makes_of_it(shell: ShellStage, options: tuple[str, ...]) -> None:
    """Limits, niceness, and no variable that sshd would not set either but those of PAM."""
    ours, theirs = (said(shell, server, "alice", *options) for server in (PQTUN_SSHD, SSHD_9))
    for part in ("ids", "limits", "nice", "cwd"):
        assert ours[part] == theirs[part], part
    assert set(ours["environment"]) - OF_PAM == set(theirs["environment"]) - OF_PAM
    for part in ("NoNewPrivs", "Seccomp", "CapBnd"):
        assert ours["status"][part] == theirs["status"][part], part


def test_nobody_else_is_within_reach(shell: ShellStage) -> None:
    """Two users at once, and root's daemons: nothing can be had of any process but one's own, and little of those."""
    with ExitStack() as stack:
        for name in ("alice", "bob"):
            argv = ["-tt", "-i", str(shell.keys.path(ED25519)), "-l", name, PQTUN_SSHD, f"echo {name} is in; cat"]
            watcher = shell.clients[SSH_9].spawn("ssh", *argv)
            stack.callback(watcher.stop)
            watcher.wait_output(f"{name} is in", 20)
        for name in ("alice", "bob"):
            uid = str(own(shell, name).uid)
            reach = said(shell, PQTUN_SSHD, name)["reach"]
            assert {id_ for process in reach for id_ in process["uids"]} == {uid}
            assert "cat" in {process["name"] for process in reach}
            # Of pqtun's own processes that run as the user, which hold sockets to root's, nothing is to be had either.
            for process in reach:
                if process["name"] not in ("cat", "bash", "sh"):
                    assert not any(process["can"][what] for what in ("environ", "fd", "mem", "ptrace")), process


def test_homes_and_files_of_others(shell: ShellStage) -> None:
    """Of another's home and of the daemon's files, nothing can be read."""
    directory = shell.keys.directory.parent / f"sshd-{shell.net.server}"
    secret = [path for path in (directory / "host-keys").iterdir() if path.suffix != ".pub"]
    paths = [*map(str, secret), str(directory / "audit.jsonl"), "/etc/shadow", own(shell, "bob").home]
    for path in paths:
        argv = ["-i", str(shell.keys.path(ED25519)), PQTUN_SSHD, f"test -r {path}"]
        assert shell.clients[SSH_9].run("ssh", *argv, check=False).returncode == 1, path
    assert len(secret) == 2


def test_a_terminal_belongs_to_its_user(shell: ShellStage) -> None:
    """It is the controlling terminal of a session of its own, it is the user's, and others cannot write to it."""
    client = shell.clients[SSH_9]
    watch = 'tty; stat -c "%U %a" $(tty); ps -o pid=,sid=,tpgid= -p $$; echo $SSH_TTY; echo "that is all"'
    watch = f'trap "exit 42" INT; {watch}; cat'
    argv = client.argv("ssh", "-tt", "-i", str(shell.keys.path(ED25519)), PQTUN_SSHD, watch)
    with Terminal(argv, env=client.all_environment()) as terminal:
        lines = terminal.wait("that is all").split()
        terminal.write("\x03")
        assert terminal.end() == 42
    tty, owner, mode, pid, session, foreground, variable = lines[:7]
    assert variable == tty
    assert (owner, int(mode, 8) & 0o006) == ("alice", 0)
    assert pid == session
    assert int(foreground) > 0


def test_what_is_refused_is_refused_alike(shell: ShellStage) -> None:
    """A wrong key, a user who does not exist, an expired one, one whose directory anybody may write to: one answer."""
    client = shell.clients[SSH_9]

    def answer(user: str, key: str) -> tuple[int, list[str]]:
        argv = ["-v", "-i", str(shell.keys.path(key)), "-l", user, PQTUN_SSHD, "true"]
        done = client.run("ssh", *argv, check=False)
        assert REFUSED in done.stderr
        told = [line.replace(user, "USER") for line in done.stderr.split("\n") if "uthenticat" in line]
        return done.returncode, [line for line in told if "Authenticating to" not in line]

    wrong = answer("alice", STRANGER)
    assert wrong[0] == 255
    for user in ("nobody-of-that-name", "old", "lost"):
        assert answer(user, ED25519) == wrong, user
    assert said(shell, PQTUN_SSHD, "alice")["cwd"] == "/home/alice"  # and an honest one comes in after that


def test_a_shell_that_refuses(shell: ShellStage) -> None:
    """A user without a login shell gets no command run."""
    argv = ["-i", str(shell.keys.path(ED25519)), "-l", "nora", PQTUN_SSHD, "echo ran"]
    done = shell.clients[SSH_9].run("ssh", *argv, check=False)
    assert done.returncode != 0
    assert "ran" not in done.stdout.split()


def test_many_users_at_once(shell: ShellStage) -> None:
    """Sessions of two users side by side, over and over: each is itself."""

    def check(name: str) -> None:
        argv = ["-i", str(shell.keys.path(ED25519)), "-l", name, PQTUN_SSHD, "id -un; echo $HOME"]
        assert shell.clients[SSH_9].run("ssh", *argv).stdout.split() == [name, f"/home/{name}"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check, ["alice", "bob"] * 8))


def test_nothing_stays_behind(shell: ShellStage) -> None:
    """When a session is over, so are its processes; what the user has put into the background stays, as with sshd."""
    argv = ["-i", str(shell.keys.path(ED25519)), "-l", "bob", PQTUN_SSHD]
    shell.clients[SSH_9].run("ssh", *argv, "nohup sleep 1000 >/dev/null 2>&1 </dev/null & echo $!")

    def of_bob() -> list[str]:
        names = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if f"Uid:\t{own(shell, 'bob').uid}\t" in text:
                names.append(text.split("\n", 1)[0].split("\t")[1])
        return names

    wait_until(lambda: of_bob() == ["sleep"], 10, f"the end of bob's processes but sleep; there are {of_bob()}")
