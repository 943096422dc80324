import hashlib
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.shell.auditline import (
    HEAD_BYTES,
    MAX_LINE_BYTES,
    MAX_TEXT,
    MAX_TEXTS,
    NO_HASH,
    Head,
    LineError,
    bounded,
    decode,
    encode,
)

NOW = 1_800_000_000.25
LINE, HASH = encode(3, NOW, NO_HASH, {"event": {"event": "login", "user": "alice"}})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sets(st.integers()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


def test_known_line():
    body = (
        '{"sequence":3,"time":"2027-01-15T08:00:00.250Z","previous":"' + "0" * 64 + '",'
        '"event":{"event":"login","user":"alice"}'
    )
    digest = hashlib.sha256(b"pqtun audit 1\n" + body.encode()).hexdigest()
    assert LINE.decode() == f'{body},"hash":"{digest}"}}\n'
    assert digest == HASH
    assert json.loads(LINE)["hash"] == HASH


def test_round_trip():
    line = decode(LINE)
    assert (line.sequence, line.time, line.previous, line.hash) == (3, "2027-01-15T08:00:00.250Z", NO_HASH, HASH)
    assert line.about == {"event": {"event": "login", "user": "alice"}}
    assert line.log_action() is None
    assert decode(encode(1, NOW, HASH, {"log": {"action": "opened"}})[0]).log_action() == "opened"


@given(st.data())
def test_any_change_is_seen(data):
    changed = bytearray(LINE)
    match data.draw(st.sampled_from(["change", "remove", "insert"])):
        case "change":
            changed[data.draw(st.integers(0, len(LINE) - 1))] ^= data.draw(st.integers(1, 255))
        case "remove":
            start = data.draw(st.integers(0, len(LINE) - 1))
            del changed[start : data.draw(st.integers(start + 1, len(LINE)))]
        case "insert":
            place = data.draw(st.integers(0, len(LINE)))
            changed[place:place] = data.draw(st.binary(min_size=1, max_size=80))
    with pytest.raises(LineError):
        decode(bytes(changed))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"sequence": 1},
        {"sequence": 0, "time": "", "previous": NO_HASH, "event": {}},
        {"sequence": "1", "time": "", "previous": NO_HASH, "event": {}},
        {"sequence": 1, "time": "", "previous": "0", "event": {}},
        {"sequence": 1, "time": "", "previous": NO_HASH},
        {"sequence": 1, "time": "", "previous": NO_HASH, "event": {}, "log": {}},
        {"sequence": 1, "time": "", "previous": NO_HASH, "other": {}},
    ],
)
def test_lines_with_a_good_hash_that_say_nothing(record):
    body = json.dumps(record)[:-1].encode()
    digest = hashlib.sha256(b"pqtun audit 1\n" + body).hexdigest()
    with pytest.raises(LineError):
        decode(body + f',"hash":"{digest}"}}\n'.encode())


@settings(max_examples=40)
@given(st.dictionaries(st.text(), ANYTHING))
def test_any_event_becomes_one_short_printable_line(event):
    line, _ = encode(1, NOW, NO_HASH, {"event": bounded(event)})
    assert len(line) <= MAX_LINE_BYTES
    assert line.endswith(b"\n")
    assert set(line[:-1].decode("ascii")) <= set(string.printable) - set("\n\r\t\x0b\x0c")
    assert decode(line).sequence == 1


@pytest.mark.parametrize(
    "event",
    [
        {"a": "\U0001f600" * 100_000},
        {str(number) * 100: "\U0001f600" * 5000 for number in range(1000)},
        {"\U0001f600" * 70 + str(number): "" for number in range(1000)},
        {"a": ["\x00" * 2000] * 2000},
        {"a": [[[[[[["deep"]]]]]]]},
        {"a": b"\xff" * 100_000},
        {"a": 10**4000, "b": float("nan"), "c": float("inf"), "d": 1e308, "e": object()},
    ],
)
def test_big_events(event):
    line, _ = encode(1, NOW, NO_HASH, {"event": bounded(event)})
    assert len(line) <= MAX_LINE_BYTES
    json.loads(line)


def test_texts_are_cut_visibly():
    found = bounded({"a": "x" * (MAX_TEXT + 1), "b": "y" * MAX_TEXT})
    assert found == {"a": "x" * MAX_TEXT + "…", "b": "y" * MAX_TEXT}
    total = sum(len(str(text)) for text in bounded({str(number): "x" * MAX_TEXT for number in range(50)}).values())
    assert total < MAX_TEXTS + 200


def test_control_characters_are_escaped():
    line, _ = encode(1, NOW, NO_HASH, {"event": bounded({"command": "\x1b[2Jrm\r\n\x7f\u202e"})})
    assert b"\\u001b[2Jrm\\r\\n\\u007f\\u202e" in line


def test_an_event_cannot_look_like_the_log():
    line = decode(encode(1, NOW, NO_HASH, {"event": bounded({"log": {"action": "missing"}, "sequence": 7})})[0])
    assert line.log_action() is None
    assert line.sequence == 1


@given(st.integers(1, 1 << 63), st.integers(1, 1 << 63))
def test_head(sequence, end):
    head = Head(sequence, HASH, end)
    assert len(head.encode()) == HEAD_BYTES
    assert Head.decode(head.encode()) == head


@given(st.binary(max_size=300) | st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES))
def test_no_head(data):
    with pytest.raises(LineError):
        Head.decode(data)


@pytest.mark.parametrize("text", ['{"sequence": 0, "hash": "%s", "end": 5}', '{"sequence": 1, "end": 5}', "[]", "7"])
def test_heads_that_say_nothing(text):
    with pytest.raises(LineError):
        Head.decode((text.replace("%s", HASH)).ljust(HEAD_BYTES).encode())
