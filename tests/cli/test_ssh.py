"""`pqtun ssh` where nothing can be printed."""

import subprocess

import pytest

from tests.net import pqtun


def run(*arguments: str, full: str) -> tuple[int, str]:
    """The exit code, and what came on stderr; ``full``: the stream that leads to a full disk."""
    with open("/dev/full", "wb") as nowhere:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, full: nowhere}
        done = subprocess.run(pqtun.argv("ssh", "-F", "none", *arguments), timeout=30, check=False, **streams)
    return done.returncode, (done.stderr or b"").decode()


@pytest.mark.parametrize("arguments", [["-V"], ["--help"], ["-G", "host"]])
def test_output_that_cannot_be_written_is_told(arguments):
    assert run(*arguments, full="stdout") == (255, "pqtun ssh: standard output: No space left on device\n")


@pytest.mark.parametrize("arguments", [[], ["-y", "host"], ["bad,host"]])
def test_a_fault_that_nobody_hears_has_its_code(arguments):
    assert run(*arguments, full="stderr") == (255, "")
