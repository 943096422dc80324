"""What a session runs, and how a program is started in it (execve(2), credentials(7), tty(4))."""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn

from pqtun.shell.sshd.messages import Refused

Kind = Literal["shell", "exec", "subsystem"]

SHELLS: Final = Path("/etc/shells")
XAUTH_SECONDS: Final = 10  # a lock of ~/.Xauthority that somebody forgot is not waited for longer
_INTERNAL_SFTP: Final = "internal-sftp"
_FAILED: Final = 255  # what a child of ours that could not even start ends with, as ssh has it


@dataclass(frozen=True, slots=True)
class Shell:
    """The login shell, or a command that it runs. `command` is bytes as the client sent them."""

    command: bytes | None


@dataclass(frozen=True, slots=True)
class Sftp:
    """Our own SFTP server. The fields are options of sftp-server(8): -R, -u, -d."""

    read_only: bool = False
    umask: int | None = None
    directory: str | None = None


@dataclass(frozen=True, slots=True)
class Scp:
    """Our own end of scp's old protocol."""

    arguments: tuple[str, ...]


Plan = Shell | Sftp | Scp


def plan(kind: Kind, command: bytes | None, forced: str | None, *, path: str) -> Plan:
    """Return what to run: the key's forced command if there is one, else what the client asks for.

    `command` is exec's command or the subsystem's name; `path` is PATH, where a program scp is looked for. As with
    sshd, a forced ``internal-sftp`` is the SFTP server built in, and only for clients that ask for SFTP.
    Raises Refused.
    """
    asked_for_sftp = kind == "subsystem" and command == b"sftp"
    if forced is not None:
        words = forced.split()
        if not words or words[0] != _INTERNAL_SFTP:
            return Shell(forced.encode())
        if not asked_for_sftp:
            raise Refused("this key is for sftp only")
        return _internal_sftp(forced)
    if kind == "subsystem":
        if not asked_for_sftp:
            raise Refused("no such subsystem")
        return Sftp()
    if kind == "shell" or command is None:
        return Shell(None)
    if (arguments := scp_arguments(command)) is not None and shutil.which("scp", path=path) is None:
        return Scp(tuple(arguments))
    return Shell(command)


def _internal_sftp(forced: str) -> Sftp:
    try:
        words = shlex.split(forced)[1:]
    except ValueError:
        raise Refused("the forced internal-sftp has a quote that does not end") from None
    read_only, umask, directory = False, None, None
    while words:
        option = words.pop(0)
        if option == "-R":
            read_only = True
        elif option in ("-u", "-d", "-f", "-l") and words:
            value = words.pop(0)
            if option == "-u" and re.fullmatch("[0-7]{1,4}", value):
                umask = int(value, 8)
            elif option == "-d":
                directory = value
            elif option == "-u":
                raise Refused("the forced internal-sftp has no umask after -u")
        elif option != "-e":  # -e, -f and -l are about logging
            raise Refused(f"the forced internal-sftp has the option {option}, which is not known here")
    return Sftp(read_only, umask, directory)


def scp_arguments(command: bytes) -> list[str] | None:
    """Return the arguments if this is the command that scp -O has the other end run, else None."""
    try:
        words = shlex.split(command.decode())
    except (ValueError, UnicodeDecodeError):
        return None
    if words[:1] != ["scp"] or not {"-t", "-f"} & set(words[1:-1]):
        return None
    return words[1:]


def is_login_shell(shell: str) -> bool:
    """Whether shells(5) has it. sshd starts its SFTP server by the login shell, so one that is none forbids it."""
    try:
        lines = SHELLS.read_text(errors="replace").splitlines()
    except OSError:
        lines = ["/bin/sh"]
    return shell in (line.strip() for line in lines)


def is_safe_for_xauth(protocol: str, cookie: str) -> bool:
    """Whether both are what they ought to be, since they are written into a command of xauth(1)."""
    return bool(
        re.fullmatch(r"[A-Za-z0-9.:/_-]{1,64}", protocol) and re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,128}", cookie)
    )


@dataclass(frozen=True, slots=True)
class Cookie:
    """What X clients show to a forwarded display, and which display that is."""

    display: str  # as xauth(1) names it
    protocol: str
    data: str  # hexadecimal


def run(
    shell: str,
    command: bytes | None,
    *,
    environment: Mapping[str, str],
    stdio: Sequence[int],
    terminal: bool,
    cookie: Cookie | None,
    greeting: bytes = b"",
) -> NoReturn:
    """Become the login shell, or the command that it runs; in a child that was just forked.

    `stdio` are the descriptors for 0, 1 and 2; all others are closed. With `terminal`, 0 becomes the controlling one.
    `greeting` is written to the terminal first.
    """
    os.setsid()
    if terminal:
        fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
    take_descriptors(stdio)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # the host's own handlers, and what Python ignores
    home = environment.get("HOME", "/")
    try:
        os.chdir(home)
    except OSError as error:
        _complain(f"could not change to the home directory {home}: {error.strerror}")
    if greeting:
        os.write(1, greeting)
    if cookie is not None:
        _keep_cookie(cookie, environment)
    name = os.path.basename(shell)
    arguments = [f"-{name}".encode()] if command is None else [name.encode(), b"-c", command]
    try:
        os.execve(shell, arguments, dict(environment))
    except OSError as error:
        _complain(f"{shell}: {error.strerror}")
    os._exit(_FAILED)


def take_descriptors(fds: Sequence[int]) -> None:
    """Make `fds` the descriptors 0, 1, 2 and so on, inherited by programs, and close all others."""
    # Above all the targets first, lest one overwrites another that is still needed.
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD, len(fds) + 3) for fd in fds]
    for target, fd in enumerate(spare):
        os.dup2(fd, target, inheritable=True)
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))


def _keep_cookie(cookie: Cookie, environment: Mapping[str, str]) -> None:
    lines = f"remove {cookie.display}\nadd {cookie.display} {cookie.protocol} {cookie.data}\n"
    try:
        subprocess.run(
            ["xauth", "-q", "-"],
            input=lines.encode(),
            env=dict(environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=XAUTH_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        _complain("xauth failed, so X clients will be refused")


def _complain(text: str) -> None:
    os.write(2, f"pqtun sshd: {text}\n".encode())
