import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.audit import head_path
from pqtun.shell.auditcheck import verify
from pqtun.shell.auditline import HEAD_BYTES, NO_HASH, Head, encode
from tests.shell.auditlog import written


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "audit.jsonl"


def change(lines, data):
    place = data.draw(st.integers(0, len(lines) - 1))
    line = bytearray(lines[place])
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    lines[place] = bytes(line)


def remove(lines, data):
    start = data.draw(st.integers(0, len(lines) - 1))
    del lines[start : data.draw(st.integers(start + 1, len(lines)))]


def swap(lines, data):
    one, other = data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2, unique=True))
    lines[one], lines[other] = lines[other], lines[one]


def duplicate(lines, data):
    place = data.draw(st.integers(0, len(lines) - 1))
    lines.insert(data.draw(st.integers(0, len(lines))), lines[place])


def insert(lines, data):
    """A line that by itself is good, made by somebody who knows the format."""
    place = data.draw(st.integers(0, len(lines)))
    previous = json.loads(lines[place - 1])["hash"] if place else NO_HASH
    lines.insert(place, encode(place + 1, 0, previous, {"event": {"made": "up"}})[0])


def forge(lines, data):
    """One line made anew, so that by itself and after the line before it, it is good."""
    place = data.draw(st.integers(0, len(lines) - 1))
    previous = json.loads(lines[place - 1])["hash"] if place else NO_HASH
    lines[place] = encode(place + 1, 0, previous, {"event": {"made": "up"}})[0]


def replace_end(lines, data):
    """The rest of the log, made anew by somebody who knows the format but cannot write the head file."""
    place = data.draw(st.integers(0, len(lines) - 1))
    previous = json.loads(lines[place - 1])["hash"] if place else NO_HASH
    for number in range(place, len(lines)):
        lines[number], previous = encode(number + 1, 0, previous, {"event": {"made": "up"}})


def garbage(lines, data):
    lines.insert(data.draw(st.integers(0, len(lines))), data.draw(st.binary(min_size=1, max_size=100)))


TAMPERING = [change, remove, swap, duplicate, insert, forge, garbage]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    return path, written(path, 12)


@pytest.mark.parametrize("tamper", TAMPERING)
@given(data=st.data())
def test_tampering_is_found(original, tamper, data):
    path, lines = original
    changed = list(lines)
    tamper(changed, data)
    path.write_bytes(b"".join(changed))
    report = verify(path)
    assert report.problem is not None
    good = next((n for n, (one, other) in enumerate(zip(lines, changed, strict=False)) if one != other), len(lines))
    assert report.lines >= min(good, len(changed)) - 1  # what stands before it is not accused
    assert report.problem.line in (0, *range(good, good + 3))


@given(data=st.data())
def test_an_end_that_was_made_anew(original, data):
    path, lines = original
    changed = list(lines)
    replace_end(changed, data)
    path.write_bytes(b"".join(changed))
    assert "the head file knows" in verify(path).problem.text


def test_what_root_can_do_and_how_it_is_found(path):
    """A whole new chain with a head that fits is a good log; a hash of the old one, kept elsewhere, is not in it."""
    written(path)
    kept = verify(path).hash
    assert verify(path, kept).problem is None
    written(path)
    assert verify(path, kept).problem is None
    for file in (path, head_path(path)):
        file.unlink()
    written(path, 10)
    assert verify(path).problem is None
    assert "noted elsewhere" in verify(path, kept).problem.text


@given(st.binary(max_size=500), st.none() | st.binary(max_size=HEAD_BYTES))
def test_any_files(tmp_path_factory, content, head):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    head_path(path).unlink(missing_ok=True)
    if head is not None:
        head_path(path).write_bytes(head)
    assert verify(path).problem is not None


def test_a_name_of_another_directory_is_not_followed(path):
    """The first line names the file before it, and may have been made up."""
    path.parent.mkdir()
    about = {"log": {"action": "continued", "file": "audit.jsonl.0/../../../etc/passwd"}}
    line, digest = encode(2, 0, NO_HASH, about)
    path.write_bytes(line)
    head_path(path).write_bytes(Head(2, digest, len(line)).encode())
    assert verify(path).files == [path]
