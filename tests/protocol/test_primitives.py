import pytest

from pqtun.protocol import primitives
from pqtun.protocol.errors import MessageError
from tests.protocol.vectors import load


@pytest.mark.parametrize("case", load("kdf.json")["kdf"], ids=lambda c: f"{c['n']}-{c['input'][:6]}")
def test_kdf_known_answers(case):
    key, data = bytes.fromhex(case["key"]), bytes.fromhex(case["input"])
    assert [out.hex() for out in primitives.kdf(case["n"], key, data)] == case["out"]
    if not data:
        out = bytearray(32 * case["n"])
        primitives.expand(bytearray(key), out)
        assert out.hex() == "".join(case["out"])


def test_a_longer_kdf_begins_with_the_shorter():
    assert primitives.kdf(4, b"k" * 32, b"i" * 32)[:3] == primitives.kdf(3, b"k" * 32, b"i" * 32)


@pytest.mark.parametrize("size", [1, 31, 33, 64])
def test_kdf_refuses_other_input_sizes(size):
    with pytest.raises(ValueError, match="32 bytes"):
        primitives.kdf(1, bytes(32), bytes(size))


@pytest.mark.parametrize("case", load("kdf.json")["hash"], ids=lambda c: c["in"][:8] or "empty")
def test_hash_known_answers(case):
    assert primitives.hash32(bytes.fromhex(case["in"])).hex() == case["out"]


@pytest.mark.parametrize("case", load("aead.json"), ids=lambda c: str(len(c["plaintext"]) // 2))
def test_aead_known_answers(case):
    key, ad, plaintext = (bytes.fromhex(case[name]) for name in ("key", "ad", "plaintext"))
    sealed = bytes.fromhex(case["ciphertext"] + case["tag"])
    assert primitives.seal(key, ad, plaintext) == sealed
    assert primitives.open_sealed(key, ad, sealed) == plaintext
    for position in (0, len(sealed) // 2, len(sealed) - 1):
        forged = bytearray(sealed)
        forged[position] ^= 1
        with pytest.raises(MessageError, match="authentication"):
            primitives.open_sealed(key, ad, bytes(forged))
    with pytest.raises(MessageError, match="authentication"):
        primitives.open_sealed(key, ad, sealed[:-1])


def test_aead_of_less_than_a_tag():
    with pytest.raises(MessageError, match="authentication"):
        primitives.open_sealed(bytes(32), b"", bytes(15))


def test_x25519_agrees_and_refuses_small_order():
    (pk1, sk1), (pk2, sk2) = primitives.x25519_keypair(), primitives.x25519_keypair()
    assert primitives.x25519(sk1, pk2) == primitives.x25519(sk2, pk1)
    assert primitives.x25519_public(sk1) == pk1
    with pytest.raises(MessageError, match="x25519"):
        primitives.x25519(sk1, bytes(32))


def test_kems_refuse_keys_of_another_size():
    with pytest.raises(MessageError, match="skem"):
        primitives.skem_enc(bytes(100))
    with pytest.raises(MessageError, match="skem"):
        primitives.skem_dec(bytes(194), bytes(10))
    with pytest.raises(MessageError, match="ekem"):
        primitives.ekem_enc(bytes(100))
    with pytest.raises(MessageError, match="ekem"):
        primitives.ekem_dec(bytes(1039), bytes(10))


def test_erase():
    secret = bytearray(b"secret")
    primitives.erase(secret)
    assert secret == bytes(6)
