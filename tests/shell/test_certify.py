import subprocess

import asyncssh
import pytest
from asyncssh.public_key import CERT_TYPE_HOST, CERT_TYPE_USER
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell.certify import PERMITS, Request, UserOptions, certify, describe_certificate, parse_options, signed_line
from tests.shell.vectors import SSH

AUTHORITY = asyncssh.generate_private_key("ssh-mldsa44-ed25519")
KEY = asyncssh.generate_private_key("ssh-mldsa44-ed25519", "the comment")


def again(certificate):
    """Written and read, so that it is what a server sees."""
    return asyncssh.import_certificate(certificate.export_certificate())


def test_user_certificate():
    options = parse_options(["clear", "permit-pty", "force-command=ls -l", "source-address=10.0.0.0/8,fd00::/8"])
    request = Request("the id", principals=("alice", "bob"), first=1000, last=2_000_000_000, serial=7, options=options)
    made = again(certify(AUTHORITY, KEY, request))
    made.validate(CERT_TYPE_USER, "bob")
    assert made.get_comment() == "the comment"
    assert made.key == KEY.convert_to_public()
    assert made.signing_key == AUTHORITY.convert_to_public()
    assert made.options["force-command"] == "ls -l"
    assert describe_certificate(made)[3:] == [
        'Key ID: "the id"',
        "Serial: 7",
        f"Valid: {describe_certificate(made)[5].removeprefix('Valid: ')}",
        "Principals:",
        "        alice",
        "        bob",
        "Critical Options:",
        "        force-command ls -l",
        "        source-address 10.0.0.0/8,fd00::/8",
        "Extensions:",
        "        permit-pty",
    ]
    assert signed_line("f", made).startswith('Signed user key f: id "the id" serial 7 for alice,bob valid from ')


def test_host_certificate():
    made = again(certify(AUTHORITY, KEY, Request("h", host=True, principals=("host",))))
    made.validate(CERT_TYPE_HOST, "host")
    assert made.options == {}
    assert describe_certificate(made)[0] == "Type: ssh-mldsa44-ed25519-cert host certificate"
    assert describe_certificate(made)[5] == "Valid: forever"
    assert describe_certificate(made)[-1] == "Extensions: (none)"


def test_recorded_certificate():
    """As OpenSSH 10.6 shows it, but for blanks at line ends."""
    lines = describe_certificate(asyncssh.read_certificate(SSH / "user-cert.pub"))
    assert lines[2].startswith("Signing CA: MLDSA44-ED25519 SHA256:LepoCVdVsZ+r8VNDsiyRVT/sgbNSpUTyvAvii8rQmso (using ")
    assert 'Key ID: "alice-id"' in lines
    assert "Serial: 42" in lines


@pytest.mark.parametrize("signed_with", ["rsa-sha2-256", "rsa-sha2-512"])
def test_certificates_of_ssh_keygen(tmp_path, signed_with):
    def ssh_keygen(*words):
        return subprocess.run(
            ["ssh-keygen", *words], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True
        ).stdout

    ssh_keygen("-q", "-t", "rsa", "-N", "", "-f", "ca")
    ssh_keygen("-q", "-t", "ed25519", "-N", "", "-f", "key")
    ssh_keygen("-q", "-s", "ca", "-t", signed_with, "-I", "id", "-n", "alice", "-V", "-1h:+2d", "key.pub")
    lines = [line.removeprefix(" " * 8).rstrip() for line in ssh_keygen("-Lf", "key-cert.pub").splitlines()[1:]]
    assert describe_certificate(asyncssh.read_certificate(tmp_path / "key-cert.pub")) == lines


def test_default_options_permit():
    made = again(certify(AUTHORITY, KEY, Request("id")))
    assert len(made.options) == len(PERMITS)
    assert made.principals == []


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], UserOptions()),
        (["clear"], UserOptions(frozenset())),
        (["no-pty", "no-X11-forwarding"], UserOptions(frozenset(PERMITS) - {"pty", "x11-forwarding"})),
        (["clear", "permit-x11-forwarding"], UserOptions(frozenset({"x11-forwarding"}))),
        (["force-command=a=b", "clear"], UserOptions(frozenset())),
        (["no-pty", "permit-pty"], UserOptions()),
    ],
)
def test_options(options, found):
    assert parse_options(options) == found


@pytest.mark.parametrize(
    "option", ["", "pty", "no-", "no-permit-pty", "force-command", "force-command=", "verify-required", "no-pty=x"]
)
def test_unknown_options(option):
    with pytest.raises(UserError, match="certificate option"):
        parse_options([option])


@pytest.mark.parametrize("addresses", ["10.0.0.1/8", "host", "10.0.0.0/8,", "::/200"])
def test_bad_addresses(addresses):
    with pytest.raises(UserError, match="source-address"):
        parse_options([f"source-address={addresses}"])


@given(st.lists(st.text(max_size=20)))
def test_any_options(options):
    try:
        assert parse_options(options).permits <= PERMITS.keys()
    except UserError:
        pass


@pytest.mark.parametrize("serial", [-1, 1 << 64])
def test_serials_out_of_range(serial):
    with pytest.raises(UserError, match="serial"):
        certify(AUTHORITY, KEY, Request("id", serial=serial))


def test_authority_that_is_public():
    with pytest.raises((UserError, ValueError)):
        certify(AUTHORITY.convert_to_public(), KEY, Request("id"))
