"""A system with users of the test's own: in a child process, whose files hide the machine's and end with it."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[3]
ANSWER = 250  # the descriptor that the child of World.call answers by: keep it
_CLONE_NEWNS, _CLONE_NEWNET, _CLONE_NEWIPC = 0x00020000, 0x40000000, 0x08000000


@dataclass
class World:
    """What is in it: users with homes in /home, empty /run and /var/log, and the machine's /etc with some changes."""

    directory: Path
    passwd: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    shadow: list[str] = field(default_factory=list)
    etc: dict[str, str | None] = field(default_factory=dict)  # below /etc; None is removed

    def user(self, name: str, uid: int, *, shell: str = "/bin/sh", shadow: str = "*:20000:0:99999:7:::") -> None:
        """Add a user with a group of his own."""
        self.passwd.append(f"{name}:x:{uid}:{uid}:{name} of the tests:/home/{name}:{shell}")
        self.group.append(f"{name}:x:{uid}:")
        self.shadow.append(f"{name}:{shadow}")

    def call(self, body: Callable[[], T]) -> T:
        """Run it there as root, in a process that may do to itself what it likes; what it returned, pickled."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(reading)
                os.dup2(writing, ANSWER, inheritable=False)
                os.close(writing)
                self._enter()
                answer = pickle.dumps((True, body()))
                code = 0
            except BaseException:  # noqa: BLE001 - the parent raises it
                answer = pickle.dumps((False, traceback.format_exc()))
            finally:
                with open(ANSWER, "wb") as pipe:
                    pipe.write(answer)
                os._exit(code)
        os.close(writing)
        with open(reading, "rb") as pipe:
            data = pipe.read()
        os.waitpid(pid, 0)
        good, value = pickle.loads(data)
        assert good, value
        return value

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        mount("--make-rprivate", "/")
        mount("-t", "tmpfs", "none", str(self.directory))
        upper, work = self.directory / "upper", self.directory / "work"
        upper.mkdir()
        work.mkdir()
        mount("-t", "overlay", "none", "-o", f"lowerdir=/etc,upperdir={upper},workdir={work}", "/etc")
        for path in ("/home", "/run", "/var/log"):
            mount("-t", "tmpfs", "-o", "mode=755", "none", path)
        root = "root:x:0:0:root:/root:/bin/sh"
        write("/etc/passwd", root, *self.passwd)
        write("/etc/group", "root:x:0:", *self.group)
        write("/etc/shadow", "root:*:20000:0:99999:7:::", *self.shadow)
        write("/etc/nsswitch.conf", "passwd: files", "group: files", "shadow: files")
        for name, text in self.etc.items():
            path = Path("/etc") / name
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        for line in self.passwd:
            _, _, uid, gid, _, home, _ = line.split(":")
            Path(home).mkdir(mode=0o750)
            os.chown(home, int(uid), int(gid))


def write(path: str, *lines: str) -> None:
    """Make a file of these lines."""
    Path(path).write_text("".join(f"{line}\n" for line in lines))


def mount(*arguments: str) -> None:
    """mount(8), in the child's namespace."""
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=20)


def install_pam(service: str = "pqtun-sshd") -> None:
    """Put our PAM file where it belongs, in the child."""
    shutil.copy(REPOSITORY / "misc" / "pqtun-sshd.pam", f"/etc/pam.d/{service}")
