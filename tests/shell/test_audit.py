import errno
import json
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pqtun.protocol.errors import UserError
from pqtun.shell.audit import AuditLog, head_path, rotated_path
from pqtun.shell.auditcheck import verify
from pqtun.shell.auditline import HEAD_BYTES, NO_HASH, Head, decode
from tests.shell.auditlog import events, written


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log" / "audit.jsonl"


# --- writing ---


def test_lines(path):
    lines = written(path)
    report = verify(path)
    assert report.problem is None
    assert (report.lines, report.first, report.last, report.notes) == (5, 1, 5, [])
    assert report.hash == json.loads(lines[-1])["hash"]
    assert [event["number"] for event in events(path)] == [0, 1, 2, 3]
    assert json.loads(lines[0])["previous"] == NO_HASH


def test_modes(path):
    old = os.umask(0)
    try:
        written(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(head_path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_time_is_utc(path):
    log = AuditLog(path, clock=lambda: 0.5)
    log.write({})
    log.close()
    assert json.loads(path.read_bytes().splitlines()[-1])["time"] == "1970-01-01T00:00:00.500Z"


def test_a_restart_continues_the_chain(path):
    written(path)
    written(path)
    report = verify(path)
    assert report.problem is None
    assert report.lines == 10
    assert json.loads(path.read_bytes().splitlines()[5])["log"] == {"action": "opened"}


def test_head_is_known_to_the_caller(path):
    log = AuditLog(path)
    log.write({"a": 1})
    assert (log.sequence, log.hash) == (2, verify(path).hash)
    log.close()
    log.close()
    assert not log.write({"a": 2})


@pytest.mark.parametrize("which", ["log", "head"])
def test_links_are_not_followed(path, which):
    path.parent.mkdir()
    target = path.parent / "target"
    target.write_text("precious")
    (path if which == "log" else head_path(path)).symlink_to(target)
    with pytest.raises(UserError):
        AuditLog(path)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("which", ["log", "head"])
def test_files_that_others_may_write(path, which):
    written(path)
    (path if which == "log" else head_path(path)).chmod(0o620)
    with pytest.raises(UserError, match="nobody else may write"):
        AuditLog(path)


def test_a_fifo_does_not_hang(path):
    path.parent.mkdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(UserError):
        AuditLog(path)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the audit log"):
        AuditLog(tmp_path / "file" / "audit.jsonl")


SECOND = """
import sys
from pathlib import Path
from pqtun.protocol.errors import UserError
from pqtun.shell.audit import AuditLog
try:
    AuditLog(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


def test_a_second_writer_is_kept_out(path):
    log = AuditLog(path)
    tried = subprocess.run([sys.executable, "-c", SECOND, path], capture_output=True, text=True, timeout=60, check=True)
    assert "another process writes" in tried.stdout
    log.close()
    tried = subprocess.run([sys.executable, "-c", SECOND, path], capture_output=True, text=True, timeout=60, check=True)
    assert tried.stdout == ""
    assert verify(path).problem is None


def test_a_child_does_not_keep_the_log(path):
    """Connections outlive a listener; the next one must be able to write."""
    log = AuditLog(path)
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        log.close()
        written(path)
        assert verify(path).problem is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- rotation ---


def test_rotation(path):
    written(path, 40, max_bytes=2000)
    files = sorted(path.parent.iterdir())
    aside = [file for file in files if file.name.startswith("audit.jsonl.0")]
    assert len(aside) > 2
    assert all(file.stat().st_size < 3000 for file in aside)
    report = verify(path)
    assert report.problem is None
    assert report.files == [*aside, path]
    assert (report.first, report.notes) == (1, [])
    for number, file in enumerate(aside):
        alone = verify(file)
        assert alone.problem is None
        assert alone.files == aside[: number + 1]


def test_an_old_file_that_was_taken_away(path):
    written(path, 40, max_bytes=2000)
    aside = sorted(path.parent.glob("audit.jsonl.0*"))
    aside[0].unlink()
    report = verify(path)
    assert report.problem is None
    assert report.notes == [f"lines 1 to {report.first - 1} were put aside and are not here"]
    aside[1].unlink()
    assert verify(path).first > report.first
    assert verify(path).problem is None


def test_an_old_file_that_was_taken_from_among_others(path):
    written(path, 40, max_bytes=2000)
    aside = sorted(path.parent.glob("audit.jsonl.0*"))
    aside[1].unlink()
    for file in (path, aside[2]):
        assert str(verify(file).problem) == f"{aside[1]}: it is missing, while {aside[0].name} before it is here"
    assert verify(aside[0]).problem is None


def test_a_change_in_an_old_file(path):
    written(path, 40, max_bytes=2000)
    aside = sorted(path.parent.glob("audit.jsonl.0*"))[1]
    aside.write_bytes(aside.read_bytes().replace(b'"number":', b'"nomber":', 1))
    problem = verify(path).problem
    assert problem.file == aside
    assert problem.line == 2
    assert "changed" in problem.text


def test_the_end_of_an_old_file(path):
    written(path, 40, max_bytes=2000)
    aside = sorted(path.parent.glob("audit.jsonl.0*"))[1]
    aside.write_bytes(b"".join(aside.read_bytes().splitlines(keepends=True)[:-1]))
    assert "missing" in verify(path).problem.text
    assert "head file is missing" in verify(aside).problem.text


@pytest.mark.parametrize(("step", "call"), [("link", 1), ("rename", 1), ("pwrite", 1), ("pwrite", 2)])
def test_killed_while_rotating(path, step, call, monkeypatch):
    log = AuditLog(path, max_bytes=600)
    while path.stat().st_size < 600:
        log.write({"filling": "up"})

    class Killed(BaseException):
        pass

    calls, real = [], getattr(os, step)

    def kill(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, kill)
        with pytest.raises(Killed):
            log.write({"never": "written"})
    for descriptor in (log._file, log._head_file):
        os.close(descriptor)
    written(path, 3)
    report = verify(path)
    assert report.problem is None
    assert len(report.files) == 2
    assert report.first == 1
    assert not path.with_name("audit.jsonl.new").exists()


def test_no_room_for_a_fresh_file(path, monkeypatch):
    log = AuditLog(path, max_bytes=600)
    while path.stat().st_size < 600:
        log.write({"filling": "up"})

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        assert not log.write({"number": 1})
        assert not log.write({"number": 2})
        assert verify(path).problem is None
    assert log.write({"number": 3})
    log.close()
    report = verify(path)
    assert report.problem is None
    assert "2 events" in report.notes[0]
    assert len(report.files) == 2


# --- what a crash leaves ---


def test_a_torn_line(path):
    lines = written(path)
    with path.open("ab") as file:
        file.write(lines[2][:50])
    assert "cut off" in verify(path).problem.text
    written(path, 2)
    report = verify(path)
    assert report.problem is None
    assert report.notes == [report.notes[0]]
    assert "50 bytes of an unfinished line were removed" in report.notes[0]


def test_a_line_that_the_head_does_not_know_yet(path):
    written(path)
    head = head_path(path).read_bytes()
    log = AuditLog(path)
    log.write({"last": "words"})
    log.close()
    head_path(path).write_bytes(head)
    assert "unknown to the head file" in verify(path).problem.text
    written(path, 2)
    report = verify(path)
    assert report.problem is None
    assert "2 lines were newer" in report.notes[0]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_lines_that_a_power_failure_took_stay_missing(path, left):
    """Found when it is opened, and for ever after."""
    lines = written(path)
    path.write_bytes(b"".join(lines[:left]))
    before = verify(path).problem.text
    assert "5 are missing" in before
    written(path, 2)
    after = verify(path).problem
    assert "missing" in after.text or "gone" in after.text
    assert after.line == left + 1


def test_a_line_after_a_torn_one_stands_by_itself(path):
    lines = written(path)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
    written(path, 2)
    after = path.read_bytes().splitlines(keepends=True)
    assert after[2] == lines[2][:40] + b"\n"
    assert decode(after[3]).log_action() == "missing"
    assert verify(path).problem.line == 3


def test_a_log_that_was_removed(path):
    written(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        verify(path)
    written(path, 2)
    assert "gone" in verify(path).problem.text


def test_a_head_that_was_removed(path):
    written(path)
    head_path(path).unlink()
    assert "head file is missing" in verify(path).problem.text
    written(path, 2)
    assert "head file was gone" in verify(path).problem.text


@pytest.mark.parametrize("content", [b"", bytes(HEAD_BYTES), b"{}", Head(4, NO_HASH, 100).encode()])
def test_a_head_that_is_damaged(path, content):
    written(path)
    head_path(path).write_bytes(content)
    assert verify(path).problem is not None
    written(path, 2)
    assert verify(path).problem is not None


def test_what_happens_to_an_open_log(path):
    log = AuditLog(path)
    log.write({"number": 1})
    path.rename(path.with_name("elsewhere"))
    assert log.write({"number": 2})
    log.close()
    assert "gone" in verify(path).problem.text
    assert events(path) == [{"number": 2}]


def test_an_open_log_that_was_cut(path):
    log = AuditLog(path)
    for number in range(3):
        log.write({"number": number})
    os.truncate(path, path.read_bytes().rfind(b"\n", 0, -1) + 1)
    assert log.write({"number": 3})
    log.close()
    assert "line 4 is missing" in verify(path).problem.text


def test_an_open_log_that_somebody_wrote_to(path):
    log = AuditLog(path)
    with path.open("ab") as file:
        file.write(b"hello\n")
    assert log.write({"number": 1})
    log.close()
    report = verify(path)
    assert report.problem is None
    assert "6 bytes" in report.notes[0]


FULL = """
import resource, sys
from pathlib import Path
from pqtun.shell.audit import AuditLog
path = Path(sys.argv[1])
log = AuditLog(path)
log.write({"number": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, resource.RLIM_INFINITY))
assert not log.write({"number": 1})
assert not log.write({"number": 2})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert log.write({"number": 3})
log.close()
"""


def test_a_full_disk(path):
    """The kernel takes 100 bytes of a line and then no more, as on a full disk."""
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("events are lost") == 1
    report = verify(path)
    assert report.problem is None
    assert report.notes == [report.notes[0]]
    assert "2 events could not be written" in report.notes[0]
    assert events(path) == [{"number": 0}, {"number": 3}]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_failures_are_logged_once(path, caplog):
    log = AuditLog(path)
    log.close()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not log.write({"number": 1})
    assert len(caplog.records) == 1


WRITER = """
import sys, time
from pathlib import Path
from pqtun.shell.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), max_bytes=20_000)
print(flush=True)
while True:
    log.write({"text": "x" * 200})
    time.sleep(float(sys.argv[2]))
"""


def test_killed_again_and_again_while_writing(path):
    """Whenever SIGKILL comes, no line is lost; and a log that is being written to can be checked."""
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", WRITER, path, "0"], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            size = path.stat().st_size
            deadline = time.monotonic() + 30
            while len(list(path.parent.iterdir())) < 4 and path.stat().st_size == size:
                assert time.monotonic() < deadline
            writer.kill()
    written(path, 2)
    report = verify(path)
    assert report.problem is None
    assert report.first == 1


def test_checked_while_it_is_written(path):
    """And put aside: the check sees all lines up to some moment, and nothing wrong."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path, "0.0005"], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        deadline = time.monotonic() + 60
        try:
            while len((report := verify(path)).files) < 4:
                assert report.problem is None
                assert report.first == 1
                assert time.monotonic() < deadline
        finally:
            writer.kill()


def test_names():
    assert head_path(Path("/a/b.jsonl")) == Path("/a/b.jsonl.head")
    assert rotated_path(Path("/a/b.jsonl"), 17) == Path("/a/b.jsonl.000000000017")
