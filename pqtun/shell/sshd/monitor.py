"""One connection's monitor: root's part of a login. It believes its worker nothing that it has not checked itself."""

import logging
import os
import re
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

from pqtun.rates.buckets import TokenBucket
from pqtun.shell.sshd import confinement, host, identity, loginrecords, messages, process, signer
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.authentication import Authentication
from pqtun.shell.sshd.limits import LOGIN_SECONDS, MAX_ATTEMPTS
from pqtun.shell.sshd.link import Link
from pqtun.shell.sshd.login import Login
from pqtun.shell.sshd.messages import MessageError, Refused
from pqtun.shell.sshd.pamsession import Session
from pqtun.shell.sshd.permission import Permission
from pqtun.shell.sshd.request import RequestError
from pqtun.shell.sshd.worker import Workers

log = logging.getLogger(__name__)

# Every refusal comes a whole number of these after its question, whatever was found out on the way: what is looked up
# for a user that there is not takes another time than a wrong key. Asking users' files takes 1 to 20 ms.
REFUSAL_SECONDS: Final = 0.05
GRACE_SECONDS: Final = 5.0  # beyond LOGIN_SECONDS, then a monitor that waits for something is killed (SIGALRM)
HOST_SECONDS: Final = 10.0  # that the user's process may take to end after its connection, then it is killed
# At once, and a second; more have to wait. Keys are renewed once an hour or once a gigabyte, but clients may want more.
SIGNATURES: Final = 50.0
SIGNATURES_A_SECOND: Final = 10.0
# Lines in the audit file at once, and a second: a user must not fill the disk. What he runs has lines of its own, so
# that it cannot be hidden behind many connections or files.
RECORDS: Final = 200.0
RECORDS_A_SECOND: Final = 20.0
PROGRAMS: Final = frozenset(("command", "shell", "subsystem"))
EVENTS: Final = PROGRAMS | {"forward", "transfer", "refused"}
MAX_FIELDS: Final = 16
MAX_TEXT: Final = 4096  # characters of one field
_MAX_NUMBER: Final = 2**63

Answer = tuple[dict[str, object], list[int]]


@dataclass(frozen=True, slots=True)
class Worker:
    """The unprivileged process, and our ends of its sockets."""

    pid: int
    calls: socket.socket
    signing: socket.socket  # apart from the calls, since the worker waits for these answers without reading others


def start_worker(workers: Workers, sock: socket.socket) -> Worker:
    """Fork the worker of a connection, before anything is in memory that it should not have. Raises OSError."""
    calls, their_calls = messages.pair()
    signing, their_signing = messages.pair()
    with their_calls, their_signing, confinement.apart():
        pid = process.start("sshd: worker", lambda: workers.run(sock, their_calls, their_signing))
    return Worker(pid, calls, signing)


@dataclass(slots=True)
class _User:
    """Who has logged in."""

    account: Account
    session: Session
    host: int  # pid of the user's process
    pidfd: int


class Monitor:
    """Serves one connection until it ends."""

    def __init__(
        self,
        worker: Worker,
        login: Login,
        client: IPv4Address,
        authentication: Authentication,
        link: Link,
        signing: socket.socket,
    ) -> None:
        """``client``: its private address; ``signing``: a connection to the signer."""
        self._worker = worker
        self._login = login
        self._client = client
        self._authentication = authentication
        self._link = link
        self._signing = signing
        now = time.monotonic()
        self._deadline = now + LOGIN_SECONDS
        self._signatures = TokenBucket(SIGNATURES_A_SECOND, SIGNATURES, now)
        self._records = {programs: TokenBucket(RECORDS_A_SECOND, RECORDS, now) for programs in (True, False)}
        self._lost_records = 0
        self._session_id: bytes | None = None
        self._refusals = 0
        self._user: _User | None = None
        self._terminals: set[str] = set()
        self._over = False
        self._selector = selectors.DefaultSelector()
        self._handlers: Mapping[str, Callable[[dict[str, Any]], Answer]] = {
            "allowed": self._allowed,
            "authenticate": self._authenticate,
            "record": self._record,
            "audit": self._audit,
        }

    # --- the loop ---

    def run(self) -> None:
        """Serve until the worker ends, the connection does not log in in time, or we are told to stop (SIGTERM)."""
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        begin = time.monotonic()
        # For what the deadline below cannot end: files on a user's own file system and PAM's modules may never answer.
        signal.setitimer(signal.ITIMER_REAL, LOGIN_SECONDS + GRACE_SECONDS)
        pidfd = os.pidfd_open(self._worker.pid)
        for source, ready in (
            (wake, self._stop),
            (pidfd, self._stop),
            (self._worker.calls, self._asked),
            (self._worker.signing, self._asked_to_sign),
            (self._link, self._listener_spoke),
        ):
            self._selector.register(source, selectors.EVENT_READ, ready)
        try:
            while not self._over:
                self._turn()
        finally:
            self._end(time.monotonic() - begin)

    def _turn(self) -> None:
        left = None if self._user is not None else self._deadline - time.monotonic()
        if self._user is not None and not self._link.connected:
            left = self._link.rejoin(self._client, self._user.account.name)
            if self._link.connected:
                self._selector.register(self._link, selectors.EVENT_READ, self._listener_spoke)
        if left is not None and left <= 0:
            self._over = True
            return
        for key, _ in self._selector.select(left):
            key.data()

    def _stop(self) -> None:
        self._over = True

    def _listener_spoke(self) -> None:
        """It says nothing unasked: it has ended. Who has logged in stays."""
        self._selector.unregister(self._link)
        self._link.lost()
        if self._user is None:
            self._over = True

    def _asked(self) -> None:
        self._serve(self._worker.calls, self._call)

    def _asked_to_sign(self) -> None:
        self._serve(self._worker.signing, self._sign)

    def _serve(self, sock: socket.socket, answer: Callable[[dict[str, Any]], Answer]) -> None:
        try:
            message, fds = messages.receive(sock)
        except (EOFError, MessageError, OSError):
            self._over = True
            return
        messages.close_all(fds)
        number = message.get("id")
        given: list[int] = []
        try:
            fields, given = answer(message)
        except Refused as refusal:
            fields = {"error": str(refusal)}
        except (MessageError, RequestError):
            fields = {"error": "malformed"}
        try:
            messages.send(sock, {**fields, "id": number if isinstance(number, int) else 0}, given)
        except (OSError, MessageError):  # its end, or a key with more options than a message takes
            self._over = True
        finally:
            messages.close_all(given)

    def _call(self, message: dict[str, Any]) -> Answer:
        handler = self._handlers.get(str(message.get("op")))
        if handler is None:
            raise MessageError("unknown")
        return handler(message)

    # --- before the login ---

    def _sign(self, message: dict[str, Any]) -> Answer:
        data = messages.decode_bytes(message.get("data"))
        if len(data) not in signer.HASH_BYTES:
            raise Refused("not signed")
        while not self._signatures.take(time.monotonic()):
            time.sleep(1 / SIGNATURES_A_SECOND)
        try:
            signature = signer.ask(self._signing, str(message.get("algorithm")), data)
        except (OSError, EOFError):
            raise Refused("not signed") from None
        if self._session_id is None:
            self._session_id = data  # RFC 4253 section 7.2: the first exchange hash
        return {"signature": messages.encode_bytes(signature)}, []

    def _allowed(self, message: dict[str, Any]) -> Answer:
        begin = time.monotonic()
        self._check_attempts()
        user, key = str(message.get("user")), messages.decode_bytes(message.get("key"))
        if self._authentication.permission(user, key, self._client) is None:
            self._refuse(begin, user)
            return {"allowed": False}, []
        return {"allowed": True}, []

    def _authenticate(self, message: dict[str, Any]) -> Answer:
        begin = time.monotonic()
        self._check_attempts()
        signed, signature = (messages.decode_bytes(message.get(name)) for name in ("message", "signature"))
        user = str(message.get("user"))
        found = self._authentication.verified(user, signed, signature, self._session_id, self._client)
        if found is None:
            self._refuse(begin, user)
            return {"allowed": False}, []
        account, permission = found
        try:
            return self._log_in(account, permission)
        except Refused as refusal:
            self._write(
                {"event": "login_refused", "user": account.name, "key": permission.fingerprint, "why": str(refusal)}
            )
            self._wait_to_refuse(begin)
            return {"allowed": False, "text": str(refusal)[:MAX_TEXT]}, []

    def _check_attempts(self) -> None:
        if self._user is not None:
            raise Refused("logged in already")
        if self._refusals >= MAX_ATTEMPTS:
            raise Refused("too many keys were refused")

    def _refuse(self, begin: float, user: str) -> None:
        """Write down what root should know, such as files with wrong permissions; a wrong key is none of it."""
        if remarks := self._authentication.remarks:
            self._write({"event": "login_refused", "user": user, "why": "; ".join(remarks)[:MAX_TEXT]})
        self._wait_to_refuse(begin)

    def _wait_to_refuse(self, begin: float) -> None:
        self._refusals += 1
        passed = time.monotonic() - begin
        time.sleep(REFUSAL_SECONDS - passed % REFUSAL_SECONDS)

    def _log_in(self, account: Account, permission: Permission) -> Answer:
        """Begin the user's session and process. Raises Refused."""
        session = Session(account, self._login.source, service=self._login.settings.pam)
        try:
            if (refusal := session.account_refusal(time.time())) is not None:
                raise Refused(refusal)
            if not self._link.authenticated(account.name):
                raise Refused("too many connections of this user")
            pid, sock = self._start_host(session, permission)
        except BaseException:
            session.close()
            raise
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._user = _User(session.account, session, pid, os.pidfd_open(pid))
        process.rename(f"sshd: {account.name}")
        self._selector.register(self._user.pidfd, selectors.EVENT_READ, self._host_ended)
        self._write({"event": "login", "uid": account.uid, "key": permission.fingerprint, "by": permission.origin})
        answer = {"account": {"name": account.name, "uid": account.uid}, "permission": permission.to_json()}
        return {"allowed": True, **answer}, [sock.detach()]

    def _start_host(self, session: Session, permission: Permission) -> tuple[int, socket.socket]:
        environment = session.open()
        login = self._login.of_session(environment, session.umask, tuple(session.texts))
        account = session.account  # PAM may have added groups
        try:
            ours, theirs = messages.pair()
            with theirs:
                return process.start(
                    f"sshd: {account.name}", lambda: _be_user(theirs, account, permission, login)
                ), ours
        except OSError:
            raise Refused("no process could be started") from None

    # --- after it ---

    def _host_ended(self) -> None:
        """Without its process there is nothing that the connection could do."""
        self._over = True

    def _logged_in(self) -> _User:
        if self._user is None:
            raise Refused("not logged in")
        return self._user

    def _record(self, message: dict[str, Any]) -> Answer:
        user, tty = self._logged_in(), message.get("tty")
        if not isinstance(tty, str):
            raise MessageError("no terminal")
        if message.get("end") is True:
            if tty in self._terminals:
                self._terminals.remove(tty)
                loginrecords.logout(tty, user.host)
            return {}, []
        if len(self._terminals) < self._login.settings.max_channels and loginrecords.login(
            user.account, tty, self._login.source, user.host
        ):
            self._terminals.add(tty)
        return {}, []

    def _audit(self, message: dict[str, Any]) -> Answer:
        self._logged_in()
        event = {name: value for name, value in message.items() if name not in ("id", "op")}
        if str(event.get("event")) not in EVENTS or len(event) > MAX_FIELDS or not all(map(_is_plain, event.items())):
            raise MessageError("no event")
        if self._records[event["event"] in PROGRAMS].take(time.monotonic()):
            self._write({**event, **self._lost()})
        else:
            self._lost_records += 1
        return {}, []

    def _lost(self) -> dict[str, int]:
        """How many events were not written since this was asked last."""
        lost, self._lost_records = self._lost_records, 0
        return {"lost": lost} if lost else {}

    def _write(self, event: dict[str, object]) -> None:
        known: dict[str, object] = {"connection": self._login.name, "source": self._login.source}
        if self._user is not None:
            known["user"] = self._user.account.name
        self._link.audit({**event, **known})

    def _end(self, seconds: float) -> None:
        """End all that belongs to the connection, but for what the user left running in the background."""
        process.kill(self._worker.pid)
        if self._user is None:
            return
        self._worker.calls.close()
        if not _wait(self._user.pidfd, HOST_SECONDS):
            log.warning("the process of a user did not end with its connection, and is killed")
        process.kill(self._user.host)
        for tty in self._terminals:
            loginrecords.logout(tty, self._user.host)
        self._user.session.close()
        self._write({"event": "logout", "seconds": round(seconds, 3), **self._lost()})


def _be_user(sock: socket.socket, account: Account, permission: Permission, login: Login) -> None:
    """The user's own process."""
    identity.become(account, keep=[sock.fileno()], umask=login.umask)
    host.run(sock, account, permission, login)


def _wait(pidfd: int, seconds: float) -> bool:
    """Wait for the end of a process; whether it came in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _is_plain(item: tuple[str, object]) -> bool:
    name, value = item
    if not re.fullmatch(r"[a-z_]{1,32}", name):
        return False
    if isinstance(value, int | float):
        return abs(value) < _MAX_NUMBER  # which NaN is not either
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT)
