import json

import pytest

from pqtun.cli.main import main
from pqtun.shell.audit import AuditLog, head_path
from pqtun.shell.auditline import NO_HASH, Head, encode


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    opened = AuditLog(path)
    for number in range(3):
        opened.write({"event": "login", "number": number})
    opened.close()
    return path


def run(capsys, *arguments):
    try:
        code = main(["audit", "verify", *map(str, arguments)])
    except SystemExit as stopped:
        code = stopped.code
    return code, *capsys.readouterr()


def test_good_log(log, capsys):
    code, out, err = run(capsys, log)
    last = json.loads(log.read_bytes().splitlines()[-1])["hash"]
    assert (code, err) == (0, "")
    assert out.startswith("good: 4 lines, number 1 to 4, in 1 file(s)\n")
    assert f"hash of the last line: {last}\n" in out
    assert run(capsys, log, "--contains", last.upper())[0] == 0
    code, out, _ = run(capsys, log, "--contains", "0" * 64)
    assert code == 1
    assert "noted elsewhere" in out


def test_bad_log(log, capsys):
    log.write_bytes(log.read_bytes().replace(b'"number":1', b'"number":7'))
    code, out, _ = run(capsys, log)
    assert code == 1
    assert f"BAD: {log}:3: its text was changed: the hash does not fit\n" in out
    code, out, _ = run(capsys, log, "--json")
    assert code == 1
    found = json.loads(out)
    assert found["good"] is False
    assert found["problem"]["line"] == 3
    assert found["lines"] == 2


def test_a_log_does_nothing_to_the_terminal(log, capsys):
    """Whoever makes a whole log can put anything into it."""
    line, digest = encode(1, 0, NO_HASH, {"log": {"action": "lost", "events": "\x1b[2J"}})
    log.write_bytes(line)
    head_path(log).write_bytes(Head(1, digest, len(line)).encode())
    code, out, _ = run(capsys, log)
    assert code == 0
    assert "\x1b" not in out
    assert "\\033[2J events could not be written" in out


def test_missing_end(log, capsys):
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
    assert f"BAD: {log}: lines 3 to 4 are missing at the end\n" in run(capsys, log)[1]


def test_json(log, capsys):
    code, out, _ = run(capsys, log, "--json")
    assert code == 0
    assert json.loads(out) == {
        "good": True,
        "files": [str(log)],
        "lines": 4,
        "first": 1,
        "last": 4,
        "hash": json.loads(log.read_bytes().splitlines()[-1])["hash"],
        "notes": [],
        "problem": None,
    }


def test_no_log(tmp_path, capsys):
    code, out, err = run(capsys, tmp_path / "none")
    assert (code, out) == (1, "")
    assert err == f"pqtun audit: {tmp_path / 'none'} cannot be read: No such file or directory\n"


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--contains", "12"], ["a", "--contains", "x" * 64]])
def test_wrong_usage(arguments, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "usage: pqtun" in err


def test_notes_do_not_make_a_log_bad(log, capsys):
    with log.open("ab") as file:
        file.write(b"torn")
    AuditLog(log).close()
    code, out, _ = run(capsys, log)
    assert code == 0
    assert out.startswith("note: line 5 ")
    assert head_path(log).exists()
