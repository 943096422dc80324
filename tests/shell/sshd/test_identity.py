import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pqtun.shell.sshd import accounts, environment, identity
from pqtun.shell.sshd.permission import Permission
from tests.shell.sshd.world import ANSWER

pytestmark = pytest.mark.root

PERMISSION = Permission(origin="test", key_type="ssh-ed25519", fingerprint="SHA256:x")


class Ends:
    source, source_port, own, own_port = "10.43.0.7", 50000, "10.42.0.1", 42422


# What a program sees of itself, as the first process of a session would.
LOOK = """
import os, json, signal, resource
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
descriptors = {}
for name in os.listdir("/proc/self/fd"):
    try:
        descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        pass  # that of listdir itself
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "umask": os.umask(0),
    "caps": {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")},
    "signals": {name: int(status[name], 16) for name in ("SigBlk", "SigIgn", "SigCgt")},
    "no_new_privs": int(status["NoNewPrivs"]), "descriptors": descriptors, "cwd": os.getcwd(),
    "environ": dict(os.environ), "oom": int(open("/proc/self/oom_score_adj").read()),
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "dumpable": os.stat("/proc/self/stat").st_uid,
}))
"""


def look(name: str, *, keep: tuple[str, ...] = (), before=lambda: None) -> dict:
    """Become that user in a fork and look from a program that it executes."""
    account = accounts.find(name)
    reading, writing = os.pipe()
    before()
    if os.fork() == 0:
        identity.become(account, keep=[writing])
        os.dup2(writing, 1)
        os.close(writing)
        # No closing of descriptors here: what is left open must be seen.
        variables = environment.of_login(account, PERMISSION, Ends())
        os.execve("/usr/bin/python3", ["python3", "-I", "-c", LOOK], variables)
    os.close(writing)
    os.wait()
    with open(reading) as pipe:
        return json.load(pipe)


def spoil() -> None:
    """Be in as bad a state as a service can be."""
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Path("/proc/self/oom_score_adj").write_text("-900")
    except PermissionError:
        pass  # a container without CAP_SYS_RESOURCE
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
    for number in (100, 300, 500):
        os.dup2(os.open("/etc/shadow", os.O_RDONLY), number, inheritable=True)
    os.environ["SECRET"] = "of the service"


def test_a_user_has_what_is_his_and_nothing_of_roots(world):
    seen = world.call(lambda: look("alice", before=spoil))
    assert seen["uid"] == [4001] * 3
    assert seen["gid"] == [4001] * 3
    assert sorted(seen["groups"]) == [4001, 4100, 4101]
    assert seen["umask"] == 0o022
    assert [seen["caps"][name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0] * 4
    assert seen["signals"]["SigBlk"] == 0
    assert seen["oom"] == 0
    assert seen["nofile"] == [512, 1024]
    assert seen["cwd"] == "/home/alice"
    assert seen["dumpable"] == 4001
    assert set(seen["descriptors"]) == {"0", "1", "2"}
    assert seen["descriptors"]["0"] == seen["descriptors"]["2"] == "/dev/null"
    assert "SECRET" not in seen["environ"]
    assert set(seen["environ"]) - {"LC_CTYPE"} >= {"USER", "LOGNAME", "HOME", "PATH", "SHELL", "SSH_CONNECTION"}


def test_sudo_can_work(world):
    seen = world.call(lambda: look("alice"))
    assert seen["no_new_privs"] == 0
    assert seen["caps"]["CapBnd"] != 0


def test_ignored_signals_are_not_passed_on(world):
    """Python ignores SIGPIPE itself, so a shell tells: what a process ignores at its start, it cannot trap."""

    def ignored() -> str:
        account = accounts.find("bob")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        reading, writing = os.pipe()
        if os.fork() == 0:
            identity.become(account, keep=[writing])
            os.dup2(writing, 1)
            os.execv("/bin/grep", ["grep", "SigIgn", "/proc/self/status"])
        os.close(writing)
        os.wait()
        return os.read(reading, 100).decode()

    glibcs_own = 1 << 31 | 1 << 32  # signals 32 and 33, which it lets nobody set
    assert int(world.call(ignored).split()[1], 16) & ~glibcs_own == 0


def test_root_logs_in_too(world):
    seen = world.call(lambda: look("root", before=spoil))
    assert seen["uid"] == [0] * 3
    assert seen["groups"] == [0]
    assert seen["caps"]["CapInh"] == seen["caps"]["CapAmb"] == 0
    assert seen["caps"]["CapEff"] != 0
    assert seen["umask"] == 0o022


def test_a_home_that_is_missing_is_the_root_directory(world):
    def without_home() -> tuple[bool, str]:
        account = accounts.find("alice")
        os.rmdir("/home/alice")
        return identity.become(account, keep=[ANSWER]), os.getcwd()

    assert world.call(without_home) == (False, "/")


def test_until_it_executes_a_program_the_user_cannot_trace_it(world):
    def traced() -> bool:
        account = accounts.find("alice")
        ready_read, ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            identity.become(account, keep=[ready])
            os.write(ready, b"x")
            signal.pause()
        os.read(ready_read, 1)
        # As the same user: /proc/PID/mem is what ptrace(2) may see.
        code = f"open('/proc/{pid}/mem', 'rb')"
        result = subprocess.run([sys.executable, "-I", "-c", code], user=4001, group=4001, extra_groups=[], stderr=-3)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return result.returncode == 0

    assert not world.call(traced)


def test_the_way_back_to_root_is_closed(world):
    def errors() -> list[str]:
        identity.become(accounts.find("alice"), keep=[ANSWER])
        found = []
        for way in (
            lambda: os.setuid(0),
            lambda: os.setresuid(0, 0, 0),
            lambda: os.setgid(0),
            lambda: os.setgroups([0]),
        ):
            try:
                way()
            except PermissionError as error:
                found.append(type(error).__name__)
        try:
            Path("/etc/shadow").read_text()
        except PermissionError:
            found.append("shadow")
        return found

    assert world.call(errors) == ["PermissionError"] * 4 + ["shadow"]


def test_descriptors_to_keep_are_kept_in_any_order(world):
    def open_ones() -> list[int]:
        for number in (7, 9, 40):
            os.dup2(os.open("/dev/zero", os.O_RDONLY), number)
        identity.become(accounts.find("alice"), keep=[40, ANSWER, 7])
        return [number for number in range(300) if is_open(number)]

    assert world.call(open_ones) == [0, 1, 2, 7, 40, ANSWER]


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
