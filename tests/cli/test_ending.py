"""Commands whose output goes nowhere."""

import os
import subprocess
import sys

import pytest

from pqtun.cli import ending
from pqtun.protocol.errors import UserError

COMMANDS = pytest.mark.parametrize(
    "command",
    [["scp", "--help"], ["sftp", "--help"], ["ssh-keygen", "-lf"], ["client", "--help"], ["keygen", "--help"]],
    ids=" ".join,
)
MAIN = "import sys; from pqtun.cli.main import main; sys.exit(main())"


def pqtun(arguments, **streams):
    argv = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(
        argv, timeout=30, stderr=subprocess.PIPE, text=True, **{"stdin": subprocess.DEVNULL} | streams
    )


@pytest.fixture
def key(tmp_path):
    key = tmp_path / "key"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(argv, check=True, timeout=20)
    return key


@COMMANDS
def test_a_full_disk_is_told_in_one_line(command, key):
    with open("/dev/full", "w") as full:
        ended = pqtun([*command, key], stdout=full)
    assert (ended.returncode, ended.stderr) == (1, f"pqtun {command[0]}: No space left on device\n")


@COMMANDS
def test_nobody_is_told_that_nobody_reads(command, key):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        ended = pqtun([*command, key], stdout=nobody)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize("name", ["scp", "sftp"])
def test_closed_standard_input_and_output(name):
    argv = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", MAIN, name, "--nonsense"]
    ended = subprocess.run(argv, timeout=30, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"pqtun {name}: unknown option --nonsense\n")


def test_names_that_are_no_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff"
    ended = pqtun(["ssh-keygen", "-t", "ed25519", "-N", "", "-f", name], stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\udcff.pub" in ended.stdout
    assert os.path.exists(name)


def test_codes_and_lines(capsys):
    def refuse():
        raise UserError("two\nlines")

    def interrupt():
        raise KeyboardInterrupt

    def break_down():
        raise FileNotFoundError(2, "a mistake of the program's")

    assert ending.run("x", lambda: 7) == 7
    assert (ending.run("x", refuse), capsys.readouterr().err) == (1, "x: two lines\n")
    assert (ending.run("x", interrupt), capsys.readouterr().err) == (130, "\n")
    with pytest.raises(FileNotFoundError):
        ending.run("x", break_down)
