"""What goes wrong with a tunnel's path and daemons, at random, every few seconds."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.traffic import Site
from tests.net.lab import CLIENT4, CLIENT6, Conditions, Topology
from tests.net.pqtun import PqtunClient, PqtunServer
from tests.net.process import LabError, wait_until

PAUSE = (2.0, 8.0)  # seconds between two faults
KILL_PAUSE = 45.0  # and between two kills: connections are to live through the other faults too
RESTART_SECONDS = 2.0  # RestartSec of our units (misc/)
Daemon = PqtunClient | PqtunServer


def worker(daemon: Daemon) -> int:
    """The process id of a daemon's unprivileged worker; LabError if it has none."""
    assert daemon.process is not None
    pid = daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        raise LabError(f"pqtun {daemon.role} has no worker")
    return int(children[0])


class Faults(threading.Thread):
    """One fault after the other until end() is called; the path is good and the daemons run then."""

    def __init__(
        self, site: Site, net: Topology, client: PqtunClient, server: PqtunServer, arguments: tuple[str, ...], seed: str
    ) -> None:
        super().__init__(name="faults", daemon=True)
        assert net.wire is not None
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._site, self._net, self._wire = site, net, net.wire
        self._client, self._server, self._arguments = client, server, arguments
        self._dice = random.Random(seed)
        self._end = threading.Event()
        self._addresses = [(f"{CLIENT4}/24", f"{CLIENT6}/64"), ("192.0.2.11/24", "2001:db8:1::11/64")]
        self._killed = time.monotonic()
        self._path: list[Callable[[], None]] = [self.bad_path, self.cut, self.burst, self.address, self.stop]
        self._kills: list[Callable[[], None]] = [self.kill_client, self.kill_server]

    def run(self) -> None:
        """Until end()."""
        try:
            while not self._end.wait(self._dice.uniform(*PAUSE)):
                may_kill = time.monotonic() - self._killed > KILL_PAUSE
                fault = self._dice.choice(self._kills if may_kill and self._dice.random() < 0.5 else self._path)
                self.counts[fault.__name__] += 1
                fault()
        except Exception as error:  # noqa: BLE001 -- a thread that ends silently would look like success
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self._wire.set(**vars(Conditions()))

    def spare_daemons(self) -> None:
        """Kill none."""
        self._kills = self._path

    def end(self) -> None:
        """No further fault; then join()."""
        self._end.set()

    def bad_path(self) -> None:
        """Some seconds of everything."""
        shares = {name: self._dice.choice([0.0, 0.01, 0.1]) for name in ("loss", "reorder", "duplicate", "corrupt")}
        self._wire.set(**shares, delay=self._dice.choice([0.0, 0.01, 0.1]), rate=self._dice.choice([0, 5e6, 50e6]))
        self._end.wait(self._dice.uniform(3, 10))
        self._wire.set(**vars(Conditions()))

    def cut(self) -> None:
        """Nothing passes."""
        self._wire.set(cut=True)
        self._end.wait(self._dice.uniform(1, 15))
        self._wire.set(cut=False)

    def burst(self) -> None:
        """500 packets are lost in a row, or as many as there are in three seconds."""
        self._wire.set(burst=500, burst_every=1, burst_for=3.0)
        self._end.wait(3)
        self._wire.set(**vars(Conditions()))

    def address(self) -> None:
        """The client gets other addresses."""
        for old, new in zip(*self._addresses, strict=True):
            self._site.lab.readdress(self._net.client, "eth0", old, new)
        self._addresses.reverse()

    def stop(self) -> None:
        """The client's processes stand still."""
        assert self._client.process is not None
        os.killpg(self._client.process.pid, signal.SIGSTOP)
        self._end.wait(self._dice.uniform(1, 10))
        os.killpg(self._client.process.pid, signal.SIGCONT)

    def kill_client(self) -> None:
        """kill -9 of the client's worker."""
        self._kill(self._client)

    def kill_server(self) -> None:
        """kill -9 of the server's worker."""
        self._kill(self._server)

    def _kill(self, daemon: Daemon) -> None:
        self._killed = time.monotonic()
        process = daemon.process
        assert process is not None
        self._site.kills += 1
        os.kill(worker(daemon), signal.SIGKILL)
        wait_until(lambda: not process.running, 5, f"the end of pqtun {daemon.role} without its worker")
        if process.returncode == 0:
            self.failures.append(f"pqtun {daemon.role} ended with 0 when its worker was killed")
        time.sleep(RESTART_SECONDS)
        daemon.launch(*self._arguments).wait_output(f"{daemon.role} is ready", 20)
        # What broke because of the kill may come to light only now.
        self._site.kills += 1
