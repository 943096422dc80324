"""What is said, and asked without a terminal."""

import os
import stat
import subprocess
import sys

import pytest

from pqtun.protocol.errors import UserError
from pqtun.shell.client.ui import UserInterface


def spoken(tmp_path, level):
    log = tmp_path / "log"
    ui = UserInterface(level=level, log_file=str(log))
    ui.say("said")
    ui.fault("fault")
    ui.banner("banner")
    for number in (1, 2, 3):
        ui.debug("detail", number)
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ("QUIET", []),
        ("ERROR", ["fault"]),
        ("INFO", ["said", "fault", "banner"]),
        ("DEBUG", ["said", "fault", "banner", "debug1: detail"]),
        ("DEBUG3", ["said", "fault", "banner", "debug1: detail", "debug2: detail", "debug3: detail"]),
    ],
)
def test_levels(tmp_path, level, lines):
    assert spoken(tmp_path, level) == lines


@pytest.mark.parametrize("how", ["say", "fault", "banner", "debug"])
def test_what_is_printed_cannot_steer_the_terminal(tmp_path, how):
    log = tmp_path / "log"
    getattr(UserInterface(level="DEBUG", log_file=str(log)), how)("\x1b]0;title\x07one\r\ntwo\tthree\n\x9b2J\u202e")
    lines = log.read_text().removeprefix("debug1: ")
    assert lines == "\\033]0;title\\007one\ntwo\tthree\n\\302\\2332J\\342\\200\\256\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="Couldn't open logfile"):
        UserInterface(log_file=str(tmp_path))


def asked(tmp_path, *, answer="secret", code=0, batch=False, **environment):
    """What a program without a terminal is told when it asks; it has a session of its own."""
    program = tmp_path / "askpass"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/prompt\necho {answer}\nexit {code}\n')
    program.chmod(0o700)
    code_text = (
        "from pqtun.shell.client.ui import UserInterface\n"
        f"print(repr(UserInterface(batch={batch}).ask('Passphrase: ', echo=False)))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env = {**kept, "PYTHONPATH": os.getcwd(), "SSH_ASKPASS": str(program), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code_text], env=env, capture_output=True, text=True, timeout=30, start_new_session=True
    )
    return done.stdout.strip()


def test_askpass(tmp_path):
    assert asked(tmp_path) == "None"  # no screen to show it on
    assert asked(tmp_path, DISPLAY=":0") == "'secret'"
    assert (tmp_path / "prompt").read_text() == "Passphrase: \n"
    assert asked(tmp_path, SSH_ASKPASS_REQUIRE="force") == "'secret'"
    assert asked(tmp_path, DISPLAY=":0", SSH_ASKPASS_REQUIRE="never") == "None"
    assert asked(tmp_path, DISPLAY=":0", code=1) == "None"
    assert asked(tmp_path, DISPLAY=":0", batch=True) == "None"
    assert asked(tmp_path, DISPLAY=":0", SSH_ASKPASS="/nowhere") == "None"
