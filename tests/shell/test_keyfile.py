import errno
import os
import stat
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import SSHPacket, String
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell import keyfile
from pqtun.shell.keyfile import EncryptedError, ExistsError, load_private, load_public, save_pair, save_private
from tests.shell.vectors import SSH, place, private_key

TYPES = ["ssh-mldsa44-ed25519", "ssh-ed25519"]
KEY = asyncssh.generate_private_key("ssh-mldsa44-ed25519", "a comment")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def answers(*texts):
    left = list(texts)

    def ask(path):
        return left.pop(0)

    ask.left = left
    return ask


@pytest.mark.parametrize("passphrase", ["", "secret"])
@pytest.mark.parametrize("algorithm", TYPES)
def test_saved_and_loaded(tmp_path, algorithm, passphrase):
    path = tmp_path / "key"
    key = asyncssh.generate_private_key(algorithm, "my comment")
    old = os.umask(0)
    try:
        save_pair(path, key, passphrase, rounds=1)
    finally:
        os.umask(old)
    assert mode(path) == 0o600
    assert mode(tmp_path / "key.pub") == 0o644
    assert sorted(os.listdir(tmp_path)) == ["key", "key.pub"]
    loaded = load_private(path, answers("secret"))
    assert loaded == key
    assert loaded.get_comment() == "my comment"
    assert load_public(path) == load_public(tmp_path / "key.pub") == key.convert_to_public()


def test_passphrase_is_asked_three_times(tmp_path):
    path = tmp_path / "key"
    save_private(path, KEY, "right", rounds=1)
    assert load_private(path, answers("wrong", "wrong", "right")) == KEY
    ask = answers("wrong", "wrong", "wrong", "right")
    with pytest.raises(UserError, match="wrong passphrase"):
        load_private(path, ask)
    assert ask.left == ["right"]
    with pytest.raises(EncryptedError):
        load_private(path, answers(""))
    with pytest.raises(EncryptedError):
        load_private(path)


def test_recorded_encrypted_file(tmp_path):
    path = place(tmp_path, "encrypted")
    assert load_private(path, answers("test passphrase")).get_comment() == "interop@test"
    assert load_public(path) == asyncssh.read_public_key(SSH / "id_mldsa44_ed25519.pub")


@pytest.mark.parametrize("readable", [0o644, 0o640, 0o604, 0o660, 0o700 | 0o010])
def test_private_key_that_others_may_read(tmp_path, readable):
    path = place(tmp_path)
    path.chmod(readable)
    with pytest.raises(UserError, match="chmod 600"):
        load_private(path)
    load_public(path)  # which takes nothing secret from it


@pytest.mark.root
def test_private_key_of_another_user(tmp_path):
    """As in ssh, it is its owner's business who may read it."""
    path = place(tmp_path)
    path.chmod(0o644)
    os.chown(path, 12345, 12345)
    load_private(path)


@pytest.mark.parametrize("kind", ["", "-cert"])
def test_nothing_is_replaced_without_being_asked(tmp_path, kind):
    path = tmp_path / "key"
    (tmp_path / f"key{'.pub' if kind else ''}").write_text("precious")
    with pytest.raises(ExistsError, match="already exists"):
        save_pair(path, KEY)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]
    save_pair(path, KEY, replace=True)
    assert load_private(path) == KEY


def test_dangling_link_is_not_followed(tmp_path):
    path = tmp_path / "key"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExistsError):
        save_private(path, KEY)
    assert not (tmp_path / "elsewhere").exists()


def test_nothing_is_left_where_writing_fails(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_private(tmp_path / "key", KEY)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        save_private(tmp_path / "none" / "key", KEY)


def test_files_that_are_no_key(tmp_path):
    path = tmp_path / "key"
    path.touch(0o600)
    for load in (load_private, load_public, keyfile.load_certificate, keyfile.fingerprints):
        with pytest.raises(UserError, match="does not hold"):
            load(path)
        with pytest.raises(UserError, match="cannot be read"):
            load(tmp_path / "none")
        with pytest.raises(UserError, match="directory"):
            load(tmp_path)
    path.write_bytes(bytes(keyfile.MAX_FILE_BYTES + 1))
    with pytest.raises(UserError, match="too long"):
        load_private(path)


@given(st.data())
def test_damaged_file(tmp_path_factory, data):
    """What comes out of a private key file is the key, or one line that says why not."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    content = bytearray(private_key())
    match data.draw(st.sampled_from(["change", "cut", "insert"])):
        case "change":
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        case "cut":
            del content[data.draw(st.integers(0, len(content))) :]
        case "insert":
            place = data.draw(st.integers(0, len(content)))
            content[place:place] = data.draw(st.binary(max_size=10))
    path.write_bytes(content)
    path.chmod(0o600)
    good = asyncssh.read_public_key(SSH / "id_mldsa44_ed25519.pub")
    for load in (load_private, load_public):
        try:
            assert load(path).public_data == good.public_data or load is load_public
        except UserError:
            pass


@given(st.binary(max_size=300))
def test_any_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any"
    path.touch()
    path.chmod(0o600)
    path.write_bytes(content)
    for load in (load_private, load_public, keyfile.fingerprints, keyfile.load_certificate):
        with pytest.raises(UserError):
            load(path)


def test_public_part_of_another_key(tmp_path):
    """The clear part of the file, which is shown without a passphrase, must be of the key within."""
    path = tmp_path / "key"
    other = asyncssh.generate_private_key("ssh-ed25519")
    key = asyncssh.generate_private_key("ssh-ed25519")
    data = bytearray(decoded(key.export_private_key()))
    place = bytes(data).find(key.public_data)
    data[place : place + len(key.public_data)] = other.public_data
    path.touch(0o600)
    path.write_bytes(encoded(bytes(data)))
    with pytest.raises(UserError, match="damaged"):
        load_private(path)


def decoded(file):
    return b64decode(b"".join(file.splitlines()[1:-1]))


def encoded(blob):
    return asyncssh.misc.wrap_base64(blob, b"OPENSSH PRIVATE KEY")


def test_errors_hold_no_secret(tmp_path):
    path = place(tmp_path)
    secret = private_key().splitlines()[-4]
    path.write_bytes(private_key().replace(b"A", b"B"))
    with pytest.raises(UserError) as caught:
        load_private(path)
    assert secret.decode() not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa", "dsa"])
@pytest.mark.parametrize("passphrase", ["", "secret"])
def test_fingerprints_are_those_of_ssh_keygen(tmp_path, kind, passphrase):
    path = tmp_path / "key"
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "some one", "-f", path]
    made = subprocess.run(argv, check=False, timeout=60, capture_output=True, text=True)
    if kind == "dsa" and made.returncode:
        pytest.skip(f"this ssh-keygen makes none: {made.stderr}")
    assert made.returncode == 0, made.stderr
    for file in (path, tmp_path / "key.pub"):
        for hash_name in ("sha256", "md5"):
            shown = subprocess.run(
                ["ssh-keygen", "-l", "-E", hash_name, "-f", file],
                check=True,
                timeout=20,
                capture_output=True,
                text=True,
            ).stdout
            assert keyfile.fingerprints(file, hash_name) == shown.splitlines()


def test_fingerprint_of_the_recorded_key(tmp_path):
    line = "512 SHA256:LepoCVdVsZ+r8VNDsiyRVT/sgbNSpUTyvAvii8rQmso interop@test (MLDSA44-ED25519)"
    assert keyfile.fingerprints(SSH / "id_mldsa44_ed25519.pub") == [line]
    path = place(tmp_path)
    assert keyfile.fingerprints(path) == [line.replace("interop@test", "no comment")]
    (tmp_path / "id_mldsa44_ed25519.pub").write_bytes((SSH / "id_mldsa44_ed25519.pub").read_bytes())
    assert keyfile.fingerprints(path) == [line]


def test_fingerprints_of_keys_that_ssh_keygen_does_not_make(tmp_path):
    (tmp_path / "ed448.pub").write_bytes(asyncssh.generate_private_key("ssh-ed448", "c").export_public_key())
    (line,) = keyfile.fingerprints(tmp_path / "ed448.pub")
    assert line.startswith("456 SHA256:")
    assert line.endswith(" c (ED448)")
    point = SSHPacket(asyncssh.generate_private_key("ecdsa-sha2-nistp256").public_data[4 + 19 + 4 + 8 :]).get_string()
    name = "sk-ecdsa-sha2-nistp256@openssh.com"  # of a device, which makes it
    blob = String(name) + String("nistp256") + String(point) + String("ssh:")
    (tmp_path / "sk.pub").write_text(f"{name} {b64encode(blob).decode()} c\n")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "sk.pub"], check=True, timeout=20, capture_output=True, text=True
    ).stdout
    assert keyfile.fingerprints(tmp_path / "sk.pub") == shown.splitlines()


def test_fingerprints_of_many_keys(tmp_path):
    path = tmp_path / "authorized_keys"
    key = KEY.export_public_key().decode().strip()
    certificate = (SSH / "user-cert.pub").read_text().strip()
    path.write_text(f'# mine\n\n{key}\ncommand="a b c",no-pty {key} and more\n[host]:22 {key}\n{certificate}\n')
    lines = keyfile.fingerprints(path)
    assert [line.split()[1] for line in lines[:3]] == [KEY.get_fingerprint()] * 3
    assert lines[1].endswith("a comment and more (MLDSA44-ED25519)")
    assert lines[3].endswith("(MLDSA44-ED25519-CERT)")
    assert len(lines) == 4


def test_comments_are_shown_escaped(tmp_path):
    path = tmp_path / "key.pub"
    path.write_bytes(KEY.convert_to_public().export_public_key().replace(b"a comment", b"\x1b[31mred\xff"))
    (line,) = keyfile.fingerprints(path)
    assert "\x1b" not in line
    assert "\\x1b[31mred" in line


@pytest.mark.parametrize(
    ("path", "suffix", "found"),
    [
        ("/x/id", ".pub", "/x/id.pub"),
        ("/x/id", "-cert.pub", "/x/id-cert.pub"),
        ("/x/id.pub", "-cert.pub", "/x/id-cert.pub"),
    ],
)
def test_beside(path, suffix, found):
    assert str(keyfile.beside(Path(path), suffix)) == found


@pytest.mark.parametrize("path", ["", ".", "/", "..", "a/..", "a\0b"])
def test_no_name_of_a_file(path):
    for use in (keyfile.beside, lambda name: save_private(name, KEY), lambda name: save_pair(name, KEY)):
        with pytest.raises(UserError, match="no name of a file"):
            use(Path(path))
