import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.sshd import request
from pqtun.shell.sshd.request import MAX_KEY, MAX_USER, Request, RequestError


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


KEY = string(b"ssh-ed25519") + string(bytes(32))


def signed(
    session_id=bytes(32),
    message=b"\x32",
    user=b"alice",
    service=b"ssh-connection",
    method=b"publickey",
    signs=b"\1",
    algorithm=b"ssh-ed25519",
    key=KEY,
    end=b"",
):
    return b"".join(
        (
            string(session_id),
            message,
            string(user),
            string(service),
            string(method),
            signs,
            string(algorithm),
            string(key),
            end,
        )
    )


def test_what_clients_sign():
    assert request.parse(signed()) == Request(bytes(32), "alice", "ssh-ed25519", KEY)
    assert request.parse(signed(user="ä".encode())).user == "ä"
    assert request.parse(signed(session_id=bytes(64))).session_id == bytes(64)


@pytest.mark.parametrize(
    "changed",
    [
        {"session_id": b""},
        {"session_id": bytes(31)},
        {"session_id": bytes(65)},
        {"message": b"\x33"},
        {"message": b""},
        {"user": b"a" * (MAX_USER + 1)},
        {"user": b"\xff"},
        {"service": b"ssh-userauth"},
        {"method": b"hostbased"},
        {"method": b"publickey-hostbound-v00@openssh.com"},
        {"signs": b"\0"},
        {"signs": b"\2"},
        {"signs": b""},
        {"algorithm": b"ssh-rsa"},
        {"algorithm": b""},
        {"key": b""},
        {"key": KEY[:8]},
        {"key": string(b"ssh-ed25519") + bytes(MAX_KEY)},
        {"end": b"\0"},
    ],
    ids=str,
)
def test_anything_else(changed):
    with pytest.raises(RequestError):
        request.parse(signed(**changed))


def test_every_truncation():
    whole = signed()
    for length in range(len(whole)):
        with pytest.raises(RequestError):
            request.parse(whole[:length])


@given(st.binary(max_size=200))
def test_noise(data):
    with pytest.raises(RequestError):
        request.parse(data)


@given(st.integers(0, len(signed()) - 1), st.integers(1, 255))
def test_every_changed_byte_is_refused_or_shows(place, change):
    whole = bytearray(signed())
    whole[place] ^= change
    try:
        parsed = request.parse(bytes(whole))
    except RequestError:
        return
    assert parsed != Request(bytes(32), "alice", "ssh-ed25519", KEY)
