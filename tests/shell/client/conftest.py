"""One sshd in a namespace for all tests of a module that share connections."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.lab import Lab
from tests.shell.client.sshd import Sshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Lab() as lab:
        directory = Path(tmp_path_factory.mktemp("sshd"))
        yield Sshd(lab, lab.namespace("shared"), directory)
