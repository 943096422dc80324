"""Who is logged in where: utmp(5), wtmp and lastlog, as far as this system keeps them.

Files that are missing stay so: Debian 13 has neither lastlog nor, without a package, utmp.
"""

import ctypes
import os
import platform
import re
import stat
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from pqtun.shell.sshd.accounts import Account

WTMP: Final = b"/var/log/wtmp"
LASTLOG: Final = Path("/var/log/lastlog")

# utmp(5)
_USER_PROCESS: Final = 7
_DEAD_PROCESS: Final = 8

_PTS: Final = re.compile(r"/dev/(pts/\d{1,10})", re.ASCII)
_MAX_TIME: Final = 2**31 - 1  # x86 keeps 32 bits


class _Narrow(ctypes.Structure):
    """struct utmpx where times have 32 bits on 64-bit machines too (__WORDSIZE_TIME64_COMPAT32): x86_64."""

    _fields_ = (
        ("ut_type", ctypes.c_short),
        ("ut_pid", ctypes.c_int32),
        ("ut_line", ctypes.c_char * 32),
        ("ut_id", ctypes.c_char * 4),
        ("ut_user", ctypes.c_char * 32),
        ("ut_host", ctypes.c_char * 256),
        ("ut_exit", ctypes.c_short * 2),
        ("ut_session", ctypes.c_int32),
        ("tv_sec", ctypes.c_int32),
        ("tv_usec", ctypes.c_int32),
        ("ut_addr_v6", ctypes.c_byte * 16),
        ("unused", ctypes.c_byte * 20),
    )


class _Wide(ctypes.Structure):
    """struct utmpx where times are long: aarch64."""

    _fields_ = (
        *_Narrow._fields_[:7],
        ("ut_session", ctypes.c_long),
        ("tv_sec", ctypes.c_long),
        ("tv_usec", ctypes.c_long),
        *_Narrow._fields_[10:],
    )


# Of each machine whose layout is known: the entry, and struct lastlog (time, line, host).
_LAYOUTS: Final = {
    "x86_64": (_Narrow, struct.Struct("=i32s256s")),
    "aarch64": (_Wide, struct.Struct("=q32s256s")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LastLogin:
    """What lastlog says of a user."""

    time: float  # seconds since 1970
    line: str
    host: str


def line_of(tty: str, account: Account) -> str | None:
    """The line, such as "pts/3", of a terminal; None unless it is a pseudo-terminal and belongs to the user."""
    match = _PTS.fullmatch(tty)
    if match is None:
        return None
    try:
        status = os.lstat(tty)
    except OSError:
        return None
    return match[1] if stat.S_ISCHR(status.st_mode) and status.st_uid == account.uid else None


def login(account: Account, tty: str, address: str, pid: int) -> bool:
    """Enter the user at that terminal, now, logged in from `address`; the entry is believed while `pid` lives.

    False, with nothing entered, if the terminal is not his. As root; never raises OSError, as a login is not to fail
    with its record.
    """
    line = line_of(tty, account)
    if line is None:
        return False
    now = time.time()
    _enter(_USER_PROCESS, line, account.name, address, pid, now)
    _write_last(account, line, address, now)
    return True


def logout(tty: str, pid: int) -> None:
    """Strike out what `login` entered with that `pid`, unless the terminal is somebody else's login by now."""
    match = _PTS.fullmatch(tty)
    if match is not None and _process_at(match[1]) in (None, pid):
        _enter(_DEAD_PROCESS, match[1], "", "", 0, time.time())


def last(account: Account) -> LastLogin | None:
    """The login before this one, if lastlog has it. Ask before `login`."""
    layout = _LAYOUTS.get(platform.machine())
    if layout is None:
        return None
    record = layout[1]
    try:
        with LASTLOG.open("rb") as file:
            data = os.pread(file.fileno(), record.size, account.uid * record.size)
    except OSError:
        return None
    if len(data) != record.size:
        return None
    moment, line, host = record.unpack(data)
    if moment == 0:
        return None
    return LastLogin(time=moment, line=_text(line), host=_text(host))


def _process_at(line: str) -> int | None:
    """The process whose login utmp has at a line; None if there is none."""
    layout = _LAYOUTS.get(platform.machine())
    if layout is None:
        return None
    wanted = layout[0]()
    wanted.ut_line = line.encode()[:32]
    libc = ctypes.CDLL(None)
    libc.getutxline.restype = ctypes.POINTER(layout[0])
    libc.setutxent()
    found = libc.getutxline(ctypes.byref(wanted))
    pid = int(found.contents.ut_pid) if found else None
    libc.endutxent()
    return pid


def _enter(kind: int, line: str, user: str, address: str, pid: int, now: float) -> None:
    layout = _LAYOUTS.get(platform.machine())
    if layout is None:
        return
    entry = layout[0]()
    entry.ut_type = kind
    entry.ut_pid = pid
    entry.ut_line = line.encode()[:32]
    entry.ut_id = line.encode()[-4:]  # what sshd takes, so that both write to the same entry of a terminal
    entry.ut_user = os.fsencode(user)[:32]
    entry.ut_host = address.encode()[:256]
    entry.tv_sec = min(int(now), _MAX_TIME)
    entry.tv_usec = int(now % 1 * 1_000_000)
    packed = ip_address(address).packed if address else b""
    ctypes.memmove(entry.ut_addr_v6, packed, len(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.setutxent()
    libc.pututxline(ctypes.byref(entry))  # fails where there is no utmp
    libc.endutxent()
    libc.updwtmpx(WTMP, ctypes.byref(entry))  # makes no file


def _write_last(account: Account, line: str, address: str, now: float) -> None:
    layout = _LAYOUTS.get(platform.machine())
    if layout is None:
        return
    record = layout[1]
    data = record.pack(min(int(now), _MAX_TIME), line.encode()[:32], address.encode()[:256])
    try:
        with open(os.open(LASTLOG, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0) as file:
            os.pwrite(file.fileno(), data, account.uid * record.size)  # a sparse file, one record a uid
    except OSError:
        pass  # no such file, or none that can be written


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")
