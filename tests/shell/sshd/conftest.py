"""The world that tests of the server's users start from."""

from pathlib import Path

import pytest

from tests.shell.sshd.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.user("alice", 4001)
    world.user("bob", 4002, shell="/bin/bash")
    world.group.append("staff:x:4100:alice")
    world.group.append("audio:x:4101:alice,bob")
    return world
