"""What the tests with PQConnect share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.debian import PQCONNECT, Unavailable
from tests.net.lab import Lab


@pytest.fixture(scope="module")
def root() -> Path:
    try:
        return PQCONNECT.root()
    except Unavailable as reason:
        pytest.skip(f"no PQConnect: {reason}")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made
