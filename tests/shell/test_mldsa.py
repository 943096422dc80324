import asyncio
import socket
import traceback

import asyncssh
import pytest
from asyncssh.packet import SSHPacket, String
from asyncssh.public_key import decode_ssh_public_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell import mldsa
from pqtun.shell.mldsa import (
    MLDSA_PUBLIC_BYTES,
    MLDSA_SIGNATURE_BYTES,
    PRIVATE_BYTES,
    PUBLIC_BYTES,
    SIGNATURE_BYTES,
    CompositeKey,
    PrivatePair,
)
from tests.shell.vectors import SSH, armoured, private_key

NAME = "ssh-mldsa44-ed25519"
KEY = asyncssh.import_private_key(private_key())
PUBLIC = asyncssh.read_public_key(SSH / "id_mldsa44_ed25519.pub")
FINGERPRINT = "SHA256:LepoCVdVsZ+r8VNDsiyRVT/sgbNSpUTyvAvii8rQmso"
OTHER = asyncssh.generate_private_key(NAME)
SIGNATURE = KEY.sign(b"message", NAME.encode())


def raw(signature):
    """The signature's bytes without names and lengths."""
    packet = SSHPacket(signature)
    packet.get_string()
    return packet.get_string()


def wrapped(signature, name=NAME):
    return String(name) + String(signature)


# --- known answers of OpenSSH 10.6 ---


def test_recorded_pair():
    assert KEY.get_algorithm() == NAME
    assert KEY.convert_to_public() == PUBLIC
    assert KEY.get_comment() == "interop@test"
    assert PUBLIC.get_fingerprint() == FINGERPRINT
    assert KEY.export_public_key() == (SSH / "id_mldsa44_ed25519.pub").read_bytes()


def test_recorded_encrypted_pair():
    data = armoured("encrypted", "OPENSSH PRIVATE KEY")
    assert asyncssh.import_private_key(data, "test passphrase") == KEY
    with pytest.raises(asyncssh.KeyEncryptionError):
        asyncssh.import_private_key(data, "another")


def test_recorded_signature():
    signers = asyncssh.import_allowed_signers(f"somebody {PUBLIC.export_public_key().decode()}")
    signature = armoured("message.sshsig", "SSH SIGNATURE")
    assert asyncssh.validate_sshsig(SSH / "message", signature, "somebody", signers)
    assert not asyncssh.validate_sshsig(b"another message", signature, "somebody", signers)


def test_recorded_user_certificate():
    certificate = asyncssh.read_certificate(SSH / "user-cert.pub")
    assert certificate.get_algorithm() == "ssh-mldsa44-ed25519-cert"
    assert certificate.signing_key == PUBLIC
    assert certificate.principals == ["alice", "bob"]
    assert certificate.options["force-command"] == "/bin/true"
    assert [str(network) for network in certificate.options["source-address"]] == ["10.43.0.0/16"]
    assert certificate.options["permit-pty"]
    assert "permit-X11-forwarding" not in certificate.options


def test_recorded_certificate_of_another_authority():
    certificate = asyncssh.read_certificate(SSH / "user-cert-by-ed25519.pub")
    assert certificate.signing_key.get_algorithm() == "ssh-ed25519"
    assert certificate.key == asyncssh.read_certificate(SSH / "host-cert.pub").key


@given(st.data())
def test_changed_certificate(data):
    algorithm, blob, *_ = (SSH / "user-cert.pub").read_bytes().split()
    certificate = bytearray(asyncssh.import_certificate(algorithm + b" " + blob).public_data)
    place = data.draw(st.integers(0, len(certificate) - 1))
    certificate[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(asyncssh.KeyImportError):
        asyncssh.public_key.decode_ssh_certificate(bytes(certificate))


# --- signatures ---


def test_signature_is_of_both():
    assert len(raw(SIGNATURE)) == SIGNATURE_BYTES
    assert PUBLIC.verify(b"message", SIGNATURE)
    assert KEY.verify(b"message", SIGNATURE)
    assert not PUBLIC.verify(b"massage", SIGNATURE)
    assert not OTHER.verify(b"message", SIGNATURE)


def test_either_half_wrong():
    mine, others = raw(SIGNATURE), raw(OTHER.sign(b"message", NAME.encode()))
    split = MLDSA_SIGNATURE_BYTES
    assert PUBLIC.verify(b"message", wrapped(mine[:split] + mine[split:]))
    assert not PUBLIC.verify(b"message", wrapped(mine[:split] + others[split:]))
    assert not PUBLIC.verify(b"message", wrapped(others[:split] + mine[split:]))
    assert not PUBLIC.verify(b"message", wrapped(bytes(split) + mine[split:]))
    assert not PUBLIC.verify(b"message", wrapped(mine[:split] + bytes(64)))


def test_plain_ed25519_signature_of_the_message_does_not_do():
    """Each half signs the labelled hash, so a signature of either key alone says nothing here."""
    ed25519 = Ed25519PrivateKey.from_private_bytes(KEY._key.seeds[32:])
    mine = raw(SIGNATURE)
    forged = mine[:MLDSA_SIGNATURE_BYTES] + ed25519.sign(b"message")
    assert not PUBLIC.verify(b"message", wrapped(forged))


@given(st.integers(0, SIGNATURE_BYTES * 8 - 1))
def test_every_bit_of_a_signature_counts(bit):
    signature = bytearray(raw(SIGNATURE))
    signature[bit // 8] ^= 1 << bit % 8
    assert not PUBLIC.verify(b"message", wrapped(bytes(signature)))


@given(st.integers(0, SIGNATURE_BYTES + 200).filter(lambda size: size != SIGNATURE_BYTES))
def test_signature_of_another_size(size):
    assert not PUBLIC.verify(b"message", wrapped((raw(SIGNATURE) + bytes(200))[:size]))


@given(st.binary(max_size=200))
def test_signature_of_anything(blob):
    assert not PUBLIC.verify(b"message", blob)
    assert not PUBLIC.verify(b"message", SIGNATURE + blob) or not blob


@pytest.mark.parametrize("name", ["ssh-ed25519", "", "ssh-mldsa44-ed25519-cert", "ssh-mldsa44-ed25519@openssh.com"])
def test_signature_of_another_name(name):
    assert not PUBLIC.verify(b"message", wrapped(raw(SIGNATURE), name))


def test_public_key_does_not_sign():
    with pytest.raises(ValueError, match="Private key needed"):
        PUBLIC.sign(b"message", NAME.encode())
    with pytest.raises(asyncssh.KeyExportError):
        PUBLIC.export_private_key()


# --- keys ---


def test_generated_keys_differ():
    assert asyncssh.generate_private_key(NAME) != OTHER
    assert len(OTHER._key.seeds) == PRIVATE_BYTES
    assert len(OTHER._key.public) == PUBLIC_BYTES


def test_parameters_are_refused():
    with pytest.raises(asyncssh.KeyGenerationError, match="key_size"):
        asyncssh.generate_private_key(NAME, key_size=2048)


@pytest.mark.parametrize("passphrase", [None, "secret", "päss wörd"])
def test_export_and_import(passphrase):
    data = OTHER.export_private_key(passphrase=passphrase, rounds=1, ignore_few_rounds=True)
    assert asyncssh.import_private_key(data, passphrase) == OTHER
    assert asyncssh.import_public_key(OTHER.export_public_key()) == OTHER.convert_to_public()


def test_equality():
    assert KEY.convert_to_public() == PUBLIC
    assert PUBLIC != KEY
    assert hash(PUBLIC) == hash(KEY)
    assert OTHER != KEY
    assert PUBLIC.public_data != PUBLIC


@given(st.integers(0, PUBLIC_BYTES + 100).filter(lambda size: size != PUBLIC_BYTES))
def test_public_key_of_another_size(size):
    public = (PUBLIC._key.public + bytes(100))[:size]
    with pytest.raises(asyncssh.KeyImportError):
        decode_ssh_public_key(String(NAME) + String(public))


@given(st.binary(max_size=100))
def test_public_key_with_something_after_it(rest):
    blob = PUBLIC.public_data + rest
    if rest:
        with pytest.raises(asyncssh.KeyImportError):
            decode_ssh_public_key(blob)
    else:
        assert decode_ssh_public_key(blob) == PUBLIC


@given(st.integers(0, len(PUBLIC.public_data) - 1))
def test_public_key_cut_off(size):
    with pytest.raises(asyncssh.KeyImportError):
        decode_ssh_public_key(PUBLIC.public_data[:size])


@given(st.integers(0, 200).filter(lambda size: size != PRIVATE_BYTES))
def test_private_key_of_another_size(size):
    seeds = (KEY._key.seeds + bytes(200))[:size]
    with pytest.raises(asyncssh.KeyImportError):
        CompositeKey.make_private((KEY._key.public, seeds))


def test_halves_of_two_keys():
    with pytest.raises(asyncssh.KeyImportError, match="does not belong"):
        CompositeKey.make_private((OTHER._key.public, KEY._key.seeds))
    mixed = KEY._key.public[:MLDSA_PUBLIC_BYTES] + OTHER._key.public[MLDSA_PUBLIC_BYTES:]
    with pytest.raises(asyncssh.KeyImportError, match="does not belong"):
        CompositeKey.make_private((mixed, KEY._key.seeds))


@pytest.mark.parametrize("params", [None, (), (b"",), (b"", b"", b""), ("", ""), 7])
def test_parameters_that_are_no_key(params):
    for make in (CompositeKey.make_private, CompositeKey.make_public):
        with pytest.raises(asyncssh.KeyImportError):
            make(params)


def test_nothing_shows_secrets():
    seeds = KEY._key.seeds
    texts = [repr(KEY), str(KEY), repr(KEY._key), str(KEY._key), repr(PrivatePair.generate())]
    for params in ((OTHER._key.public, seeds), (KEY._key.public, seeds[:-1])):
        try:
            CompositeKey.make_private(params)
        except asyncssh.KeyImportError as error:
            texts += ["".join(traceback.format_exception(error)), repr(error)]
    assert len(texts) == 9
    for text in texts:
        assert seeds[:8].hex() not in text
        assert repr(seeds[:8])[2:-1] not in text


# --- certificates ---


@pytest.mark.parametrize("authority", [NAME, "ssh-ed25519"])
@pytest.mark.parametrize("subject", [NAME, "ssh-ed25519"])
def test_certificates(authority, subject):
    authority = asyncssh.generate_private_key(authority)
    key = asyncssh.generate_private_key(subject)
    made = authority.generate_user_certificate(key, "id", principals=["alice"], valid_before="+1h")
    read = asyncssh.import_certificate(made.export_certificate())
    assert read.key == key.convert_to_public()
    assert read.signing_key == authority.convert_to_public()
    read.validate(asyncssh.public_key.CERT_TYPE_USER, "alice")
    with pytest.raises(ValueError, match="principal"):
        read.validate(asyncssh.public_key.CERT_TYPE_USER, "bob")
    with pytest.raises(ValueError, match="type"):
        read.validate(asyncssh.public_key.CERT_TYPE_HOST, "alice")


# --- agents ---


class Agent:
    """Answers of an agent that holds one certificate; what OpenSSH 10.6's ssh-agent sends."""

    def __init__(self):
        self.asked = []

    async def sign(self, blob, data, flags):
        self.asked.append((blob, data, flags))
        return SIGNATURE


@pytest.mark.parametrize("name", [NAME, "ssh-mldsa44-ed25519-cert"])
def test_key_in_an_agent(name):
    agent = Agent()
    pair = mldsa.AgentKeyPair(agent, name.encode(), b"the blob", b"comment")
    assert pair.algorithm == name.encode()
    assert pair.sig_algorithms == (NAME.encode(),)
    assert pair.has_cert == name.endswith("-cert")
    assert asyncio.run(pair.sign_async(b"data")) == SIGNATURE
    assert agent.asked == [(b"the blob", b"data", 0)]
    assert asyncssh.agent.SSHAgentKeyPair is mldsa.AgentKeyPair


def test_what_an_agent_is_given():
    """ssh-add of OpenSSH 10.6 sends the public half only where no certificate holds it."""
    plain = asyncssh.load_keypairs([KEY])[0].get_agent_private_key()
    certificate = OTHER.generate_user_certificate(KEY, "id")
    certified = asyncssh.load_keypairs([(KEY, certificate)])[0].get_agent_private_key()
    seeds = KEY._key.seeds
    assert plain == String(NAME) + String(KEY._key.public) + String(seeds)
    assert certified == String("ssh-mldsa44-ed25519-cert") + String(certificate.public_data) + String(seeds)


# --- a login with it ---


def test_login_with_key_and_host_key(tmp_path):
    async def run():
        authorized = tmp_path / "authorized_keys"
        authorized.write_bytes(PUBLIC.export_public_key())
        near, far = socket.socketpair()

        async def serve():
            return await asyncssh.run_server(
                far,
                server_host_keys=[OTHER],
                authorized_client_keys=str(authorized),
                process_factory=lambda process: (process.stdout.write("in\n"), process.exit(0)),
            )

        serving = asyncio.create_task(serve())
        async with asyncssh.connect(
            "pqtun.test",
            sock=near,
            username="somebody",
            client_keys=[KEY],
            known_hosts=asyncssh.import_known_hosts(f"pqtun.test {OTHER.export_public_key().decode()}"),
            server_host_key_algs=[NAME],
            signature_algs=[NAME],
            agent_path=None,
            config=None,
        ) as connection:
            assert connection.get_server_host_key() == OTHER.convert_to_public()
            assert (await connection.run("x")).stdout == "in\n"
        await (await serving).wait_closed()

    asyncio.run(run())
