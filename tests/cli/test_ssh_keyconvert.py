import asyncssh
import pytest

from pqtun.cli.main import main
from pqtun.shell import keyfile, ssh, tinyssh

ssh.prepare()


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            code = main(["ssh-keyconvert", *map(str, arguments)])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def key(tmp_path):
    made = asyncssh.generate_private_key("ssh-ed25519", "a comment")
    keyfile.save_pair(tmp_path / "key", made)
    return made


def test_there_and_back(run, tmp_path, key):
    code, out, err = run("to-tinyssh", tmp_path / "key", tmp_path / "tiny")
    assert (code, err) == (0, "")
    assert key.get_fingerprint() in out
    assert tinyssh.load(tmp_path / "tiny") == key
    code, out, err = run("from-tinyssh", tmp_path / "tiny", tmp_path / "back", "-C", "again", "-N", "secret")
    assert (code, err) == (0, "")
    back = keyfile.load_private(tmp_path / "back", lambda path: "secret")
    assert back == key
    assert back.get_comment() == "again"
    assert (tmp_path / "back.pub").read_text().endswith(" again\n")


def test_encrypted_key(run, tmp_path, key):
    keyfile.save_private(tmp_path / "key", key, "secret", replace=True, rounds=1)
    code, out, err = run("to-tinyssh", tmp_path / "key", tmp_path / "tiny", "-P", "wrong")
    assert (code, out) == (1, "")
    assert "passphrase of -P" in err
    assert not (tmp_path / "tiny").exists()
    assert run("to-tinyssh", tmp_path / "key", tmp_path / "tiny", "-P", "secret")[0] == 0


def test_refusals(run, tmp_path, key):
    (tmp_path / "tiny").mkdir()
    for arguments in (
        ("to-tinyssh", tmp_path / "key", tmp_path / "tiny"),
        ("to-tinyssh", tmp_path / "none", tmp_path / "new"),
        ("from-tinyssh", tmp_path / "tiny", tmp_path / "new"),
        ("from-tinyssh", tmp_path / "none", tmp_path / "new"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("pqtun ssh-keyconvert: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_nothing_is_replaced(run, tmp_path, key):
    tinyssh.save(tmp_path / "tiny", key)
    (tmp_path / "new.pub").write_text("precious")
    code, _, err = run("from-tinyssh", tmp_path / "tiny", tmp_path / "new")
    assert code == 1
    assert "already exists" in err
    assert not (tmp_path / "new").exists()


def test_mldsa_keys(run, tmp_path):
    keyfile.save_private(tmp_path / "key", asyncssh.generate_private_key("ssh-mldsa44-ed25519"))
    code, _, err = run("to-tinyssh", tmp_path / "key", tmp_path / "tiny")
    assert code == 1
    assert "ssh-ed25519 keys only" in err


def test_wrong_usage(run):
    for arguments in ((), ("to-tinyssh",), ("sideways", "a", "b")):
        assert run(*arguments)[0] == 2
