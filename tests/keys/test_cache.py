import os

import pytest

from pqtun.keys.cache import ServerKeyCache
from pqtun.protocol.base32 import encode
from pqtun.protocol.constants import MCELIECE_PK_BYTES
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from tests.protocol.vectors import public_key


def key_number(number):
    key = ServerPublicKey(bytes([number]) * MCELIECE_PK_BYTES, bytes([number]) * 32)
    return KeyTree(key).keyhash, key


@pytest.fixture
def cache(tmp_path):
    return ServerKeyCache(tmp_path / "state" / "keys", limit=3)


def test_what_was_put_comes_back(cache, tmp_path):
    keyhash = KeyTree(public_key()).keyhash
    assert cache.get(keyhash) is None
    assert cache.put(keyhash, public_key())
    assert cache.get(keyhash) == public_key()
    assert ServerKeyCache(tmp_path / "state" / "keys", limit=3).get(keyhash) == public_key()
    assert cache.counters == {"misses": 1, "hits": 1}
    (file,) = (tmp_path / "state" / "keys").iterdir()
    assert file.name == encode(keyhash) + ".key"
    assert file.stat().st_mode & 0o077 == 0


def only_file(cache, tmp_path):
    keyhash, key = key_number(1)
    cache.put(keyhash, key)
    (file,) = (tmp_path / "state" / "keys").iterdir()
    return keyhash, file


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 128]),
        lambda data: bytes(len(data)),
    ],
)
def test_a_corrupt_file_is_a_miss_and_is_removed(cache, tmp_path, spoil):
    keyhash, file = only_file(cache, tmp_path)
    file.write_bytes(spoil(file.read_bytes()))
    assert cache.get(keyhash) is None
    assert not file.exists()
    assert cache.counters == {"misses": 1, "corrupt": 1}
    assert cache.get(keyhash) is None
    assert cache.counters == {"misses": 2, "corrupt": 1}


def test_a_key_under_another_name_is_corrupt(cache, tmp_path):
    _, file = only_file(cache, tmp_path)
    other, _ = key_number(2)
    file.rename(file.with_name(encode(other) + ".key"))
    assert cache.get(other) is None
    assert cache.counters["corrupt"] == 1


def test_oldest_used_is_evicted(cache, tmp_path):
    hashes = []
    for number in range(3):
        keyhash, key = key_number(number)
        cache.put(keyhash, key)
        hashes.append(keyhash)
        file = tmp_path / "state" / "keys" / (encode(keyhash) + ".key")
        os.utime(file, (1000 + number, 1000 + number))
    assert cache.get(hashes[0]) is not None  # used last, although put first
    keyhash, key = key_number(3)
    cache.put(keyhash, key)
    assert cache.counters["evicted"] == 1
    assert [cache.get(each) is not None for each in hashes] == [True, False, True]
    assert cache.get(keyhash) == key
    assert len(list((tmp_path / "state" / "keys").iterdir())) == 3


def test_the_newest_survives_a_clock_that_was_set_back(tmp_path):
    cache = ServerKeyCache(tmp_path, limit=1)
    old, key = key_number(1)
    cache.put(old, key)
    os.utime(tmp_path / (encode(old) + ".key"), (4e9, 4e9))
    new, key = key_number(2)
    cache.put(new, key)
    assert cache.get(new) is not None
    assert cache.get(old) is None


def test_unfinished_files_of_a_crash_are_removed_and_foreign_ones_are_not(cache, tmp_path):
    directory = tmp_path / "state" / "keys"
    directory.mkdir(parents=True)
    (directory / ".new-abc").write_bytes(b"half")
    (directory / "README").write_bytes(b"mine")
    keyhash, key = key_number(1)
    cache.put(keyhash, key)
    assert sorted(file.name for file in directory.iterdir()) == sorted(["README", encode(keyhash) + ".key"])


def test_putting_twice_replaces(cache, tmp_path):
    keyhash, file = only_file(cache, tmp_path)
    file.write_bytes(b"torn")
    assert cache.put(keyhash, key_number(1)[1])
    assert cache.get(keyhash) is not None


def test_a_disk_that_fails_is_a_miss(tmp_path):
    (tmp_path / "keys").write_bytes(b"a file where the directory should be")
    cache = ServerKeyCache(tmp_path / "keys", limit=3)
    keyhash, key = key_number(1)
    assert cache.get(keyhash) is None
    assert not cache.put(keyhash, key)
    assert cache.counters == {"misses": 1, "read_errors": 1, "write_errors": 1}


def test_no_symbolic_link_is_followed_and_no_fifo_hangs(cache, tmp_path):
    keyhash, file = only_file(cache, tmp_path)
    target = tmp_path / "elsewhere"
    file.rename(target)
    file.symlink_to(target)
    assert cache.get(keyhash) is None
    assert target.exists()
    file.unlink()
    os.mkfifo(file)
    assert cache.get(keyhash) is None


def test_a_directory_in_place_of_a_file_costs_no_descriptor(cache, tmp_path):
    keyhash, file = only_file(cache, tmp_path)
    file.unlink()
    file.mkdir()
    before = len(os.listdir("/proc/self/fd"))
    assert cache.get(keyhash) is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert cache.counters["read_errors"] == 1


def test_a_full_disk_leaves_nothing_behind(cache, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    keyhash, key = key_number(1)
    assert not cache.put(keyhash, key)
    assert list((tmp_path / "state" / "keys").iterdir()) == []


def test_limit_must_leave_room(tmp_path):
    with pytest.raises(ValueError, match="one key"):
        ServerKeyCache(tmp_path, limit=0)
