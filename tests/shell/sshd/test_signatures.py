import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell import ssh
from pqtun.shell.sshd import signatures
from pqtun.shell.sshd.permission import Permission
from tests.shell.sshd.keys import SECURITY_KEY, SecurityKey, certificate

MESSAGE = b"session, user, service and key"
TOUCHED, VERIFIED = 0x01, 0x04
TOKEN = SecurityKey()
PLAIN = Permission(origin="f:1", key_type=SECURITY_KEY, fingerprint="SHA256:x")


@pytest.mark.parametrize("key_type", ssh.KEY_ALGORITHMS[:2])
def test_keys_and_their_certificates(key_type):
    ssh.prepare()
    import asyncssh

    key, ca = asyncssh.generate_private_key(key_type), asyncssh.generate_private_key("ssh-ed25519")
    permission = dataclasses.replace(PLAIN, key_type=key_type)
    signature = key.sign(MESSAGE, key_type.encode())
    for blob in (key.public_data, certificate(key, ca)):
        assert signatures.verify(permission, blob, MESSAGE, signature)
        assert not signatures.verify(permission, blob, MESSAGE + b"x", signature)
        assert not signatures.verify(permission, blob, MESSAGE, signature[:-1])
        assert not signatures.verify(permission, blob, MESSAGE, ca.sign(MESSAGE, b"ssh-ed25519"))
        assert not signatures.verify(PLAIN, blob, MESSAGE, signature)


@pytest.mark.parametrize("flags", range(8))
@pytest.mark.parametrize("touch", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_what_the_owner_of_a_security_key_has_to_do(flags, touch, verify):
    permission = dataclasses.replace(PLAIN, touch_required=touch, verify_required=verify)
    good = (not touch or bool(flags & TOUCHED)) and (not verify or bool(flags & VERIFIED))
    assert signatures.verify(permission, TOKEN.blob, MESSAGE, TOKEN.sign(MESSAGE, flags)) is good


@pytest.mark.parametrize("flags", [TOUCHED, VERIFIED])
def test_the_flags_are_signed_too(flags):
    signature = bytearray(TOKEN.sign(MESSAGE, flags))
    signature[-5] = TOUCHED | VERIFIED
    assert not signatures.verify(PLAIN, TOKEN.blob, MESSAGE, bytes(signature))


@given(st.binary(max_size=120), st.booleans())
def test_any_signature(signature, verify):
    permission = dataclasses.replace(PLAIN, verify_required=verify)
    assert not signatures.verify(permission, TOKEN.blob, MESSAGE, signature)
    assert not signatures.verify(permission, signature, MESSAGE, TOKEN.sign(MESSAGE, TOUCHED))


def test_every_part_of_a_signature():
    signature = TOKEN.sign(MESSAGE, TOUCHED | VERIFIED)
    permission = dataclasses.replace(PLAIN, verify_required=True)
    assert signatures.verify(permission, TOKEN.blob, MESSAGE, signature)
    for length in range(len(signature)):
        assert not signatures.verify(permission, TOKEN.blob, MESSAGE, signature[:length])
    assert not signatures.verify(permission, TOKEN.blob, MESSAGE, signature + b"\0")
