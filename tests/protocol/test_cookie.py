import pytest

from pqtun.protocol import cookie
from pqtun.protocol.errors import MessageError
from tests.protocol.vectors import load

KNOWN = load("cookie.json")
KEY, NONCE, WHOLE = (bytes.fromhex(KNOWN[name]) for name in ("cookie_key", "nonce", "cookie"))
THEN = KNOWN["timestamp"]


def test_known_answer():
    state = cookie.unpack(WHOLE, KEY, THEN)
    assert (state.tid.hex(), state.epoch) == (KNOWN["tid"], KNOWN["epoch"])
    assert cookie.pack(state, KEY, NONCE, THEN) == WHOLE
    assert WHOLE.startswith(KNOWN["prefix"].encode())
    assert repr(state.send_root) not in repr(state)


def test_each_other_size_is_refused():
    for size in [*range(144), *range(145, 200)]:
        with pytest.raises(MessageError):
            cookie.unpack((WHOLE + bytes(200))[:size], KEY, THEN)


@pytest.mark.parametrize("byte", range(144))
def test_any_changed_byte_is_noticed(byte):
    forged = bytearray(WHOLE)
    forged[byte] ^= 1
    with pytest.raises(MessageError):
        cookie.unpack(bytes(forged), KEY, THEN)


@pytest.mark.parametrize("now", [THEN - 1, THEN + 121])
def test_lifetime(now):
    cookie.unpack(WHOLE, KEY, THEN + 120)
    with pytest.raises(MessageError, match="cookie_expired"):
        cookie.unpack(WHOLE, KEY, now)


def test_a_state_after_the_last_epoch_is_refused():
    state = cookie.TunnelState(bytes(32), 0xFFFF, bytes(32), bytes(32))
    with pytest.raises(MessageError, match="epoch_end"):
        cookie.unpack(cookie.pack(state, KEY, NONCE, THEN), KEY, THEN)
