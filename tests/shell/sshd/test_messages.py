import asyncio
import json
import os
import socket
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import messages
from pqtun.shell.sshd.messages import MAX_DESCRIPTORS, MAX_MESSAGE, Caller, MessageError, Refused

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=10,
)


@pytest.fixture
def ends():
    left, right = messages.pair()
    with left, right:
        yield left, right


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def send_raw(sock: socket.socket, data: bytes, count: int = 0) -> None:
    with open(os.devnull, "rb") as null:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null.fileno()] * count))] if count else []
        sock.sendmsg([data], ancillary)


@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_round_trip(message):
    left, right = messages.pair()
    with left, right:
        messages.send(left, message)
        assert messages.receive(right) == (message, [])


@given(st.binary(max_size=300))
def test_bytes(data):
    assert messages.decode_bytes(messages.encode_bytes(data)) == data


@pytest.mark.parametrize("text", [None, 7, [], "=", "AAA", "AA==x", "ÄÖ", "AA\n=="])
def test_what_is_no_bytes(text):
    with pytest.raises(MessageError):
        messages.decode_bytes(text)


def test_descriptors_come_over_and_close_on_exec(ends):
    left, right = ends
    read, write = os.pipe()
    messages.send(left, {"a": 1}, [read, write])
    os.close(read)
    os.close(write)
    message, (read, write) = messages.receive(right)
    assert message == {"a": 1}
    assert not os.get_inheritable(read)
    assert not os.get_inheritable(write)
    os.write(write, b"through")
    assert os.read(read, 10) == b"through"
    messages.close_all([read, write])


@pytest.mark.parametrize("count", [0, 1, MAX_DESCRIPTORS])
@pytest.mark.parametrize("data", [b"x", b"[]", b"7", b"{", b"\xff", b"[" * 5000, b"1" * 5000, b'{"a":1}' * 2, b"\0"])
def test_malformed(ends, data, count):
    left, right = ends
    before = open_descriptors()
    send_raw(left, data, count)
    with pytest.raises(MessageError):
        messages.receive(right)
    assert open_descriptors() == before


@given(st.binary(min_size=1, max_size=64))
def test_anything(data):
    left, right = messages.pair()
    with left, right:
        left.send(data)
        try:
            message, fds = messages.receive(right)
        except MessageError:
            return
        assert isinstance(message, dict)
        assert fds == []


@pytest.mark.parametrize("count", [0, 2])
def test_sizes(ends, count):
    left, right = ends
    before = open_descriptors()
    fitting = b'{"a":"' + b"x" * (MAX_MESSAGE - 8) + b'"}'
    send_raw(left, fitting, count)
    message, fds = messages.receive(right)
    assert len(message["a"]) == MAX_MESSAGE - 8
    assert len(fds) == count
    messages.close_all(fds)
    send_raw(left, fitting[:-1] + b" }", count)
    with pytest.raises(MessageError, match="too long"):
        messages.receive(right)
    for length in range(1, 20):
        send_raw(left, fitting[:length], count)
        with pytest.raises(MessageError):
            messages.receive(right)
    assert open_descriptors() == before


@pytest.mark.parametrize("count", [MAX_DESCRIPTORS + 1, 50, 253])
def test_too_many_descriptors(ends, count):
    left, right = ends
    before = open_descriptors()
    send_raw(left, b"{}", count)
    with pytest.raises(MessageError, match="too many"):
        messages.receive(right)
    assert open_descriptors() == before


def test_too_much_is_not_sent(ends):
    left, _ = ends
    with pytest.raises(MessageError):
        messages.send(left, {"a": "x" * MAX_MESSAGE})
    with pytest.raises(MessageError):
        messages.send(left, {}, [0] * (MAX_DESCRIPTORS + 1))


def test_end(ends):
    left, right = ends
    before = open_descriptors()
    send_raw(left, b"", 1)  # an empty one counts as the end
    with pytest.raises(EOFError):
        messages.receive(right)
    assert open_descriptors() == before
    left.close()
    with pytest.raises(EOFError):
        messages.receive(right)


def called(scenario):
    """Run a scenario that gets a caller, the other end, and the list of its events."""

    async def run():
        left, right = messages.pair()
        right.setblocking(False)
        events = []
        caller = Caller(left, lambda message, fds: events.append((message, fds)))
        try:
            await asyncio.wait_for(scenario(caller, right, events), 10)
        finally:
            caller.close()
            right.close()

    asyncio.run(run())


async def question(sock):
    while True:
        try:
            return messages.receive(sock)
        except BlockingIOError:
            await asyncio.sleep(0)


def test_caller_gets_answers_in_any_order_and_events():
    async def scenario(caller, sock, events):
        first = asyncio.ensure_future(caller.call("one", n=1))
        second = asyncio.ensure_future(caller.call("two"))
        (asked, _), (asked2, _) = await question(sock), await question(sock)
        assert (asked["op"], asked["n"], asked2["op"]) == ("one", 1, "two")
        messages.send(sock, {"event": "exit"})
        messages.send(sock, {"id": asked2["id"], "x": 2})
        messages.send(sock, {"id": asked["id"], "error": "no such thing"})
        assert (await second).fields == {"x": 2}
        with pytest.raises(Refused, match="no such thing"):
            await first
        assert events == [({"event": "exit"}, [])]

    called(scenario)


def test_answers_that_nobody_waits_for_are_dropped():
    async def scenario(caller, sock, events):
        before = open_descriptors()
        for number in (99, "1", None, [], {}, -1, 1.5, True):
            send_raw(sock, json.dumps({"id": number}).encode(), 1)
        waiting = asyncio.ensure_future(caller.call("op"))
        asked, _ = await question(sock)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        send_raw(sock, json.dumps({"id": asked["id"]}).encode(), 1)
        other = asyncio.ensure_future(caller.call("op"))
        asked, _ = await question(sock)
        messages.send(sock, {"id": asked["id"]})
        await other
        assert open_descriptors() == before

    called(scenario)


def test_answer_and_cancellation_at_once_leave_no_descriptor():
    async def scenario(caller, sock, events):
        before = open_descriptors()
        waiting = asyncio.ensure_future(caller.call("op"))
        asked, _ = await question(sock)
        send_raw(sock, json.dumps({"id": asked["id"]}).encode(), 1)
        caller._readable()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        assert open_descriptors() == before

    called(scenario)


@pytest.mark.parametrize("end", [b"", b"nonsense"])
def test_end_refuses_what_is_asked(end):
    async def scenario(caller, sock, events):
        waiting = asyncio.ensure_future(caller.call("op"))
        await question(sock)
        if end:
            sock.send(end)
        else:
            sock.close()
        with pytest.raises(Refused):
            await waiting
        assert caller.closed
        with pytest.raises(Refused):
            await caller.call("op")

    called(scenario)


def test_more_than_the_socket_takes_waits():
    async def scenario(caller, sock, events):
        asked = [asyncio.ensure_future(caller.call("op", data="x" * 50_000)) for _ in range(20)]
        for _ in asked:
            message, _ = await question(sock)
            messages.send(sock, {"id": message["id"]})
        assert len(await asyncio.gather(*asked)) == 20

    called(scenario)


def test_too_long_a_question():
    async def scenario(caller, sock, events):
        with pytest.raises(MessageError):
            await caller.call("op", data="x" * MAX_MESSAGE)

    called(scenario)


def test_end_while_the_socket_is_full():
    async def scenario(caller, sock, events):
        asked = [asyncio.ensure_future(caller.call("op", data="x" * 50_000)) for _ in range(20)]
        await question(sock)
        caller.close()
        assert {type(answer) for answer in await asyncio.gather(*asked, return_exceptions=True)} == {Refused}

    called(scenario)
