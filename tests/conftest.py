"""Order of the tests, and what they need of the machine.

A test says with a marker what it needs: `root`, `tun`, `nft_owner`. Everything in tests/net is `net` and needs all of
them; everything in tests/interop is `interop` as well. Where a need is not met the test skips and says why, unless
CI=true: there a skip, for whatever reason, is a failure.
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import hypothesis
import pytest

# A busy machine is slow, which is no fault of the code under test.
hypothesis.settings.register_profile(
    "pqtun", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("pqtun")

TESTS = Path(__file__).parent
ROOMS_LAST = ("net", "interop")  # the cheap tests come first
TUNGETFEATURES = 0x800454CF  # linux/if_tun.h


def no_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def no_tun() -> str | None:
    try:
        with open("/dev/net/tun", "rb") as tun:
            fcntl.ioctl(tun, TUNGETFEATURES, bytearray(4))
    except OSError as error:
        return f"needs /dev/net/tun: {error.strerror}"
    return None


def no_namespaces() -> str | None:
    return _fault("network namespaces with veth", "ip", "link", "add", "name", "probe0", "type", "veth")


def no_nft_owner() -> str | None:
    return _fault("nftables tables with the owner flag", "nft", "add table inet probe { flags owner; }")


def _fault(what: str, *command: str) -> str | None:
    """Why `command` fails in a network namespace of its own, or None."""
    try:
        subprocess.run(["unshare", "--net", *command], check=True, capture_output=True, text=True, timeout=20)
    except FileNotFoundError as error:
        return f"needs {what}: no program {error.filename}"
    except subprocess.CalledProcessError as error:
        return f"needs {what}: {error.stderr.strip()}"
    return None


NEEDS: dict[str, tuple[Callable[[], str | None], ...]] = {
    "root": (no_root,),
    "tun": (no_tun,),
    "nft_owner": (no_root, no_nft_owner),
    "net": (no_root, no_tun, no_namespaces, no_nft_owner),
}


@functools.cache
def unmet(need: str) -> str | None:
    """Why this machine cannot run tests with the marker `need`, or None."""
    return next((reason for probe in NEEDS[need] if (reason := probe())), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def room(item: pytest.Item) -> str:
        return item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""

    for item in items:
        if room(item) in ROOMS_LAST:
            item.add_marker("net")
        if room(item) == "interop":
            item.add_marker("interop")
    items.sort(key=lambda item: ROOMS_LAST.index(room(item)) if room(item) in ROOMS_LAST else -1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in NEEDS:
        if item.get_closest_marker(need) and (reason := unmet(need)):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _no_skip_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _no_skip_in_ci(report)
    return report


def _no_skip_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome == "skipped" and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {report.longreprtext}"
