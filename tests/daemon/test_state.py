import os
import pwd

import pytest

from pqtun.daemon.state import prepare_state
from pqtun.protocol.errors import UserError

pytestmark = pytest.mark.root


@pytest.fixture
def user():
    return pwd.getpwnam("nobody")


def test_made_with_its_parents_for_the_worker(tmp_path, user):
    state = tmp_path / "lib" / "pqtun"
    for _ in range(2):
        os.close(prepare_state(state, user))
        found = state.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (user.pw_uid, user.pw_gid, 0o700)
        (state / "peers.sqlite").write_bytes(b"")


def test_what_is_not_pqtuns_is_left_alone(tmp_path, user):
    """A slip such as --state /etc must not give the directory to the worker."""
    mine = tmp_path / "etc"
    mine.mkdir(mode=0o755)
    (mine / "file").write_text("")
    with pytest.raises(UserError, match="root's and not empty"):
        prepare_state(mine, user)
    os.chown(mine, 1, 1)
    with pytest.raises(UserError, match="somebody else"):
        prepare_state(mine, user)
    assert mine.stat().st_mode & 0o777 == 0o755
    assert mine.stat().st_uid == 1
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="symbolic link"):
        prepare_state(link, user)
    assert (tmp_path / "empty").stat().st_uid == 0


def test_one_client_at_a_time(tmp_path, user):
    first = prepare_state(tmp_path / "state", user)
    with pytest.raises(UserError, match="in use by another pqtun client"):
        prepare_state(tmp_path / "state", user)
    os.close(first)
    os.close(prepare_state(tmp_path / "state", user))
