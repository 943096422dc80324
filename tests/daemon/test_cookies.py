import pytest

from pqtun.daemon.cookies import KEY_PERIOD, CookieKeys
from pqtun.protocol import cookie
from pqtun.protocol.constants import COOKIE_LIFETIME
from pqtun.protocol.errors import MessageError

TID = bytes([7]) * 32


def make(keys, now, tid=TID):
    seal = keys.seal(tid, now)
    return cookie.pack(
        cookie.TunnelState(tid, 3, bytes([1]) * 32, bytes([2]) * 32), seal.key, seal.nonce, seal.timestamp
    )


def refusal(keys, returned, now):
    with pytest.raises(MessageError) as refused:
        keys.open(returned, now)
    return refused.value.reason


def test_a_cookie_opens_once():
    keys = CookieKeys()
    returned = make(keys, 1000.7)
    state = keys.open(returned, 1030.0)
    assert (state.tid, state.epoch, state.send_root, state.recv_root) == (TID, 3, bytes([1]) * 32, bytes([2]) * 32)
    assert refusal(keys, returned, 1030.0) == "cookie_unknown"
    assert keys.expire(1e6) == []


def test_what_was_not_made_here_is_refused_and_uses_nothing_up():
    keys = CookieKeys()
    assert refusal(keys, bytes(144), 1000.0) == "cookie_unknown"
    returned = make(keys, 1000.0)
    for place in range(144):
        forged = returned[:place] + bytes([returned[place] ^ 1]) + returned[place + 1 :]
        assert refusal(keys, forged, 1000.0) in ("type", "cookie_unknown", "cookie_expired", "authentication")
    for size in range(144):
        assert refusal(keys, returned[:size], 1000.0) in ("length", "cookie_unknown")
    stranger = CookieKeys()
    assert refusal(keys, make(stranger, 1000.0), 1000.0) == "authentication"
    keys.open(returned, 1000.0)


def test_nonces_do_not_repeat_and_keys_change():
    keys = CookieKeys()
    seals = [keys.seal(TID, 1000.0 + 10 * number) for number in range(12)]
    assert len({(bytes(seal.key), seal.nonce) for seal in seals}) == 12
    assert len({bytes(seal.key) for seal in seals}) == 2
    assert [seal.timestamp for seal in seals[:2]] == [1000, 1010]


def test_the_same_nonce_under_two_keys():
    keys = CookieKeys()
    first, second = make(keys, 1000.0), make(keys, 1000.0 + KEY_PERIOD, b"8" * 32)
    assert cookie.nonce(first) == cookie.nonce(second)
    assert keys.open(first, 1070.0).tid == TID
    assert keys.open(second, 1070.0).tid == b"8" * 32
    assert refusal(keys, first, 1070.0) == "cookie_unknown"


def test_keys_are_erased_after_two_minutes_and_cookies_end_with_them():
    keys = CookieKeys()
    early, late = make(keys, 1000.0), make(keys, 1000.0 + KEY_PERIOD - 1, b"8" * 32)
    key = keys.seal(b"9" * 32, 1000.0).key
    assert keys.expire(1000.0 + COOKIE_LIFETIME - 1) == []
    keys.open(early, 1000.0 + COOKIE_LIFETIME - 1)
    assert key != bytes(32)
    assert refusal(keys, late, 1000.0 + COOKIE_LIFETIME) == "cookie_unknown"  # even where expire comes late
    assert keys.expire(1000.0 + COOKIE_LIFETIME) == [b"8" * 32, b"9" * 32]
    assert key == bytes(32)


def test_a_bound_a_minute():
    keys = CookieKeys(limit=3)
    assert all(keys.seal(bytes([number]) * 32, 1000.0) for number in range(3))
    assert keys.seal(TID, 1000.0 + KEY_PERIOD - 1) is None
    assert keys.seal(TID, 1000.0 + KEY_PERIOD) is not None


def test_erase():
    keys = CookieKeys()
    returned = make(keys, 1000.0)
    key = keys.seal(TID, 1000.0).key
    keys.erase()
    assert key == bytes(32)
    assert refusal(keys, returned, 1000.0) == "cookie_unknown"


def test_no_key_in_texts():
    keys = CookieKeys()
    seal = keys.seal(TID, 1000.0)
    for text in (repr(seal), repr(keys._keys)):
        assert seal.key.hex() not in text
        assert repr(seal.key) not in text
