import base64
import os
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell import ssh
from pqtun.shell.sshd import accounts, authorized
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.authorized import Authorizer, file_of, fingerprint
from pqtun.shell.sshd.permission import Permission
from tests.shell.sshd.keys import KeyFile, SecurityKey

pytestmark = pytest.mark.root

SOURCE = ip_address("10.43.0.7")
NOW = 1_800_000_000.0
EVER = ("-V", "20200101:20400101")
FILE = Path("/home/alice/.ssh/authorized_keys")


@dataclass(frozen=True)
class Settings:
    authorized_keys: tuple[str, ...] = (".ssh/authorized_keys",)
    trusted_user_ca_keys: Path | None = None
    revoked_keys: Path | None = None


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def key(directory):
    return KeyFile.make(directory / "user")


@pytest.fixture(scope="module")
def other(directory):
    return KeyFile.make(directory / "other")


@pytest.fixture(scope="module")
def ca(directory):
    return KeyFile.make(directory / "ca")


def install(text: str | bytes, path: Path = FILE) -> None:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if path.is_relative_to("/home/alice"):
        os.chown(path, 4001, 4001)
        os.chown(path.parent, 4001, 4001)


def ask(
    world,
    text: str | bytes,
    blob: bytes,
    *,
    user: str = "alice",
    settings: Settings = Settings(),
    files: dict[str, str] | None = None,
) -> tuple[Permission | None, list[str]]:
    """What alice's file lets this key do, and the remarks."""

    def answer() -> tuple[Permission | None, list[str]]:
        install(text)
        for path, content in (files or {}).items():
            install(content, Path(path))
        authorizer = Authorizer(settings)
        return authorizer.permission(accounts.find(user), blob, SOURCE, NOW), authorizer.remarks

    return world.call(answer)


def test_a_plain_line(world, key):
    permission, remarks = ask(world, f"# mine\n\n  {key.line}\r\n", key.blob)
    assert permission == Permission(origin=f"{FILE}:3", key_type="ssh-ed25519", fingerprint=fingerprint(key.blob))
    assert not remarks


def test_the_fingerprint_is_ssh_keygens(key):
    import subprocess

    shown = subprocess.run(["ssh-keygen", "-lf", f"{key.path}.pub"], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[1] == fingerprint(key.blob)


def test_each_of_our_key_types(world):
    ssh.prepare()
    import asyncssh

    for key_type in ssh.KEY_ALGORITHMS[:2]:
        made = asyncssh.generate_private_key(key_type)
        permission, _ = ask(world, made.export_public_key(), made.public_data)
        assert permission is not None
        assert permission.key_type == key_type
    token = SecurityKey()
    permission, _ = ask(world, f"no-touch-required {token.line}", token.blob)
    assert permission is not None
    assert not permission.touch_required


def test_options_are_taken_over(world, key):
    options = 'restrict,command="echo \\"a b\\" # c",environment="A=b c",permitopen="h:1",pty'
    permission, _ = ask(world, f"{options} {key.line}", key.blob)
    assert permission is not None
    assert permission.command == 'echo "a b" # c'
    assert permission.environment == (("A", "b c"),)
    assert permission.permit_open == (("h", 1),)
    assert (permission.pty, permission.port_forwarding, permission.x11_forwarding) == (True, False, False)


@pytest.mark.parametrize(
    ("options", "remark"),
    [
        ("unknown", "unknown key option unknown"),
        ('from="10.44.0.0/16"', "not from this address"),
        ('from="10.43.0.1/16"', "from=: not a network: 10.43.0.1/16"),
        ('expiry-time="20200101Z"', "expired"),
        ('tunnel="1"', "tunnel="),
        ("pty,", "unknown key option"),
        ("cert-authority", None),
        ('principals="alice"', "principals= of a key that is no CA's"),
    ],
)
def test_lines_that_do_not_let_in(world, key, other, options, remark):
    permission, remarks = ask(world, f"{options} {key.line}\n{options} {other.line}\n", key.blob)
    assert permission is None
    assert len(remarks) == (remark is not None)  # other keys' lines are nobody's business
    if remark is not None:
        assert remarks[0].startswith(f"{FILE}:1: {remark}")


def test_a_line_that_refuses_does_not_end_the_search(world, key):
    permission, remarks = ask(world, f'from="192.0.2.1" {key.line}\ncommand="x" {key.line}\n{key.line}', key.blob)
    assert permission is not None
    assert permission.origin == f"{FILE}:2"
    assert remarks


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 ",
        "ssh-ed25519 ????",
        "ssh-mldsa44-ed25519 {blob}",  # another type than the key's
        "ssh-ed25519{blob}",
        "{blob}",
        'command="x {line}',
        "#{line}",
        "pty, {line}",
        "pty {short}",
    ],
)
def test_lines_without_the_key(world, key, line):
    blob = key.line.split()[1]
    text = line.format(blob=blob, line=key.line, short=f"ssh-ed25519 {blob[:-8]}")
    assert ask(world, text, key.blob)[0] is None


def test_long_lines_and_zero_bytes_are_passed_over(world, key):
    long = f'command="{"x" * authorized.MAX_LINE}" {key.line}\n'
    permission, remarks = ask(world, f'{long}command="a\0b" {key.line}\n{key.line}', key.blob)
    assert permission is not None
    assert permission.origin == f"{FILE}:3"
    assert len(remarks) == 2


def test_remarks_are_bounded(world, key):
    _, remarks = ask(world, f"zap {key.line}\n" * 100, key.blob)
    assert len(remarks) == authorized.MAX_REMARKS


def test_bytes_that_are_no_utf8_reach_the_command(world, key):
    permission, _ = ask(world, b'command="echo \xff" ' + key.line.encode(), key.blob)
    assert permission is not None
    assert os.fsencode(permission.command or "") == b"echo \xff"


def test_other_users_and_unknown_ones(world, key):
    for user in ("bob", "nobody-there"):
        assert ask(world, key.line, key.blob, user=user) == (None, [])


def test_keys_of_types_that_are_not_used(world):
    line = "ssh-rsa " + base64.b64encode(b"\0\0\0\x07ssh-rsa\0\0\0\x01\x03").decode()
    assert ask(world, line, base64.b64decode(line.split()[1])) == (None, [])


def test_several_files_and_a_bad_one(world, key, other):
    settings = Settings(authorized_keys=(".ssh/authorized_keys", "/etc/keys/%u", ".ssh/third"))
    files = {"/etc/keys/alice": f'command="central" {key.line}\n', "/home/alice/.ssh/third": key.line}
    permission, _ = ask(world, other.line, key.blob, settings=settings, files=files)
    assert permission is not None
    assert permission.origin == "/etc/keys/alice:1"

    def with_bad_modes() -> tuple[Permission | None, list[str]]:
        install(key.line)
        install(key.line, Path("/home/alice/.ssh/third"))
        FILE.chmod(0o666)
        authorizer = Authorizer(settings)
        return authorizer.permission(accounts.find("alice"), key.blob, SOURCE, NOW), authorizer.remarks

    permission, remarks = world.call(with_bad_modes)
    assert permission is not None
    assert permission.origin == "/home/alice/.ssh/third:1"
    assert remarks == [f"{FILE}: bad ownership or modes of the file"]


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (".ssh/authorized_keys", "/home/al/.ssh/authorized_keys"),
        ("%h/keys", "/home/al/keys"),
        ("/etc/keys/%u", "/etc/keys/al"),
        ("/etc/keys/%U.pub", "/etc/keys/7.pub"),
        ("/etc/%%u/%u", "/etc/%u/al"),
        ("/etc/%%%u", "/etc/%al"),
    ],
)
def test_names_of_files(pattern, path):
    assert file_of(pattern, Account(name="al", uid=7, gid=7, groups=(7,), home="/home/al", shell="/bin/sh")) == path


def test_a_certificate_of_a_ca_in_the_users_file(world, key, ca):
    blob = ca.certify(key, *EVER, "-z", "5", "-O", "no-pty")
    permission, _ = ask(world, f"cert-authority,no-x11-forwarding {ca.line}", blob)
    assert permission is not None
    assert permission.origin == f"{FILE}:1: certificate 'the id' serial 5 of CA {fingerprint(ca.blob)}"
    assert permission.fingerprint == fingerprint(key.blob)
    assert (permission.pty, permission.x11_forwarding, permission.agent_forwarding) == (False, False, True)


@pytest.mark.parametrize(
    ("options", "certified", "good"),
    [
        ("cert-authority", (), True),
        ("", (), False),
        ('cert-authority,principals="admins"', (), False),
        ('cert-authority,principals="admins,alice"', (), True),
        ("cert-authority", ("-O", "force-command=date"), True),
        ('cert-authority,command="date"', ("-O", "force-command=date"), True),
        ('cert-authority,command="id"', ("-O", "force-command=date"), False),
        ('cert-authority,from="192.0.2.0/24"', (), False),
        ("cert-authority", ("-O", "source-address=192.0.2.0/24"), False),
        ('cert-authority,expiry-time="20200101"', (), False),
        ("cert-authority", ("-h",), False),
    ],
)
def test_certificates_and_options_of_their_ca(world, key, ca, options, certified, good):
    permission, _ = ask(world, f"{options} {ca.line}".strip(), ca.certify(key, *EVER, *certified))
    assert (permission is not None) is good


def test_a_certificate_lets_in_by_its_ca_only(world, key, other, ca):
    blob = ca.certify(key, *EVER)
    assert ask(world, key.line, blob)[0] is None
    assert ask(world, f"cert-authority {other.line}", blob)[0] is None
    assert ask(world, f"cert-authority {key.line}", blob)[0] is None
    assert ask(world, f"cert-authority {ca.line}", ca.blob)[0] is None


def test_a_certificate_that_was_forged(world, key, other, ca):
    blob = bytearray(ca.certify(key, *EVER, principals="bobby"))
    position = blob.index(b"bobby")
    blob[position : position + 5] = b"alice"
    permission, remarks = ask(world, f"cert-authority {ca.line}", bytes(blob))
    assert permission is None
    assert "signature is wrong" in remarks[0]


def test_a_trusted_ca(world, key, ca):
    settings = Settings(trusted_user_ca_keys=Path("/etc/cas/users"))
    files = {"/etc/cas/users": f"# ours\n{ca.line}\n"}
    blob = ca.certify(key, *EVER, "-O", "force-command=date")
    permission, _ = ask(world, "", blob, settings=settings, files=files)
    assert permission is not None
    assert permission.command == "date"
    assert permission.origin.startswith("/etc/cas/users:2: certificate")
    for user, principals in (("bob", "alice"), ("alice", "bob"), ("nobody-there", "nobody"), ("alice", None)):
        blob = ca.certify(key, *EVER, principals=principals)
        assert ask(world, "", blob, user=user, settings=settings, files=files)[0] is None
    assert ask(world, "", key.blob, settings=settings, files=files)[0] is None
    assert ask(world, "", ca.certify(key, *EVER), settings=settings)[0] is None  # no such file


def test_revoked_keys(world, key, other, ca):
    settings = Settings(revoked_keys=Path("/etc/cas/revoked"), trusted_user_ca_keys=Path("/etc/cas/users"))
    blob = ca.certify(key, *EVER)
    cas = {"/etc/cas/users": ca.line}
    for revoked, lets_key, lets_certificate in ((other, True, True), (key, False, False), (ca, True, False)):
        files = {**cas, "/etc/cas/revoked": revoked.line}
        assert (ask(world, key.line, key.blob, settings=settings, files=files)[0] is not None) is lets_key
        assert (ask(world, "", blob, settings=settings, files=files)[0] is not None) is lets_certificate


def test_a_list_of_revoked_keys_that_is_missing_lets_nobody_in(world, key):
    permission, remarks = ask(world, key.line, key.blob, settings=Settings(revoked_keys=Path("/etc/cas/revoked")))
    assert permission is None
    assert remarks == ["/etc/cas/revoked: no such file; all keys count as revoked"]


@given(st.binary(max_size=200))
def test_any_file(data):
    def remark(text: str) -> None:
        assert text

    question = authorized._Question(Settings(), authorized._NOBODY, SOURCE, NOW, remark)
    for line in question._lines(data, "file"):
        assert line.blob


@given(st.binary(max_size=200))
def test_any_key(data):
    account = Account(name="x", uid=os.getuid(), gid=os.getgid(), groups=(), home="/nonexistent", shell="/bin/sh")
    assert Authorizer(Settings()).permission(account, data, SOURCE, time.time()) is None


def test_nobody_can_make_files_for_users_that_there_are_not():
    assert Path(authorized._NOBODY.home).is_char_device()  # and so can have nothing below it
