"""inside.py: what a program sees of itself and of its neighbours, as JSON; for a session's user to run.

It tries to get at every other process: its environment, its descriptors, its memory, ptrace(2), a signal. Needs nothing
but Python's standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
from collections.abc import Callable
from typing import Any

PTRACE_ATTACH, PTRACE_DETACH = 16, 17


def works(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


def attaches(pid: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None):
        return False
    os.waitpid(pid, 0)
    libc.ptrace(PTRACE_DETACH, pid, None, None)
    return True


def fields(pid: int | str) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}


def within_reach() -> list[dict[str, Any]]:
    """The processes that something can be had of."""
    own = {os.getpid()}
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            status = fields(pid)
        except OSError:
            continue
        if pid in own or status["State"].startswith("Z"):
            continue
        can = {
            "environ": works(lambda p=pid: open(f"/proc/{p}/environ", "rb").read()),  # type: ignore[misc]
            "fd": works(lambda p=pid: os.listdir(f"/proc/{p}/fd")),  # type: ignore[misc]
            "mem": works(lambda p=pid: open(f"/proc/{p}/mem", "rb").close()),  # type: ignore[misc]
            "cwd": works(lambda p=pid: os.readlink(f"/proc/{p}/cwd")),  # type: ignore[misc]
            "signal": works(lambda p=pid: os.kill(p, 0)),  # type: ignore[misc]
            "ptrace": attaches(pid),
        }
        if any(can.values()):
            found.append({"pid": pid, "name": status["Name"], "uids": status["Uid"].split(), "can": can})
    return found


def main() -> None:
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listdir had
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    umask = os.umask(0)
    os.umask(umask)
    names = [name for name in dir(resource) if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"]
    said = {
        "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "descriptors": descriptors,
        "umask": umask,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in names},
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "status": fields("self"),
        "nice": os.nice(0),
        "reach": within_reach(),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
