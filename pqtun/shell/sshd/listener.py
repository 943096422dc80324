"""The listener: accepts connections, bounds them, and forks a monitor for each; it keeps the audit file.

Root's, of one thread, and without secrets: whatever the network sends, nothing of it is read here.
"""

import itertools
import logging
import os
import resource
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from pqtun import __version__
from pqtun.daemon.loglimit import LogLimit
from pqtun.daemon.settings import SshdSettings
from pqtun.protocol.errors import UserError
from pqtun.rates.buckets import TokenBucket
from pqtun.shell.audit import AuditLog
from pqtun.shell.sshd import addresses, confinement, messages, monitor, process
from pqtun.shell.sshd.addresses import Place
from pqtun.shell.sshd.authentication import Authentication
from pqtun.shell.sshd.limits import Limits
from pqtun.shell.sshd.link import Link, socket_path
from pqtun.shell.sshd.login import Login
from pqtun.shell.sshd.messages import MessageError
from pqtun.shell.sshd.monitor import Monitor
from pqtun.shell.sshd.signer import Signer
from pqtun.shell.sshd.status import StatusSocket
from pqtun.shell.sshd.worker import Workers

log = logging.getLogger(__name__)

ACCEPTED_AT_ONCE: Final = 16
SETTLE_SECONDS: Final = 0.3  # a change of addresses is several messages
RETRY_SECONDS: Final = 1.0  # after a failure to accept, fork or listen
REFUSALS: Final = 20.0  # of audit lines by those who are not logged in, at once, and one in ten seconds
REFUSALS_A_SECOND: Final = 0.1
_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# linux/rtnetlink.h
_RTMGRP_LINK: Final = 0x1
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV6_IFADDR: Final = 0x100
_NETLINK_BYTES: Final = 1 << 16


@dataclass(slots=True)
class _Monitor:
    """A connection's monitor, as the listener knows it."""

    sock: socket.socket
    pid: int | None  # None: another listener forked it
    known: bool = True  # False until one of another listener has said whose it is


class Listener:
    """Serves until it is told to stop."""

    def __init__(
        self,
        settings: SshdSettings,
        deliver_to: IPv4Address | None,
        workers: Workers,
        signer: Signer,
        audit: AuditLog | None,
        control: socket.socket,
    ) -> None:
        """Raises UserError: cannot listen."""
        self._settings = settings
        self._deliver_to = deliver_to
        self._workers = workers
        self._signer = signer
        self._audit = audit
        self._limits = Limits(
            startups=settings.max_startups,
            startups_source=settings.max_startups_source,
            user=settings.max_connections_user,
        )
        self._monitors: dict[int, _Monitor] = {}
        self._numbers = itertools.count(1)
        self._name = os.urandom(4).hex()  # of this run, in the names of its connections
        self._refusals = TokenBucket(REFUSALS_A_SECOND, REFUSALS, time.monotonic())
        self._selector = selectors.DefaultSelector()
        self._since = time.monotonic()
        self._control = StatusSocket(control, self._selector, self._status)
        self._place: Place | None = None
        self._started = False
        self._sockets: list[socket.socket] = []
        self._look_at: float | None = None  # when to see where to listen
        self._over = False
        self._code = 0
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self._joining = _listen_for_monitors(settings.run)
        self._wake, self._waker = socket.socketpair()
        # Each connection takes a descriptor here, and services get 1024 at first. What users get stays as it was.
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors[1], self._descriptors[1]))
        log.addFilter(LogLimit(time.monotonic))

    @property
    def counters(self) -> Counter[str]:
        """What was let in and what was not, by reason."""
        return self._limits.counters

    def _status(self) -> dict[str, Any]:
        addresses = [] if self._place is None else [str(address) for address in self._place.addresses]
        return {
            "role": "sshd",
            "version": __version__,
            "pid": os.getpid(),
            "uptime": time.monotonic() - self._since,
            "interface": self._settings.interface,
            "addresses": addresses,
            "port": self._settings.port,
            "starting": self._limits.starting,
            "users": self._limits.users,
            "counters": dict(self.counters),
        }

    def run(self, ready: Callable[[], None]) -> int:
        """Serve until a signal or the end of the signer; returns the exit code. Logins stay. Raises UserError."""
        self._watch_signals()
        for sock, readable in (
            (self._wake, self._woken),
            (self._netlink, self._network_changed),
            (self._joining, self._join),
        ):
            self._selector.register(sock, selectors.EVENT_READ, readable)
        try:
            self._look()
            if self._place is None:
                log.warning("waits for %s, which is not there yet or has no address", self._settings.interface)
            self._started = True
            ready()
            while not self._over:
                self._turn()
        finally:
            self._close()
        return self._code

    def _turn(self) -> None:
        left = None if self._look_at is None else self._look_at - time.monotonic()
        if left is not None and left <= 0:
            self._look()
            return
        for key, _ in self._selector.select(left):
            key.data()

    # --- signals ---

    def _watch_signals(self) -> None:
        for sock in (self._wake, self._waker):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (*_STOPS, signal.SIGCHLD):
            if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
                signal.signal(number, lambda *_: None)

    def _woken(self) -> None:
        for number in set(self._wake.recv(4096)):
            if number != signal.SIGCHLD:
                log.info("sshd stops (%s)", signal.Signals(number).name)
                self._over = True
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._signer.pid:
                log.error("the process that has the host keys ended unexpectedly")
                self._over, self._code = True, 1
            for known in self._monitors.values():
                if known.pid == pid:
                    known.pid = None

    # --- where to listen ---

    def _network_changed(self) -> None:
        try:
            while self._netlink.recv(_NETLINK_BYTES):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: so much has changed that the kernel could not tell all of it
        if self._look_at is None:
            self._look_at = time.monotonic() + SETTLE_SECONDS

    def _look(self) -> None:
        """Listen where the tunnel's device has its addresses now. Raises UserError if it cannot, at the start."""
        self._look_at = None
        place = addresses.find(self._settings.interface, self._settings.address, self._deliver_to)
        if place == self._place:
            return
        self._stop_listening()
        if place is None:
            log.warning("waits for %s, which is gone", self._settings.interface)
            return
        try:
            self._sockets = addresses.listen(place, self._settings.port)
        except (OSError, UserError) as error:
            if not self._started and isinstance(error, UserError):
                raise
            log.warning("%s", error)
            self._look_at = time.monotonic() + RETRY_SECONDS
            return
        self._place = place
        self._start_listening()
        where = ", ".join(map(str, place.addresses))
        log.info("listens on %s (%s) port %d", where, place.device, self._settings.port)

    def _start_listening(self) -> None:
        for sock in self._sockets:
            self._selector.register(sock, selectors.EVENT_READ, lambda sock=sock: self._accept_some(sock))

    def _stop_listening(self) -> None:
        for sock in self._sockets:
            self._selector.unregister(sock)
        addresses.close(self._sockets)
        self._sockets, self._place = [], None

    # --- connections ---

    def _accept_some(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if listening not in self._sockets:
                return  # closed since it was seen to be readable
            try:
                sock, source = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self.counters["dropped_no_descriptor"] += 1
                log.warning("cannot accept connections: %s", error.strerror)
                self._stop_listening()
                self._look_at = time.monotonic() + RETRY_SECONDS
                return
            with sock:
                self._accepted(sock, source[0], source[1])

    def _accepted(self, sock: socket.socket, source: str, port: int) -> None:
        client = self._place.client(source) if self._place is not None else None
        if client is None:
            self.counters["dropped_not_from_tunnel"] += 1
            return
        if not self._limits.admit(client, time.monotonic()):
            return
        number = next(self._numbers)
        if (victim := self._limits.begin(number, client)) is not None:
            self._end_soon(victim)
        own, own_port = sock.getsockname()[:2]
        login = Login(
            settings=self._settings,
            name=f"{self._name}-{number}",
            source=source,
            source_port=port,
            own=own,
            own_port=own_port,
        )
        try:
            self._begin(number, sock, client, login)
        except OSError as error:
            self.counters["dropped_no_process"] += 1
            log.warning("cannot begin a connection: %s", error.strerror)
            self._limits.end(number, time.monotonic(), failed=False)

    def _begin(self, number: int, sock: socket.socket, client: IPv4Address, login: Login) -> None:
        """Fork the monitor. Raises OSError."""
        # A login outlives the tunnel's device, which is another one once the tunnel's server was restarted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")
        signing = self._signer.connect()
        ours, theirs = messages.pair()
        with signing, theirs:
            try:
                pid = process.start(
                    "sshd: connected",
                    lambda: self._be_monitor(sock, client, login, Link(theirs, login.settings.run), signing),
                )
            except OSError:
                ours.close()
                raise
        self._take(number, _Monitor(ours, pid))

    def _be_monitor(
        self, sock: socket.socket, client: IPv4Address, login: Login, link: Link, signing: socket.socket
    ) -> None:
        """The monitor's process. Everything of the listener's is closed; its objects stay referred to, and unused."""
        keep = [sock.fileno(), link.fileno(), signing.fileno()]
        confinement.close_all_but(keep if self._workers.network is None else [*keep, self._workers.network])
        resource.setrlimit(resource.RLIMIT_NOFILE, self._descriptors)
        confinement.be_killable()
        worker = monitor.start_worker(self._workers, sock)
        confinement.close_all_but([link.fileno(), signing.fileno(), worker.calls.fileno(), worker.signing.fileno()])
        Monitor(worker, login, client, Authentication(login.settings), link, signing).run()

    def _take(self, number: int, known: _Monitor) -> None:
        known.sock.setblocking(False)
        self._monitors[number] = known
        self._selector.register(known.sock, selectors.EVENT_READ, lambda: self._heard(number))

    def _end_soon(self, number: int) -> None:
        known = self._monitors[number]
        if known.pid is not None:
            os.kill(known.pid, signal.SIGTERM)

    def _join(self) -> None:
        """A monitor that the listener before us forked."""
        try:
            sock, _ = self._joining.accept()
        except OSError:
            return
        self._take(next(self._numbers), _Monitor(sock, None, known=False))

    # --- what monitors say ---

    def _heard(self, number: int) -> None:
        known = self._monitors[number]
        try:
            message, fds = messages.receive(known.sock)
        except BlockingIOError:
            return
        except (EOFError, MessageError, OSError):
            self._selector.unregister(known.sock)
            known.sock.close()
            del self._monitors[number]
            if known.known:
                self._limits.end(number, time.monotonic())
            return
        messages.close_all(fds)
        match message.get("op"):
            case "authenticated":
                self._answer(known, {"allowed": self._limits.authenticate(number, str(message.get("user")))})
            case "audit":
                self._write(message.get("event"))
            case "rejoin" if not known.known:
                known.known = True
                self._limits.rejoin(number, IPv4Address(message["client"]), str(message.get("user")))

    @staticmethod
    def _answer(known: _Monitor, answer: dict[str, object]) -> None:
        try:
            messages.send(known.sock, answer)
        except OSError:
            pass  # its end shows with the next receive

    def _write(self, event: Any) -> None:
        if self._audit is None or not isinstance(event, dict):
            return
        if event.get("event") == "login_refused" and not self._refusals.take(time.monotonic()):
            self.counters["refusals_not_written"] += 1
            return
        if not self._audit.write(event):
            self.counters["events_not_written"] += 1

    def _close(self) -> None:
        """Leave the monitors alone: those whose users have logged in go on, the others end."""
        signal.set_wakeup_fd(-1)
        self._stop_listening()
        self._control.close()
        for known in self._monitors.values():
            known.sock.close()
        socket_path(self._settings.run).unlink(missing_ok=True)
        for sock in (self._netlink, self._joining, self._wake, self._waker):
            sock.close()
        self._selector.close()


def _listen_for_monitors(run: Path) -> socket.socket:
    """Return the socket that monitors of an earlier listener come to; root's only. Raises UserError."""
    path = socket_path(run)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise UserError(f"cannot make the socket {path}: {error.strerror or error}; see --run") from None
    finally:
        os.umask(before)
    return sock
