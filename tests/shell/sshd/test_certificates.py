import dataclasses
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell import ssh
from pqtun.shell.sshd import certificates
from pqtun.shell.sshd.certificates import CertificateError, decode, string
from pqtun.shell.sshd.keyoptions import KeyOptions
from tests.shell.sshd.keys import KeyFile, SecurityKey, certificate

SOURCE = ip_address("10.43.0.7")
NOW = 1_800_000_000.0
EVER = ("-V", "20200101:20400101")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def ca(directory):
    return KeyFile.make(directory / "ca")


@pytest.fixture(scope="module")
def user(directory):
    return KeyFile.make(directory / "user")


@pytest.fixture(scope="module")
def plain(ca, user):
    return ca.certify(user, *EVER, "-z", "17")


def test_what_ssh_keygen_made(plain, ca, user):
    found = decode(plain)
    found.verify()
    assert found.key_blob == user.blob
    assert found.ca_blob == ca.blob
    assert (found.serial, found.key_id, found.principals) == (17, "the id", ("alice",))
    assert found.check(["alice"], SOURCE, NOW) == KeyOptions()


@pytest.mark.parametrize("key_type", ssh.KEY_ALGORITHMS[:2])
@pytest.mark.parametrize("ca_type", ssh.KEY_ALGORITHMS[:2])
def test_post_quantum_keys_and_cas(key_type, ca_type):
    ssh.prepare()
    import asyncssh

    key, authority = asyncssh.generate_private_key(key_type), asyncssh.generate_private_key(ca_type)
    found = decode(certificate(key, authority))
    found.verify()
    assert found.key_blob == key.public_data
    assert found.check(["alice"], SOURCE, NOW) == KeyOptions()


def test_security_keys():
    ssh.prepare()
    import asyncssh
    from asyncssh.public_key import decode_ssh_public_key

    token = SecurityKey()
    found = decode(certificate(decode_ssh_public_key(token.blob), asyncssh.generate_private_key("ssh-ed25519")))
    found.verify()
    assert found.key_blob == token.blob


def test_a_security_key_may_be_the_ca(plain):
    token = SecurityKey()
    found = dataclasses.replace(decode(plain), ca_blob=token.blob)
    dataclasses.replace(found, signature=token.sign(found.signed, 0)).verify()


def test_only_our_key_types_may_be_cas(plain):
    with pytest.raises(CertificateError, match="type"):
        dataclasses.replace(decode(plain), ca_blob=plain).verify()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("-O", "clear"), {"pty": False, "port_forwarding": False, "agent_forwarding": False, "x11_forwarding": False}),
        (("-O", "no-pty"), {"pty": False}),
        (("-O", "no-port-forwarding"), {"port_forwarding": False}),
        (("-O", "no-agent-forwarding"), {"agent_forwarding": False}),
        (("-O", "no-x11-forwarding"), {"x11_forwarding": False}),
        (("-O", "no-touch-required"), {"touch_required": False}),
        (("-O", "verify-required"), {"verify_required": True}),
        (("-O", "force-command=echo a b"), {"command": "echo a b"}),
        (("-O", "source-address=10.43.0.0/16,192.0.2.1"), {}),
        (("-O", "extension:other@example.com=x"), {}),
    ],
)
def test_options(ca, user, options, expected):
    found = decode(ca.certify(user, *EVER, *options))
    found.verify()
    assert found.check(["alice"], SOURCE, NOW) == dataclasses.replace(KeyOptions(), **expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-O", "source-address=10.44.0.0/16"), "address"),
        (("-O", "critical:other@example.com=x"), "not known"),
        (("-O", "critical:verify-required=x"), "not known"),
        (("-h",), "not a user's"),
    ],
)
def test_options_that_refuse(ca, user, options, reason):
    with pytest.raises(CertificateError, match=reason):
        decode(ca.certify(user, *EVER, *options)).check(["alice"], SOURCE, NOW)


def test_principals(ca, user):
    found = decode(ca.certify(user, *EVER, principals="bob,admins"))
    assert found.check(["admins", "alice"], SOURCE, NOW)
    for names in (["alice"], [], ["admin"], ["*"], ["bob,admins"]):
        with pytest.raises(CertificateError, match="not for this user"):
            found.check(names, SOURCE, NOW)


def test_without_principals_it_is_nobodys(ca, user):
    with pytest.raises(CertificateError, match="not for this user"):
        decode(ca.certify(user, *EVER, principals=None)).check(["alice"], SOURCE, NOW)


def test_validity(plain):
    found = decode(plain)
    assert found.check(["alice"], SOURCE, found.valid_after)
    assert found.check(["alice"], SOURCE, found.valid_before - 1)
    with pytest.raises(CertificateError, match="not valid yet"):
        found.check(["alice"], SOURCE, found.valid_after - 1)
    with pytest.raises(CertificateError, match="expired"):
        found.check(["alice"], SOURCE, found.valid_before)


def test_every_length_of_it_but_its_own_is_refused(plain):
    for length in range(len(plain)):
        with pytest.raises(CertificateError):
            decode(plain[:length])
    with pytest.raises(CertificateError):
        decode(plain + b"\0")


def test_no_byte_can_be_changed(plain):
    for position in range(len(plain)):
        changed = bytearray(plain)
        changed[position] ^= 1
        with pytest.raises(CertificateError):
            decode(bytes(changed)).verify()


def test_another_ca_did_not_sign_it(plain, user):
    with pytest.raises(CertificateError, match="signature"):
        dataclasses.replace(decode(plain), ca_blob=user.blob).verify()


@given(st.binary(max_size=300))
def test_any_bytes(data):
    for start in (b"", string(b"ssh-ed25519-cert-v01@openssh.com")):
        try:
            decode(start + data)
        except CertificateError:
            pass
        else:
            pytest.fail("this is no certificate")
    certificates.type_of(data)


def test_principals_are_bounded(plain):
    principals = string(b"".join(string(b"x") for _ in range(certificates.MAX_PRINCIPALS + 1)))
    start = string(b"ssh-ed25519-cert-v01@openssh.com") + string(b"n") + string(b"k" * 32)
    with pytest.raises(CertificateError, match="too many"):
        decode(start + struct.pack(">QI", 1, 1) + string(b"id") + principals)


def test_a_signature_of_another_key_or_no_signature(user, ca, plain):
    found = decode(plain)
    assert certificates.verify_signature(ca.blob, found.signed, found.signature)
    assert not certificates.verify_signature(user.blob, found.signed, found.signature)
    for length in range(len(found.signature)):
        assert not certificates.verify_signature(ca.blob, found.signed, found.signature[:length])
    assert not certificates.verify_signature(b"", found.signed, found.signature)
    assert not certificates.verify_signature(string(b"ssh-ed25519") + string(b"short"), b"", b"")
