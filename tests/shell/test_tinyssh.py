import os
import stat
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell import tinyssh
from pqtun.shell.keyfile import ExistsError

KEY = asyncssh.generate_private_key("ssh-ed25519")

# The first key of RFC 8032, 7.1.
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")


def modes(directory):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "keys"
    made.mkdir()
    (made / "ed25519.pk").write_bytes(PUBLIC)
    (made / ".ed25519.sk").write_bytes(SEED + PUBLIC)
    (made / ".ed25519.sk").chmod(0o600)
    return made


def test_files(tmp_path):
    made = tmp_path / "made"
    tinyssh.save(made, KEY)
    assert modes(made) == {"ed25519.pk": 0o644, ".ed25519.sk": 0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    public = (made / "ed25519.pk").read_bytes()
    assert len(public) == 32
    assert KEY.public_data.endswith(public)
    assert (made / ".ed25519.sk").read_bytes()[32:] == public
    assert tinyssh.load(made) == KEY
    assert os.listdir(tmp_path) == ["made"]


def test_known_key(directory):
    key = tinyssh.load(directory)
    assert key.public_data.endswith(PUBLIC)
    (directory / "ed25519.pk").unlink()
    assert tinyssh.load(directory) == key


def test_not_over_another(tmp_path):
    for _ in range(2):
        (tmp_path / "made").mkdir(exist_ok=True)
        with pytest.raises(ExistsError):
            tinyssh.save(tmp_path / "made", KEY)
    assert os.listdir(tmp_path / "made") == []


def test_other_keys(tmp_path):
    for key in (asyncssh.generate_private_key("ssh-mldsa44-ed25519"), asyncssh.generate_private_key("ssh-rsa")):
        with pytest.raises(UserError, match="ssh-ed25519 keys only"):
            tinyssh.save(tmp_path / "made", key)
    assert os.listdir(tmp_path) == []


def test_secret_that_others_may_read(directory):
    (directory / ".ed25519.sk").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        tinyssh.load(directory)


def test_halves_that_do_not_fit(directory):
    (directory / ".ed25519.sk").write_bytes(bytes(32) + PUBLIC)
    with pytest.raises(UserError, match="damaged"):
        tinyssh.load(directory)
    (directory / ".ed25519.sk").write_bytes(SEED + PUBLIC)
    (directory / "ed25519.pk").write_bytes(bytes(32))
    with pytest.raises(UserError, match="does not belong"):
        tinyssh.load(directory)


@given(secret=st.binary(max_size=70), public=st.binary(min_size=30, max_size=34))
def test_any_bytes(tmp_path_factory, secret, public):
    made = tmp_path_factory.getbasetemp() / "anything"
    made.mkdir(exist_ok=True)
    (made / "ed25519.pk").write_bytes(public)
    (made / ".ed25519.sk").touch()
    (made / ".ed25519.sk").chmod(0o600)
    (made / ".ed25519.sk").write_bytes(secret)
    with pytest.raises(UserError) as caught:
        tinyssh.load(made)
    assert len(secret) < 8 or secret.hex() not in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        tinyssh.load(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        tinyssh.save(tmp_path / "none" / "keys", KEY)


@pytest.mark.parametrize("path", ["", "/", ".."])
def test_no_name_of_a_directory(path):
    with pytest.raises(UserError, match="no name of a file"):
        tinyssh.save(Path(path), KEY)
