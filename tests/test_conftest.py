"""A skip has a reason, and is a failure in CI."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CASES = """
import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="no such thing here")
def test_skips():
    pass

@pytest.mark.root
def test_needs_root():
    pass

@pytest.mark.xfail(reason="a known defect")
def test_known_defect():
    assert False
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path)
    conftest = pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + "\nNEEDS['root'] = (lambda: 'needs root',)\n")
    pytester.makeini("[pytest]\nmarkers =\n root: needs root\n net\n interop\n")
    pytester.makepyfile(CASES)
    return pytester


def test_skips_say_why(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    result = suite.runpytest("-rs")
    result.assert_outcomes(passed=1, skipped=2, xfailed=1)
    result.stdout.fnmatch_lines(["*no such thing here*", "*needs root*"])


def test_a_skip_fails_in_ci(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = suite.runpytest()
    assert result.parseoutcomes().get("skipped", 0) == 0
    assert result.parseoutcomes()["passed"] == 1
    assert result.parseoutcomes()["xfailed"] == 1
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*CI=true does not allow*no such thing here*"])


def test_a_module_that_skips_itself_fails_in_ci(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.makepyfile(test_whole="import pytest\npytest.skip('not this machine', allow_module_level=True)\n")
    monkeypatch.setenv("CI", "true")
    assert suite.runpytest("test_whole.py").ret != 0
    monkeypatch.setenv("CI", "false")
    assert suite.runpytest("test_whole.py").parseoutcomes() == {"skipped": 1}


def test_net_and_interop_come_last(pytester: pytest.Pytester) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path)
    pytester.makeini("[pytest]\nmarkers =\n root\n net\n interop\n tun\n nft_owner\n")
    for room in ("interop", "keys", "net", "zebra"):
        folder = pytester.mkdir(room)
        (folder / f"test_{room}.py").write_text("def test_it(): pass\n")
    lines = pytester.runpytest("--collect-only", "-q").stdout.lines
    assert [line.partition("/")[0] for line in lines if "::" in line] == ["keys", "zebra", "net", "interop"]
    assert "1/4 tests collected" in pytester.runpytest("--collect-only", "-q", "-m", "interop").stdout.str()
