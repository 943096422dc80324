import subprocess
import sys

import asyncssh
import pytest
from asyncssh.encryption import encryption_needs_mac, get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell import ssh
from pqtun.shell.ssh import CIPHERS, CLASSICAL_KEX, KEX, choose


def known(algorithms):
    return {name.decode() for name in algorithms}


def test_asyncssh_knows_every_name():
    assert {*KEX, *CLASSICAL_KEX} <= known(get_kex_algs())
    assert set(CIPHERS) <= known(get_encryption_algs())
    assert set(ssh.MACS) <= known(get_mac_algs())
    assert {*ssh.KEY_ALGORITHMS, *ssh.SIGNATURE_ALGORITHMS, *ssh.CLASSICAL_SIGNATURES} <= known(get_public_key_algs())
    assert set(ssh.CERTIFICATE_ALGORITHMS) <= known(get_certificate_algs())


def test_no_cipher_needs_a_mac():
    assert not any(encryption_needs_mac(cipher.encode()) for cipher in CIPHERS)


def test_asyncssh_takes_the_names():
    options = asyncssh.SSHClientConnectionOptions(
        config=None,
        kex_algs=KEX,
        encryption_algs=CIPHERS,
        mac_algs=ssh.MACS,
        compression_algs=ssh.COMPRESSION,
        signature_algs=ssh.SIGNATURE_ALGORITHMS,
        server_host_key_algs=ssh.HOST_KEY_ALGORITHMS,
    )
    assert known(options.kex_algs) == set(KEX)


def test_prepare_starts_no_program_and_loads_no_x509():
    """asyncssh by itself forks gcc and ldconfig."""
    program = """
import sys
started = []
programs = {"subprocess.Popen", "os.fork", "os.exec"}
sys.addaudithook(lambda event, _: event in programs and started.append(event))
from pqtun.shell import ssh
assert "asyncssh" not in sys.modules
ssh.prepare()
import asyncssh, ctypes.util
assert ctypes.util.find_library.__module__ == "ctypes.util"
assert "cryptography.x509" not in sys.modules
assert "asyncssh.crypto.x509" not in sys.modules
assert not started, started
ssh.prepare()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", None),
        ("sntrup761x25519-sha512", ("sntrup761x25519-sha512",)),
        ("sntrup761*", KEX[1:]),
        ("curve25519-sha256", ("curve25519-sha256",)),
        ("+curve25519-sha256", (*KEX, "curve25519-sha256")),
        ("+curve25519-*,never-heard-of", (*KEX, "curve25519-sha256", "curve25519-sha256@libssh.org")),
        ("^sntrup761x25519-sha512", (KEX[1], KEX[0], KEX[2])),
        ("-mlkem*", KEX[1:]),
        ("-curve25519-sha256", KEX),
        ("never-heard-of", None),
        ("-*", None),
        ("never-heard-of,mlkem768x25519-sha256,mlkem768x25519-sha256", KEX[:1]),
    ],
)
def test_choose(text, chosen):
    if chosen is None:
        with pytest.raises(UserError, match="KexAlgorithms"):
            choose("KexAlgorithms", text, KEX, CLASSICAL_KEX)
    else:
        assert choose("KexAlgorithms", text, KEX, CLASSICAL_KEX) == chosen


@given(st.text(alphabet="+-^*?,[]!abcxs25519-\n", max_size=30) | st.text(max_size=30))
def test_choose_never_invents(text):
    try:
        chosen = choose("Ciphers", text, KEX, CLASSICAL_KEX)
    except UserError:
        return
    assert chosen
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {*KEX, *CLASSICAL_KEX}
    if text[:1] == "-":
        assert set(chosen) <= set(KEX)
