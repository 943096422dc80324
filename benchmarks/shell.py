"""The shell beside OpenSSH, both over the same tunnel: copies, forwarded TCP, the first prompt, the echo of keys.

In each repetition every pair of client and server is measured, in an order that changes. Files are in memory.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import ROOT, write_json
from benchmarks.samples import Samples, spread
from tests.net.lab import Lab
from tests.net.process import LabError, wait_until
from tests.net.shell_stage import ShellStage
from tests.net.ssh_clients import PQTUN_SSH, SSH_9, SSH_10, SshClient
from tests.net.ssh_keys import ED25519
from tests.net.ssh_servers import PQTUN_SSHD, SSHD_9, SSHD_10

PROBE = str(Path(__file__).with_name("shell_probe.py"))
# The last two tell which of our ends costs what.
PAIRS: Mapping[str, tuple[str, str]] = {
    "pqtun": (PQTUN_SSH, PQTUN_SSHD),
    "openssh": (SSH_9, SSHD_9),
    "openssh-10.6": (SSH_10, SSHD_10),
    "pqtun-client": (PQTUN_SSH, SSHD_9),
    "pqtun-server": (SSH_9, PQTUN_SSHD),
}
OURS, THEIRS = "pqtun", "openssh"
IPERF_PORT = 5201


@dataclass(frozen=True)
class Measure:
    """A line of the table; `goal` holds of our median and OpenSSH's, and says itself in words."""

    key: str
    title: str
    unit: str
    factor: float
    goal: Callable[[float, float], bool]
    words: str


def _at_least_half(ours: float, theirs: float) -> bool:
    return ours >= 0.5 * theirs


MEASURES = (
    Measure("scp_up", "scp to the server", "MB/s", 1e-6, _at_least_half, ">= 0.5 x"),
    Measure("scp_down", "scp from the server", "MB/s", 1e-6, _at_least_half, ">= 0.5 x"),
    Measure("local_up", "-L, to the server", "MB/s", 1e-6, _at_least_half, ">= 0.5 x"),
    Measure("local_down", "-L, from the server", "MB/s", 1e-6, _at_least_half, ">= 0.5 x"),
    Measure("login", "login to the first prompt", "ms", 1e3, lambda ours, theirs: ours <= 1.3 * theirs, "<= 1.3 x"),
    Measure("echo", "echo of a key, median", "ms", 1e3, lambda ours, theirs: ours <= theirs + 0.002, "<= 2 ms more"),
)


class Pair:
    """A client with a server, and a directory in memory on both hosts."""

    def __init__(self, stage: ShellStage, name: str, directory: Path) -> None:
        client, server = PAIRS[name]
        self._stage, self._name, self._directory = stage, name, directory
        self._client: SshClient = stage.clients[client]
        self._host = stage.server(server).name
        self._identity = ("-i", str(stage.keys.path(ED25519)))

    def measure(self, samples: Samples, size: int, seconds: float, logins: int, keys: int) -> None:
        """One repetition."""
        self._copies(samples, size)
        self._forwards(samples, seconds)
        argv = self._client.words("ssh", *self._identity, "-tt", self._host)
        for key, count in (("login", logins), ("echo", keys)):
            full = self._client.argv_below([sys.executable, PROBE, key, str(count)], argv)[4:]  # what Lab.run adds
            said = self._stage.lab.run(self._client.ns, *full, env=self._client.environment, timeout=120)
            times: list[float] = json.loads(said.stdout)
            for seconds in times[1:] if key == "login" else [sorted(times)[len(times) // 2]]:
                samples.add(self._name, key, seconds)

    def _copies(self, samples: Samples, size: int) -> None:
        source, there, back = (self._directory / name for name in ("source", "there", "back"))
        wanted = _digest(source)
        for key, pair in (("scp_up", (source, f"{self._host}:{there}")), ("scp_down", (f"{self._host}:{there}", back))):
            began = time.monotonic()
            self._client.run("scp", "-q", *self._identity, *map(str, pair), timeout=300)
            samples.add(self._name, key, size / (time.monotonic() - began))
        if (_digest(there), _digest(back)) != (wanted, wanted):
            raise LabError(f"{self._name}: what arrived has another digest")
        there.unlink()
        back.unlink()

    def _forwards(self, samples: Samples, seconds: float) -> None:
        lab, net, (port,) = self._stage.lab, self._stage.net, self._stage.ports(1)
        ssh = self._client.spawn(
            "ssh",
            "-N",
            *self._identity,
            "-L",
            f"{port}:127.0.0.1:{IPERF_PORT}",
            "-o",
            "ExitOnForwardFailure=yes",
            self._host,
        )
        try:
            wait_until(lambda: lab.listening(net.client, port) or not ssh.running, 20, "the forward")
            for key, reverse in (("local_up", []), ("local_down", ["-R"])):
                sink = lab.spawn(net.server, "iperf3", "-s", "-1", "-p", str(IPERF_PORT))
                lab.wait_listening(sink, net.server, IPERF_PORT)
                argv = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", str(seconds), "-J", *reverse]
                said = json.loads(lab.run(net.client, *argv, timeout=seconds + 30).stdout)
                samples.add(self._name, key, float(said["end"]["sum_received"]["bits_per_second"]) / 8)
                sink.kill()
        finally:
            ssh.stop()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def in_memory(size: int) -> Iterator[Path]:
    """A directory that everybody may write to, with a file of random bytes."""
    directory = Path(f"/dev/shm/pqtun-benchmark-{os.getpid()}")
    directory.mkdir()
    try:
        directory.chmod(0o777)
        (directory / "source").write_bytes(os.urandom(size))
        (directory / "source").chmod(0o644)
        yield directory
    finally:
        shutil.rmtree(directory)


def table(samples: Samples, names: Sequence[str]) -> str:
    """Markdown: medians with their spread, and the goals where both sides were measured."""
    lines = [f"|  | {' | '.join(names)} | goal | found |", "|" + "---|" * (len(names) + 3)]
    for measure in MEASURES:
        cells = []
        for name in names:
            values = [value * measure.factor for value in samples.of(name, measure.key)]
            low, high = spread(values) if values else (0.0, 0.0)
            middle = samples.median(name, measure.key)
            cells.append("-" if middle is None else f"{middle * measure.factor:.4g} ({low:.3g}-{high:.3g})")
        ours, theirs = samples.median(OURS, measure.key), samples.median(THEIRS, measure.key)
        found = ""
        if ours is not None and theirs is not None:
            found = f"{(ours - theirs) * 1e3:+.2f} ms" if measure.key == "echo" else f"{ours / theirs:.2f} x"
            found += "" if measure.goal(ours, theirs) else " MISSED"
        lines.append(f"| {measure.title}, {measure.unit} | {' | '.join(cells)} | {measure.words} | {found} |")
    return "\n".join(lines)


def met(samples: Samples) -> bool:
    """Whether all goals are met."""
    for measure in MEASURES:
        ours, theirs = samples.median(OURS, measure.key), samples.median(THEIRS, measure.key)
        if ours is None or theirs is None or not measure.goal(ours, theirs):
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file; 1 if something failed or, with --check, a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shell", description=__doc__)
    parser.add_argument("--only", default=",".join(PAIRS), help="comma between them (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=3, help="of each forwarded stream")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--logins", type=int, default=6, help="each repetition; the first does not count")
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--check", action="store_true", help="fail where a goal is missed")
    parser.add_argument("--no-json", action="store_true", help="leave benchmarks/results alone")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    compileall.compile_dir(ROOT / "pqtun", quiet=2)  # as an installation has it; the user here may not write there
    samples, failures, size = Samples(), list[str](), int(options.megabytes * 1e6)
    with Lab() as lab, in_memory(size) as directory:
        stage = ShellStage(lab)
        for repetition in range(options.repetitions):
            for name in random.Random(repetition).sample(names, len(names)):
                try:
                    pair = Pair(stage, name, directory)
                    pair.measure(samples, size, options.seconds, options.logins, options.keys)
                except LabError as error:
                    failures.append(f"{name}: {error}")
                    print(failures[-1], file=sys.stderr)
    print(table(samples, names))
    if not options.no_json:
        setting = {key: value for key, value in vars(options).items() if key not in ("check", "no_json")}
        path = write_json("shell", {"setting": setting, "failures": failures, **samples.summary()})
        print(f"all samples: {path}")
    return 1 if failures or (options.check and not met(samples)) else 0


if __name__ == "__main__":
    sys.exit(main())
