import os
import shutil
import stat
from pathlib import Path

import pytest

from pqtun.keys import directory
from pqtun.keys.directory import PUBLIC, SIZES, generate, load_public, open_key_files
from pqtun.protocol import primitives
from pqtun.protocol.errors import UserError
from pqtun.protocol.keytree import KeyTree
from tests.protocol.vectors import VECTORS, load, public_key, secret_key

SECRET = [name for name in SIZES if name not in PUBLIC]


@pytest.fixture
def keys(tmp_path):
    """The recorded key directory, with the modes that it must have."""
    path = tmp_path / "keys"
    shutil.copytree(VECTORS / "server-keys", path)
    for name in SECRET:
        (path / name).chmod(0o600)
    return path


def load_all(path):
    files = open_key_files(path)
    try:
        return files.load()
    finally:
        files.close()


def failure(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300 + len(str(arguments))
    return text


def descriptors():
    return set(os.listdir("/proc/self/fd"))


# --- reading ---


def test_pqconnect_directory_loads(keys):
    key = load_all(keys)
    assert key.keyhash.hex() == load("keytree.json")["keyhash"]
    assert key.public == public_key()
    assert key.secret == secret_key()
    assert key.session_key == (keys / "session_key").read_bytes()
    assert load_public(keys) == public_key()


def test_no_secret_shows(keys):
    files = open_key_files(keys)
    key = files.load()
    files.close()
    for secret in (key.session_key, key.secret.x25519_sk, key.secret.mceliece_sk[:32]):
        for text in (repr(key), repr(files), str(vars(files))):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_loading_needs_the_descriptors_only(keys):
    files = open_key_files(keys)
    shutil.rmtree(keys)
    assert files.load().public == public_key()
    assert files.load().public == public_key()  # from the start again
    files.close()
    files.close()


def test_no_descriptor_leaks(keys):
    before = descriptors()
    load_all(keys)
    load_public(keys)
    (keys / "session_key").unlink()
    failure(open_key_files, keys)
    (keys / "mceliece_pk").write_bytes(b"")
    failure(load_public, keys)
    assert descriptors() == before


def test_descriptors_are_not_inherited(keys):
    files = open_key_files(keys)
    assert not any(os.get_inheritable(descriptor) for descriptor in files.descriptors.values())
    files.close()


def test_missing_directory(tmp_path):
    text = failure(open_key_files, tmp_path / "none")
    assert "no key directory" in text
    assert f"pqtun keygen --keys {tmp_path / 'none'}" in text
    assert "no key directory" in failure(load_public, tmp_path / "none")


@pytest.mark.parametrize("name", SIZES)
def test_missing_file(keys, name):
    (keys / name).unlink()
    text = failure(open_key_files, keys)
    assert str(keys / name) in text
    assert "missing" in text


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [-1, 1, -SIZES["x25519_pk"], 1000])
def test_file_of_another_size(keys, name, change):
    data = (keys / name).read_bytes()
    (keys / name).write_bytes(data[:change] if change < 0 else data + bytes(change))
    text = failure(open_key_files, keys)
    assert str(keys / name) in text
    assert "too short" in text if change < 0 else "too long" in text
    assert f"{len(data)}" in text


@pytest.mark.parametrize("name", SIZES)
def test_file_that_shrinks_after_it_was_opened(keys, name):
    files = open_key_files(keys)
    os.truncate(keys / name, 10)
    assert str(keys / name) in failure(files.load)
    files.close()


@pytest.mark.parametrize("name", SECRET)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_secret_that_others_may_open(keys, name, mode):
    (keys / name).chmod(mode)
    text = failure(open_key_files, keys)
    assert f"chmod 600 {keys / name}" in text
    (keys / name).chmod(0o400)
    load_all(keys)


def test_public_files_need_no_secret(keys):
    for name in SECRET:
        (keys / name).unlink()
    assert load_public(keys) == public_key()


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_something_else_in_place_of_a_file(keys, kind):
    (keys / "x25519_sk").unlink()
    (os.mkfifo if kind == "fifo" else os.mkdir)(keys / "x25519_sk")
    text = failure(open_key_files, keys)
    assert str(keys / "x25519_sk") in text
    assert "not a regular file" in text


def test_unreadable_file(keys):
    """In a child that gives up root, if we are root, so that the modes count."""
    (keys / "mceliece_sk").chmod(0)
    for directory_above in (keys, *keys.parents):
        if directory_above.stat().st_uid == os.getuid() and directory_above != Path("/"):
            directory_above.chmod(directory_above.stat().st_mode | 0o055)
        if directory_above.name.startswith("pytest-of-"):
            break
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            open_key_files(keys)
            text = "opened"
        except UserError as error:
            text = str(error)
        except BaseException as error:  # noqa: BLE001 - the child must not return into pytest
            text = repr(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    text = os.read(reading, 10_000).decode()
    os.close(reading)
    assert "permission denied" in text
    assert str(keys / "mceliece_sk") in text


def swap(keys, one, other):
    first, second = (keys / one).read_bytes(), (keys / other).read_bytes()
    (keys / one).write_bytes(second)
    (keys / other).write_bytes(first)


def test_swapped_x25519_files(keys):
    swap(keys, "x25519_pk", "x25519_sk")
    text = failure(load_all, keys)
    assert "swapped" in text
    assert str(keys / "x25519_pk") in text


def test_swapped_mceliece_files(keys):
    swap(keys, "mceliece_pk", "mceliece_sk")
    text = failure(load_all, keys)
    assert "looks like mceliece_sk" in text


@pytest.mark.parametrize("other", ["x25519_sk", "x25519_pk"])
def test_session_key_swapped(keys, other):
    swap(keys, "session_key", other)
    assert "x25519_pk" in failure(load_all, keys)


@pytest.mark.parametrize("name", ["x25519_pk", "x25519_sk"])
def test_x25519_of_another_key(keys, name):
    public, secret = primitives.x25519_keypair()
    (keys / name).write_bytes(public if name == "x25519_pk" else secret)
    text = failure(load_all, keys)
    assert "does not belong to" in text
    assert "x25519_sk" in text


@pytest.mark.parametrize("name", ["mceliece_pk", "mceliece_sk"])
def test_mceliece_of_another_key(keys, name):
    public, secret = primitives.skem_keypair()
    (keys / name).write_bytes(public if name == "mceliece_pk" else secret)
    text = failure(load_all, keys)
    assert "does not belong to" in text
    assert "mceliece_sk" in text


def test_mceliece_of_zeros(keys):
    (keys / "mceliece_pk").write_bytes(bytes(SIZES["mceliece_pk"]))
    assert "mceliece_pk" in failure(load_all, keys)


# --- making ---


def assert_fresh(path, keyhash):
    key = load_all(path)
    assert key.keyhash == keyhash == KeyTree(load_public(path)).keyhash
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name, size in SIZES.items():
        status = (path / name).stat()
        assert status.st_size == size
        assert stat.S_IMODE(status.st_mode) == (0o644 if name in PUBLIC else 0o600)
    return key


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_generate(tmp_path, umask):
    (tmp_path / "keys").mkdir()
    before = os.umask(umask)
    try:
        keyhash = generate(tmp_path / "keys")
    finally:
        os.umask(before)
    assert_fresh(tmp_path / "keys", keyhash)
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"]


def test_generate_makes_the_directories_above(tmp_path):
    path = tmp_path / "etc" / "pqtun" / "keys"
    assert_fresh(path, generate(path))


def test_two_keys_differ_in_every_file(tmp_path):
    generate(tmp_path / "a")
    generate(tmp_path / "b")
    for name in SIZES:
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "b" / name).read_bytes()


def contents(path):
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


@pytest.mark.parametrize("present", [list(SIZES), ["session_key"], ["mceliece_pk"]])
def test_no_key_is_overwritten_without_force(keys, present):
    for name in SIZES:
        if name not in present:
            (keys / name).unlink()
    before = contents(keys)
    assert "--force" in failure(generate, keys)
    assert contents(keys) == before
    assert [entry.name for entry in keys.parent.iterdir()] == ["keys"]


def test_a_directory_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("mine")
    assert "not empty" in failure(generate, tmp_path)
    assert contents(tmp_path) == {"notes": b"mine"}


def test_force_replaces_the_key_and_keeps_other_files(keys):
    (keys / "DNS_Record_Update_HOWTO.txt").write_text("mine")
    before = contents(keys)
    key = assert_fresh(keys, generate(keys, force=True))
    assert key.public != public_key()
    after = contents(keys)
    assert after.keys() == before.keys()
    assert all((before[name] == after[name]) == (name not in SIZES) for name in before)
    assert [entry.name for entry in keys.parent.iterdir()] == ["keys"]


def test_force_removes_nothing_that_cannot_be_moved(keys, monkeypatch):
    """A mount point below the directory: it went along when the directories were exchanged."""
    (keys / "backup").mkdir()
    (keys / "backup" / "old").write_text("mine")
    real = os.rename

    def busy(source, target):
        if os.path.basename(source) == "backup":
            raise OSError(16, "Device or resource busy")
        real(source, target)

    monkeypatch.setattr(os, "rename", busy)
    text = failure(generate, keys, force=True)
    monkeypatch.undo()
    assert "the new key is in" in text
    left = next(entry for entry in keys.parent.iterdir() if entry != keys)
    assert str(left) in text
    assert [entry.name for entry in left.iterdir()] == ["backup"]
    assert (left / "backup" / "old").read_text() == "mine"
    assert load_all(keys).public != public_key()


def test_force_completes_half_a_key(keys):
    (keys / "x25519_sk").unlink()
    assert_fresh(keys, generate(keys, force=True))


def test_through_a_symbolic_link(keys, tmp_path):
    (tmp_path / "link").symlink_to(keys)
    assert_fresh(keys, generate(tmp_path / "link", force=True))
    assert (tmp_path / "link").is_symlink()


# mkdir: the second call makes the new directory. open, fsync, fchmod: at the first file and half-way.
@pytest.mark.parametrize(
    ("fails", "at"),
    [("mkdir", 2), ("open", 1), ("open", 3), ("fsync", 1), ("fsync", 3), ("fsync", 6), ("fchmod", 1), ("fchmod", 5)],
)
def test_whatever_fails_leaves_the_old_key(keys, monkeypatch, fails, at):
    before = contents(keys)
    real = getattr(os, fails)
    calls = []

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == at:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, fails, failing)
    text = failure(generate, keys, force=True)
    monkeypatch.undo()
    assert "No space left on device" in text
    assert contents(keys) == before
    assert [entry.name for entry in keys.parent.iterdir()] == ["keys"]


@pytest.mark.parametrize("kept_file", range(len(SIZES)))
def test_a_crash_before_the_exchange_leaves_the_old_key(keys, monkeypatch, kept_file):
    """A crash runs no clean-up; what it leaves must not be in the way of the next try."""

    class Crash(BaseException):
        pass

    before = contents(keys)
    written = []

    def crashing(path, name, data):
        if len(written) == kept_file:
            raise Crash
        written.append(name)
        path.write_bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "_write", crashing)
        patch.setattr(directory, "_remove", lambda left: None)
        with pytest.raises(Crash):
            generate(keys, force=True)
    assert contents(keys) == before
    assert load_all(keys).public == public_key()
    assert_fresh(keys, generate(keys, force=True))


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "keys").write_bytes(b"")
    text = failure(generate, tmp_path / "keys")
    assert "cannot write a key" in text
    assert (tmp_path / "keys").is_file()


def test_a_directory_that_cannot_be_exchanged(keys, monkeypatch):
    """A mount point, say: file by file then, each by rename."""

    def busy(one, other):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(directory, "_exchange", busy)
    keys.chmod(0o755)
    assert_fresh(keys, generate(keys, force=True))
    assert [entry.name for entry in keys.parent.iterdir()] == ["keys"]


def test_half_a_replacement_is_found(keys, monkeypatch):
    """A crash in the middle of a file-by-file replacement leaves a mixture: the start must say so."""

    class Crash(BaseException):
        pass

    def busy(one, other):
        raise OSError(16, "Device or resource busy")

    real, renamed = os.rename, []

    def crashing(source, target):
        if len(renamed) == 1:
            raise Crash
        renamed.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(directory, "_exchange", busy)
        patch.setattr(os, "rename", crashing)
        with pytest.raises(Crash):
            generate(keys, force=True)
    assert "does not belong to" in failure(load_all, keys)
