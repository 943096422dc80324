import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pqtun.shell.audit import AuditLog, head_path
from pqtun.shell.auditcheck import verify
from tests.shell.auditlog import events


class Life(RuleBasedStateMachine):
    """A log that is written, closed, torn and rotated in any order is good, and holds every event."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "audit.jsonl"
        self.log = None
        self.count = 0

    @precondition(lambda self: self.log is None)
    @rule(max_bytes=st.sampled_from([1, 500, 5000, 1 << 20]))
    def open(self, max_bytes):
        self.log = AuditLog(self.path, max_bytes=max_bytes)

    @precondition(lambda self: self.log)
    @rule(count=st.integers(1, 5))
    def write(self, count):
        for _ in range(count):
            assert self.log.write({"number": self.count})
            self.count += 1

    @precondition(lambda self: self.log)
    @rule()
    def close(self):
        self.log.close()
        self.log = None

    @precondition(lambda self: self.log is None and self.path.exists())
    @rule(rest=st.binary(max_size=50))
    def tear(self, rest):
        with self.path.open("ab") as file:
            file.write(rest.replace(b"\n", b""))
        self.open(5000)

    @precondition(lambda self: self.log is None and self.count)
    @rule()
    def head_is_behind(self):
        head = head_path(self.path).read_bytes()
        self.open(1 << 20)
        self.write(1)
        self.close()
        head_path(self.path).write_bytes(head)
        self.open(1 << 20)

    @invariant()
    def good(self):
        if self.count:
            report = verify(self.path)
            assert report.problem is None
            numbers = [event["number"] for file in report.files for event in events(file)]
            assert numbers == list(range(self.count))

    def teardown(self):
        if self.log:
            self.log.close()
        self.directory.cleanup()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
