"""Our own daemons in a namespace of the lab, through the command line only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.net.lab import Lab
from tests.net.process import LabError, Process, wait_until

ROOT = Path(__file__).resolve().parents[2]
SERVER_ADDRESS, CLIENT_ADDRESS = "10.42.0.1", "10.43.0.1"
# Every machine has it; the user `pqtun` comes with `make install` only.
USER = "nobody"
# How fast minutes pass where tests wait for many of them. Much faster, and deadlines of a second would be missed.
CLOCK_SCALE = 20


def environment() -> Mapping[str, str]:
    """What `python -m pqtun` needs to be this checkout."""
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{ROOT}:{before}" if before else str(ROOT)}


def scaled(environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment in which a daemon's clock runs CLOCK_SCALE times as fast."""
    return {**environment, "PQTUN_CLOCK_SCALE": str(CLOCK_SCALE)}


def argv(*arguments: str) -> list[str]:
    """The command line of pqtun with these arguments."""
    return [sys.executable, "-m", "pqtun", *arguments]


class _Daemon:
    """`pqtun client` or `pqtun server` with run directory, state and keys below `directory`."""

    role: str

    def __init__(self, lab: Lab, ns: str, directory: Path) -> None:
        self.lab, self.ns, self.directory = lab, ns, directory
        self.run_directory = directory / "run"
        self.environment: Mapping[str, str] = environment()
        self.process: Process | None = None
        directory.mkdir(exist_ok=True)

    def command(self, *arguments: str, timeout: float = 30.0) -> str:
        """Run another pqtun command in the namespace; its stdout. LabError if it fails."""
        return self.lab.run(self.ns, *argv(*arguments), timeout=timeout, env=self.environment).stdout

    def launch(self, *arguments: str) -> Process:
        """Start the daemon, without waiting for it to be ready."""
        common = ["--run", str(self.run_directory), "--user", USER]
        command = argv(self.role, *common, *self._places(), *arguments)
        self.process = self.lab.spawn(self.ns, *command, env=self.environment)
        return self.process

    def start(self, *arguments: str, timeout: float = 20.0) -> Process:
        """Start the daemon and wait until `pqtun status` gets an answer; LabError with its output if it ends."""
        process = self.launch(*arguments)

        def ready() -> bool:
            if not process.running:
                raise LabError(f"pqtun {self.role}: {process.returncode}\n{process.output()}")
            # Cheaper than a status call that cannot succeed yet.
            if not any(entry.is_socket() for entry in self.run_directory.glob("*")):
                return False
            status = argv("status", self.role, "--run", str(self.run_directory))
            return self.lab.run(self.ns, *status, check=False, env=self.environment).returncode == 0

        try:
            wait_until(ready, timeout, f"pqtun {self.role}", interval=0.05)
        except LabError as error:
            raise LabError(f"{error}\n{process.output()}") from None
        return process

    def status(self) -> dict[str, Any]:
        """`pqtun status --json`."""
        said = self.command("status", self.role, "--run", str(self.run_directory), "--json")
        status: dict[str, Any] = json.loads(said)
        return status

    def stop(self) -> int:
        """SIGTERM and what it takes; the exit code."""
        assert self.process is not None
        return self.process.stop()

    def _places(self) -> list[str]:
        raise NotImplementedError


class PqtunServer(_Daemon):
    """`pqtun server` with keys of its own making in `directory`/keys, unless they are there already."""

    role = "server"

    def __init__(self, lab: Lab, ns: str, directory: Path) -> None:
        super().__init__(lab, ns, directory)
        self.keys = directory / "keys"
        if not self.keys.exists():
            self.command("keygen", "--keys", str(self.keys))

    def announce(self, *hosts: str, address: str, arguments: tuple[str, ...] = ()) -> str:
        """The records that announce this server for `hosts`, as zone text."""
        where = ["--address", address, "--keys", str(self.keys), "--format", "zone"]
        return self.command("announce", *hosts, *where, *arguments)

    def _places(self) -> list[str]:
        return ["--keys", str(self.keys)]


class PqtunClient(_Daemon):
    """`pqtun client` with its state in `directory`/state."""

    role = "client"

    def _places(self) -> list[str]:
        return ["--state", str(self.directory / "state")]
