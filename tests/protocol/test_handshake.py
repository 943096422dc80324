import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.protocol import primitives
from pqtun.protocol.errors import MessageError
from pqtun.protocol.handshake import (
    EphemeralPublicKey,
    EphemeralSecretKey,
    InitiatorSecrets,
    compose,
    initiate,
    parse,
    respond,
)
from pqtun.protocol.keytree import KeyTree
from pqtun.protocol.replay import ReplayMemory
from tests.protocol.vectors import load, public_key, secret_key

KNOWN = load("handshake.json")


def field(case, name):
    return bytes.fromhex(case[name])


def ephemeral_pair():
    (sntrup_pk, sntrup_sk), (x_pk, x_sk) = primitives.ekem_keypair(), primitives.x25519_keypair()
    return EphemeralPublicKey(sntrup_pk, x_pk), EphemeralSecretKey(sntrup_sk, x_sk)


@pytest.mark.parametrize("case", KNOWN["handshakes"], ids=lambda c: c["tid"][:8])
def test_known_answers(case, monkeypatch):
    states = []

    def noted(chain, secret):
        primitives.mix(chain, secret)
        states.append(chain.hex())

    monkeypatch.setattr("pqtun.protocol.handshake.mix", noted)
    datagram = field(case, "message")
    ephemeral = EphemeralPublicKey(field(case, "e_sntrup761_r_pk"), field(case, "e_x25519_r_pk"))
    secrets = InitiatorSecrets(
        c0=datagram[2:196],
        k0=bytearray(field(case, "k0")),
        x25519=primitives.X25519Secret(field(case, "e_x25519_i_sk")),
        c2=field(case, "c2"),
        k3=bytearray(field(case, "k3")),
    )
    assert secrets.x25519.public() == field(case, "e_x25519_i_pk")
    made, client = compose(secrets, public_key(), ephemeral)
    assert made == datagram
    server = respond(
        parse(datagram),
        secret_key(),
        [EphemeralSecretKey(field(case, "e_sntrup761_r_sk"), field(case, "e_x25519_r_sk"))],
    )
    assert client.tid == server.tid == field(case, "tid")
    assert client.send_root == server.recv_root == field(case, "ti")
    assert client.recv_root == server.send_root == field(case, "tr")
    assert client.resume_secret == server.resume_secret
    assert states == 2 * case["cipher_states"]
    assert secrets.k0 == secrets.k3 == bytes(32)


def test_the_key_hash_of_the_vectors():
    assert KeyTree(public_key()).keyhash.hex() == KNOWN["keyhash"]


def test_initiate_and_respond_with_an_older_ephemeral_key():
    public, secret = ephemeral_pair()
    _, other = ephemeral_pair()
    datagram, client = initiate(public_key(), public)
    server = respond(parse(datagram), secret_key(), [other, secret])
    assert (client.tid, client.send_root, client.recv_root) == (server.tid, server.recv_root, server.send_root)
    assert initiate(public_key(), public)[1].tid != client.tid
    with pytest.raises(MessageError, match="ephemeral_key"):
        respond(parse(datagram), secret_key(), [other])
    with pytest.raises(MessageError, match="ephemeral_key"):
        respond(parse(datagram), secret_key(), [])


def test_session_hides_its_secrets():
    _, client = initiate(public_key(), ephemeral_pair()[0])
    shown = repr(client)
    for secret in (client.send_root, client.recv_root, client.resume_secret):
        assert repr(secret) not in shown
    assert repr(secret_key().x25519_sk) not in repr(secret_key())


def test_an_erased_session_keeps_its_name_only():
    _, client = initiate(public_key(), ephemeral_pair()[0])
    tid, roots = client.tid, (client.send_root, client.recv_root, client.resume_secret)
    client.erase()
    assert all(root == bytes(32) for root in roots)
    assert client.tid == tid != bytes(32)


def test_a_small_order_key_of_the_server_is_refused():
    public, _ = ephemeral_pair()
    with pytest.raises(MessageError, match="x25519"):
        initiate(public_key(), EphemeralPublicKey(public.sntrup_pk, bytes(32)))


def test_each_other_size_is_refused():
    whole = field(KNOWN["handshakes"][0], "message")
    parse(whole)
    for size in [*range(len(whole)), *range(len(whole) + 1, len(whole) + 60), 4096]:
        with pytest.raises(MessageError):
            parse((whole + bytes(4096))[:size])
    with pytest.raises(MessageError, match="type"):
        parse(b"\2" + whole[1:])


@settings(max_examples=40, deadline=None)
@given(st.integers(16, 1298 * 8 + 7))
def test_any_flipped_bit_is_noticed(bit):
    case = KNOWN["handshakes"][1]
    forged = bytearray(field(case, "message"))
    forged[bit // 8] ^= 1 << (bit % 8)
    keys = [EphemeralSecretKey(field(case, "e_sntrup761_r_sk"), field(case, "e_x25519_r_sk"))]
    with pytest.raises(MessageError):
        respond(parse(bytes(forged)), secret_key(), keys)


def test_replay_memory():
    memory = ReplayMemory(limit=2)
    memory.remember(memory.check(b"a", 0.0), 0.0)
    with pytest.raises(MessageError, match="replay"):
        memory.check(b"a", 119.9)
    memory.remember(memory.check(b"b", 1.0), 1.0)
    with pytest.raises(MessageError, match="replay_memory_full"):
        memory.check(b"c", 2.0)
    with pytest.raises(MessageError, match="replay"):
        memory.check(b"b", 120.9)
    memory.check(b"a", 130.0)
    assert len(memory) == 0


@pytest.mark.parametrize("second", range(0, 100, 7))
def test_what_is_remembered_later_is_forgotten_later(second):
    memory = ReplayMemory()
    for other in range(0, 100, 7):
        memory.remember(memory.check(bytes([other]), float(other)), float(other))
    with pytest.raises(MessageError, match="replay"):
        memory.check(bytes([second]), second + 119.9)
    memory.check(bytes([second]), second + 130.0)
