"""How old passwords and accounts may become, as shadow(5) has it."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHADOW: Final = Path("/etc/shadow")
MAX_SHADOW: Final = 16 << 20  # bytes
DAY: Final = 86400  # seconds
NEVER: Final = -1  # an empty field


@dataclass(frozen=True, slots=True, kw_only=True)
class Aging:
    """Fields of shadow(5): days since 1970, or of length; -1 is an empty field."""

    password: str
    changed: int
    maximum: int
    inactive: int
    expires: int


class _Spwd(ctypes.Structure):
    """struct spwd of <shadow.h>."""

    _fields_ = (
        ("sp_namp", ctypes.c_char_p),
        ("sp_pwdp", ctypes.c_char_p),
        ("sp_lstchg", ctypes.c_long),
        ("sp_min", ctypes.c_long),
        ("sp_max", ctypes.c_long),
        ("sp_warn", ctypes.c_long),
        ("sp_inact", ctypes.c_long),
        ("sp_expire", ctypes.c_long),
        ("sp_flag", ctypes.c_ulong),
    )


def aging_of(name: str) -> Aging | None:
    """The shadow entry through NSS; getspnam(3) by ctypes, as Python 3.13 has no spwd.

    None where the user has no entry, and where it may not be read.
    """
    try:
        getspnam = ctypes.CDLL(None).getspnam
    except AttributeError:
        return _of_file(name)  # musl
    getspnam.restype = ctypes.POINTER(_Spwd)
    getspnam.argtypes = [ctypes.c_char_p]
    found = getspnam(os.fsencode(name))
    if not found:
        return None
    entry = found.contents
    return Aging(
        password=os.fsdecode(entry.sp_pwdp or b""),
        changed=entry.sp_lstchg,
        maximum=entry.sp_max,
        inactive=entry.sp_inact,
        expires=entry.sp_expire,
    )


def _of_file(name: str) -> Aging | None:
    try:
        with SHADOW.open("rb") as file:
            lines = file.read(MAX_SHADOW).splitlines()
    except OSError:
        return None
    wanted = os.fsencode(name)
    return next((parse(line) for line in lines if line.split(b":", 1)[0] == wanted), None)


def parse(line: bytes) -> Aging | None:
    """A line of shadow(5); None if it is none."""
    parts = line.split(b":")
    if len(parts) != 9:
        return None
    try:
        days = [int(part) if part else NEVER for part in parts[2:8]]
    except ValueError:
        return None
    changed, _, maximum, _, inactive, expires = days
    return Aging(password=os.fsdecode(parts[1]), changed=changed, maximum=maximum, inactive=inactive, expires=expires)
