"""An audit log to try things on."""

import json

from pqtun.shell.audit import AuditLog


def written(path, count=5, **settings):
    """A closed log of `count` lines: "started", and events."""
    log = AuditLog(path, **settings)
    for number in range(count - 1):
        assert log.write({"event": "test", "number": number})
    log.close()
    return path.read_bytes().splitlines(keepends=True)


def events(path):
    return [json.loads(line).get("event") for line in path.read_bytes().splitlines() if b'"event":' in line]
