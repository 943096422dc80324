"""shell_probe.py login|echo COUNT ARGV...: seconds until a login shell's first prompt, or of the echo of keys, as JSON.

Runs where the ssh client runs, so that nothing of the lab is in the times.
"""

from __future__ import annotations

import json
import os
import pty
import random
import select
import sys
import time

PROMPT = b"$ "
TIMEOUT = 20.0


def begin(argv: list[str]) -> tuple[int, int]:
    """Start the program in a terminal; its process id and the other end."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(argv[0], argv)
    return pid, master


def read_until(master: int, text: bytes) -> None:
    found, end = b"", time.monotonic() + TIMEOUT
    while text not in found:
        if not select.select([master], [], [], max(0, end - time.monotonic()))[0]:
            raise SystemExit(f"{text!r} did not come; there was {found!r}")
        try:
            found += os.read(master, 65_536)
        except OSError:
            raise SystemExit(f"it ended; there was {found!r}") from None


def finish(pid: int, master: int) -> None:
    """At a prompt: leave the shell."""
    os.write(master, b"exit\r")
    while True:
        try:
            if not os.read(master, 65_536):
                break
        except OSError:  # EIO: nobody has the terminal open any more
            break
    os.close(master)
    os.waitpid(pid, 0)


def login(argv: list[str]) -> float:
    started = time.perf_counter()
    pid, master = begin(argv)
    read_until(master, PROMPT)
    took = time.perf_counter() - started
    finish(pid, master)
    return took


def echo(argv: list[str], count: int) -> list[float]:
    """As a person types: one key at a time, with pauses; the far terminal echoes it."""
    pid, master = begin(argv)
    read_until(master, PROMPT)
    os.write(master, b"echo re''ady; cat\r")
    read_until(master, b"ready\r\n")
    chance, times = random.Random(1), []
    for number in range(count):
        time.sleep(chance.uniform(0.01, 0.05))  # not a wait for anything: it is the pace of typing
        letter = bytes([97 + number % 26])
        started = time.perf_counter()
        os.write(master, letter)
        read_until(master, letter)
        times.append(time.perf_counter() - started)
    os.write(master, b"\x03")
    read_until(master, PROMPT)
    finish(pid, master)
    return times


def main() -> None:
    what, count, *argv = sys.argv[1:]
    times = [login(argv) for _ in range(int(count))] if what == "login" else echo(argv, int(count))
    print(json.dumps(times))


if __name__ == "__main__":
    main()
