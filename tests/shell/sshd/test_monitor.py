"""The monitor against a worker that was taken over: each answer, and what it cannot be brought to do."""

from __future__ import annotations

import os
import signal
import socket
import time
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import messages, monitor
from pqtun.shell.sshd.limits import MAX_ATTEMPTS
from pqtun.shell.sshd.messages import MessageError, Refused
from pqtun.shell.sshd.monitor import MAX_FIELDS, MAX_TEXT, RECORDS, SIGNATURES, Monitor
from pqtun.shell.sshd.request import RequestError
from tests.net.process import wait_until
from tests.shell.sshd.monitor_rig import PATIENCE, SETTINGS, Rig, allow, host_ended, string
from tests.shell.sshd.world import World

pytestmark = pytest.mark.root

MALFORMED = {"error": "malformed"}
NO = {"allowed": False}


@pytest.fixture
def people(world: World) -> World:
    world.user("locked", 4003, shadow="!*:20000:0:99999:7:::")
    return world


def test_what_it_does_not_know(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            for op in ("", "sign", "start", "_log_in", "__init__", "allowed ", 7, None, [], {}):
                assert rig.ask(op) == MALFORMED  # type: ignore[arg-type]
            for fields in ({}, {"user": "alice"}, {"user": "alice", "key": 7}, {"user": [], "key": "="}):
                assert rig.ask("allowed", **fields) == MALFORMED
            for fields in ({"message": "", "signature": ""}, {"user": "alice", "message": "AAAA", "signature": "AAAA"}):
                assert rig.ask("authenticate", **fields) == MALFORMED
            before = rig.descriptors()
            with open(os.devnull) as null:
                assert rig.ask("nothing", [null.fileno()] * 4) == MALFORMED
            assert rig.descriptors() == before
            assert not rig.ended

    people.call(body)


@pytest.mark.parametrize("data", [b"nonsense", b"[]", b"{" * 2000, b"x" * 65537])
@pytest.mark.parametrize("which", ["calls", "signing"])
def test_what_is_no_message_ends_the_connection(people: World, which: str, data: bytes) -> None:
    def body() -> None:
        with Rig() as rig:
            getattr(rig, which).send(data)
            rig.wait_end()
            with pytest.raises(ProcessLookupError):
                os.kill(rig.worker, 0)

    people.call(body)


def test_only_hashes_are_signed(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            for length in (0, 1, 20, 31, 33, 63, 65, 100, 2000):
                assert rig.sign(bytes(length)) == {"id": 0, "error": "not signed"}
            assert rig.sign(algorithm="ssh-rsa") == {"id": 0, "error": "malformed"}
            for number in range(int(SIGNATURES) + 3):  # the last ones have to wait
                assert "signature" in rig.sign(), number

    people.call(body)


def test_unknown_users_are_answered_as_wrong_keys_are(people: World) -> None:
    def body() -> None:
        with Rig() as rig, Rig() as other:
            allow(rig)
            rig.sign()
            assert rig.allowed("alice") == {"allowed": True}
            assert rig.allowed("nobody-of-that-name") == rig.allowed("bob") == NO
            assert rig.allowed("alice", other.key.public_data) == NO
            for user in ("nobody-of-that-name", "bob"):
                rig.authenticate(user)
                assert rig.answer() == NO

    people.call(body)


def test_refusals_wait_for_a_round_time_whatever_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    now = [0.0]
    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=waits.append))
    refusing = function()
    ends = set()
    for took in (0.0, 0.001, 0.0049, 0.03, 0.0499):
        refusing._refusals, now[0] = 0, took
        refusing._wait_to_refuse(0.0)
        ends.add(round(took + waits[-1], 6))
    assert ends == {monitor.REFUSAL_SECONDS}


def test_so_many_attempts(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig)
            rig.sign()
            for _ in range(MAX_ATTEMPTS):
                assert rig.allowed("bob") == NO
            too_many = {"error": "too many keys were refused"}
            assert rig.allowed("alice") == too_many
            rig.authenticate()
            assert rig.answer() == too_many

    people.call(body)


def test_what_is_signed_is_looked_at(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig)
            rig.authenticate()
            assert rig.answer() == MALFORMED  # there is no session before a host key signed
            rig.sign()
            rig.sign(bytes(32))  # the keys are renewed: the session stays that of the first
            for signed in (
                rig.request(session_id=bytes(32)),
                rig.request("bob"),
                rig.request()[:-1],
                rig.request() + b"\0",
                rig.request().replace(b"publickey", b"password_"),
                b"",
            ):
                rig.authenticate(signed=signed)
                assert rig.answer() == MALFORMED
            good = rig.key.sign(rig.request(), rig.key.algorithm)
            for signature in (b"", good[:-1], good + b"\0", string(b"ssh-ed25519") + string(bytes(64)), bytes(100)):
                rig.authenticate(signature=signature)
                assert rig.answer() == NO
            rig.authenticate(signature=good)
            assert messages.receive(rig.link)[0]["op"] == "authenticated"

    people.call(body)


def test_a_login(people: World) -> None:
    def body() -> None:
        monitor.HOST_SECONDS = 0.2  # type: ignore[misc]  # the test has a descriptor that would end with the worker
        with Rig() as rig:
            allow(rig, options='command="true",no-pty')
            answer = rig.log_in()
            assert answer["allowed"] is True
            assert answer["account"] == {"name": "alice", "uid": 4001}
            assert (answer["permission"]["command"], answer["permission"]["pty"]) == ("true", False)
            assert answer["permission"]["fingerprint"] == rig.key.get_fingerprint()
            (fd,) = rig.fds
            login = rig.audited()
            assert (login["event"], login["user"], login["uid"]) == ("login", "alice", 4001)
            assert login["key"] == rig.key.get_fingerprint()
            assert (login["connection"], login["source"]) == ("tests-1", "10.42.0.7")
            with socket.socket(fileno=fd) as host:
                host.settimeout(PATIENCE)
                messages.send(host, {"id": 1, "op": "nothing"})
                assert "error" in messages.receive(host)[0]
                # Once is enough, for this user or another.
                again = {"error": "logged in already"}
                assert rig.allowed("alice") == again
                rig.authenticate("bob")
                assert rig.answer() == again
                os.kill(rig.worker, signal.SIGKILL)
                assert host_ended(host)
            logout = rig.audited()
            assert (logout["event"], logout["user"]) == ("logout", "alice")
            assert logout["seconds"] >= 0
            rig.wait_end()

    people.call(body)


def test_a_user_who_may_not(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig, "locked")
            rig.sign()
            rig.authenticate("locked")
            event = rig.audited()
            answer = rig.answer()
            assert answer["allowed"] is False
            assert answer["text"] == event["why"]
            assert (event["event"], event["user"]) == ("login_refused", "locked")
            assert rig.fds == []

    people.call(body)


@pytest.mark.parametrize("answer", [{"allowed": False}, {"allowed": "yes"}, {"x": 1}])
def test_the_listener_may_say_no(people: World, answer: dict[str, object]) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig)
            assert rig.log_in(**answer) == {"allowed": False, "text": "too many connections of this user"}
            assert rig.fds == []

    people.call(body)


@pytest.mark.parametrize(
    ("settings", "user", "options", "enters"),
    [
        ({"permit_root_login": "keys"}, "root", "", True),
        ({"permit_root_login": "no"}, "root", 'command="true"', False),
        ({"permit_root_login": "forced-commands-only"}, "root", "", False),
        ({"permit_root_login": "forced-commands-only"}, "root", 'command="true"', True),
        ({"allow_users": ("al*", "x")}, "alice", "", True),
        ({"allow_users": ("al*", "x")}, "bob", "", False),
        ({"deny_users": ("b?b",)}, "bob", "", False),
        ({"deny_users": ("b?b",)}, "alice", "", True),
        ({"allow_users": ("alice",), "deny_users": ("alice",)}, "alice", "", False),
    ],
)
def test_who_may_log_in(people: World, settings: dict[str, Any], user: str, options: str, enters: bool) -> None:
    def body() -> None:
        with Rig(authorized_keys=("/etc/keys-%u",), **settings) as rig:
            Path(f"/etc/keys-{user}").write_text(f"{options} {rig.key.export_public_key().decode()}".lstrip())
            assert rig.allowed(user) == {"allowed": enters}

    people.call(body)


def test_records_and_events_are_for_users(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig)
            refused = {"error": "not logged in"}
            assert rig.ask("record", tty="/dev/pts/0") == refused
            assert rig.ask("audit", event="command") == refused
            rig.log_in()
            (fd,) = rig.fds
            rig.audited()
            for tty in (None, 7, [], {}):
                assert rig.ask("record", tty=tty) == MALFORMED
            for tty in ("", "/dev/null", "/dev/pts/../null", "/dev/pts/99999999999", "/etc/passwd"):
                assert rig.ask("record", tty=tty) == {}
                assert rig.ask("record", tty=tty, end=True) == {}
            for fields in (
                {},
                {"event": "login"},
                {"event": "logout"},
                {"event": 7},
                {"event": "command", "x": []},
                {"event": "command", "x": {}},
                {"event": "command", "x": "a" * (MAX_TEXT + 1)},
                {"event": "command", "X": 1},
                {"event": "command", "x": float("inf")},
                {"event": "command", "x": float("nan")},
                {"event": "command", "x": 10**4000},
                {"event": ["command"]},
                {"event": "command", "": 1},
                {"event": "command", **{f"x{letter}": 1 for letter in "abcdefghijklmnopq"[:MAX_FIELDS]}},
            ):
                assert rig.ask("audit", **fields) == MALFORMED
            forged = {"user": "root", "source": "192.0.2.1", "connection": "other"}
            assert rig.ask("audit", event="command", text="id", **forged) == {}
            written = rig.audited()
            assert (written["event"], written["text"]) == ("command", "id")
            assert (written["user"], written["source"], written["connection"]) == ("alice", "10.42.0.7", "tests-1")
            os.close(fd)

    people.call(body)


def test_events_are_not_without_end(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig)
            rig.log_in()
            (fd,) = rig.fds
            rig.audited()
            rig.link.setblocking(False)

            def flood(event: str) -> tuple[int, int]:
                """How many of many were written, and how many are known to be missing."""
                rig.link.setblocking(False)
                written = lost = 0
                for _ in range(int(RECORDS) + 300):
                    assert rig.ask("audit", event=event) == {}
                    try:
                        lost += rig.audited().get("lost", 0)
                        written += 1
                    except BlockingIOError:
                        continue
                rig.link.settimeout(PATIENCE)
                return written, lost

            written, lost = flood("forward")
            assert RECORDS - 1 <= written < RECORDS + 300
            # What runs cannot be hidden behind other events, and all that is missing is told, at the latest in the end.
            assert rig.ask("audit", event="command", text="id") == {}
            command = rig.audited()
            assert command["text"] == "id"
            assert written + lost + command.get("lost", 0) == RECORDS + 300
            written, lost = flood("command")
            os.close(fd)
            rig.calls.close()
            end = rig.audited()
            assert end["event"] == "logout"
            assert written + lost + end.get("lost", 0) == RECORDS + 300

    people.call(body)


def test_a_key_with_more_options_than_a_message_takes_ends_its_connection(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            allow(rig, options=f'command="{chr(1) * 15000}"')
            rig.sign()
            rig.authenticate()
            messages.receive(rig.link)
            messages.send(rig.link, {"allowed": True})
            assert [rig.audited()["event"] for _ in range(2)] == ["login", "logout"]
            assert os.waitpid(rig.pid, 0)[1] == 0  # and not for an exception

    people.call(body)


def test_without_a_listener_nobody_logs_in_but_who_has_stays(people: World) -> None:
    def body() -> None:
        with Rig() as rig:
            rig.link.close()
            rig.wait_end()
        with Rig(Path("/run/own")) as rig:
            allow(rig)
            rig.log_in()
            (fd,) = rig.fds
            rig.audited()
            rig.link.close()
            assert rig.ask("audit", event="command", text="meanwhile") == {}
            Path("/run/own").mkdir()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
                listening.settimeout(PATIENCE)
                listening.bind("/run/own/sshd-monitors.sock")
                listening.listen()
                rig.link, _ = listening.accept()
            rig.link.settimeout(PATIENCE)
            assert messages.receive(rig.link)[0] == {"op": "rejoin", "client": "10.42.0.7", "user": "alice"}
            kept = rig.audited()
            assert kept["text"] == "meanwhile"
            assert abs(kept["at"] - time.time()) < 60
            assert rig.ask("audit", event="command", text="later") == {}
            assert rig.audited()["text"] == "later"
            os.close(fd)

    people.call(body)


def test_whoever_does_not_log_in_in_time_is_ended(people: World) -> None:
    def body() -> None:
        monitor.LOGIN_SECONDS = 0.3  # type: ignore[misc]
        with Rig() as rig:
            rig.sign()
            rig.wait_end()
        monitor.LOGIN_SECONDS = 5.0  # type: ignore[misc]
        with Rig() as rig:
            allow(rig)
            rig.log_in()
            assert not rig.ended

    people.call(body)


def test_a_module_of_pams_that_never_answers_ends_with_the_monitor(people: World) -> None:
    people.etc["pam.d/slow"] = "account required pam_exec.so /bin/cat /run/fifo\n"

    def body() -> None:
        monitor.LOGIN_SECONDS = 0.5  # type: ignore[misc]
        monitor.GRACE_SECONDS = 0.5  # type: ignore[misc]
        os.mkfifo("/run/fifo")
        with Rig(pam="slow") as rig:
            allow(rig)
            rig.sign()
            rig.authenticate()
            rig.wait_end()
            os.close(os.open("/run/fifo", os.O_WRONLY))  # the module has come so far, and may go

    people.call(body)


def test_told_to_stop(people: World) -> None:
    def body() -> None:
        monitor.HOST_SECONDS = 0.2  # type: ignore[misc]
        with Rig() as rig:
            allow(rig)
            rig.log_in()
            with socket.socket(fileno=rig.fds[0]) as host:
                host.settimeout(PATIENCE)
                os.kill(rig.pid, signal.SIGTERM)
                assert host_ended(host)
            wait_until(lambda: rig.ended, PATIENCE, "its end")

    people.call(body)


# -- as a function -----------------------------------------------------------------------------------


def function() -> Monitor:
    """One that is not run and finds nobody."""
    nobody = SimpleNamespace(permission=lambda *_: None, verified=lambda *_: None, remarks=[])
    link = SimpleNamespace(audit=lambda event: None, authenticated=lambda user: True, connected=True)
    login = SimpleNamespace(settings=SETTINGS, name="tests", source="10.42.0.7")
    worker: Any = SimpleNamespace(pid=0, calls=None, signing=None)
    parts: tuple[Any, ...] = (worker, login, IPv4Address("10.42.0.7"), nobody, link, None)
    return Monitor(*parts)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["op", "id", "user", "key", "message", "signature", "tty", "end", "event", "algorithm", "data", "x"]
OPS = ["allowed", "authenticate", "record", "audit"]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8), st.sampled_from(OPS), st.booleans())
def test_any_message_has_an_answer(message: dict[str, Any], op: str, logged_in: bool) -> None:
    asked = function()
    asked._wait_to_refuse = lambda begin: None  # type: ignore[method-assign]
    if logged_in:
        account = SimpleNamespace(name="alice", uid=4001)
        asked._user = SimpleNamespace(account=account, host=1)  # type: ignore[assignment]
    for call in (asked._call, asked._sign):
        try:
            fields, fds = call({**message, "op": op})
        except (MessageError, Refused, RequestError):
            continue
        assert fds == []
        assert isinstance(fields, dict)
