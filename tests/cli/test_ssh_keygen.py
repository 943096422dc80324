import os
import pty
import select
import stat
import subprocess
import sys
import time

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.cli import ssh_keygen
from pqtun.cli.main import main
from pqtun.protocol.errors import UserError
from pqtun.shell import keyfile, ssh

ssh.prepare()


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*arguments, stdin=""):
        read, write = os.pipe()
        os.write(write, stdin.encode())
        os.close(write)
        with open(read) as answers, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", answers)
            code = main(["ssh-keygen", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# --- making ---


@pytest.mark.parametrize(
    ("words", "algorithm"),
    [
        ([], "ssh-mldsa44-ed25519"),
        (["-t", "mldsa44-ed25519"], "ssh-mldsa44-ed25519"),
        (["-t", "ed25519"], "ssh-ed25519"),
        (["-t", "ssh-ed25519"], "ssh-ed25519"),
    ],
)
def test_generate(run, tmp_path, words, algorithm):
    path = tmp_path / "key"
    code, out, err = run(*words, "-f", path, "-N", "", "-C", "my comment")
    key = keyfile.load_private(path)
    assert (code, err) == (0, "")
    assert key.get_algorithm() == algorithm
    assert key.get_comment() == "my comment"
    assert out.splitlines() == [
        f"Generating public/private {algorithm.removeprefix('ssh-')} key pair.",
        f"Your identification has been saved in {path}",
        f"Your public key has been saved in {path}.pub",
        "The key fingerprint is:",
        f"{key.get_fingerprint()} my comment",
    ]
    assert (mode(path), mode(tmp_path / "key.pub")) == (0o600, 0o644)


def test_ssh_keygen_reads_it(run, tmp_path):
    """The machine's own, which knows ed25519."""
    path = tmp_path / "key"
    assert run("-q", "-t", "ed25519", "-f", path, "-N", "secret", "-C", "c")[:2] == (0, "")
    shown = subprocess.run(
        ["ssh-keygen", "-y", "-P", "secret", "-f", path], check=True, capture_output=True, text=True, timeout=20
    )
    assert shown.stdout.split()[:2] == (tmp_path / "key.pub").read_text().split()[:2]


def test_default_comment_is_user_and_host(run, tmp_path):
    run("-q", "-f", tmp_path / "key", "-N", "")
    user, _, host = keyfile.load_private(tmp_path / "key").get_comment().partition("@")
    assert user
    assert host == os.uname().nodename


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_overwriting_is_asked_for(run, tmp_path, answer, code):
    path = tmp_path / "key"
    run("-q", "-f", path, "-N", "")
    before = path.read_bytes()
    found, out, _ = run("-f", path, "-N", "", stdin=answer)
    assert found == code
    assert f"{path} already exists.\nOverwrite (y/n)? " in out
    assert (path.read_bytes() == before) == bool(code)


def test_file_is_asked_for(run, tmp_path):
    code, out, _ = run("-N", "", stdin=f"{tmp_path / 'typed'}\n")
    assert code == 0
    assert "Enter file in which to save the key (" in out
    assert "/.ssh/id_mldsa44_ed25519): " in out
    assert (tmp_path / "typed.pub").exists()


def test_errors_are_one_line(run, tmp_path):
    for arguments in (
        ("-f", tmp_path / "none" / "key", "-N", ""),
        ("-f", tmp_path / "key", "-N", "", "-C", "two\nlines"),
        ("-y", "-f", tmp_path / "none"),
        ("-l", "-f", tmp_path / "none"),
        ("-L", "-f", tmp_path / "none"),
        ("-p", "-f", tmp_path / "none", "-N", ""),
        ("-s", tmp_path / "none", "-I", "id", tmp_path / "none.pub"),
        ("-s", tmp_path / "none"),
        ("-f", "", "-N", ""),
        ("-f", "/", "-N", ""),
    ):
        code, _, err = run(*arguments)
        assert code == 1, arguments
        assert err.startswith("pqtun ssh-keygen: ")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "rsa"],
        ["-t"],
        ["-E", "crc32", "-l"],
        ["-a", "0"],
        ["-a", "many"],
        ["-l", "-p"],
        ["-X"],
        ["file"],
        ["-l", "file"],
    ],
)
def test_wrong_usage(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("pqtun ssh-keygen: ")


# --- changing and showing ---


def test_passphrase_changes(run, tmp_path):
    path = tmp_path / "key"
    run("-q", "-f", path, "-N", "", "-C", "kept")
    key = keyfile.load_private(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert run("-p", "-f", link, "-N", "one", "-a", "1")[:2] == (
        0,
        "Key has comment 'kept'\nYour identification has been saved with the new passphrase.\n",
    )
    assert link.is_symlink()
    assert mode(path) == 0o600
    with pytest.raises(keyfile.EncryptedError):
        keyfile.load_private(path)
    code, _, err = run("-p", "-f", path, "-P", "wrong", "-N", "")
    assert code == 1
    assert "passphrase of -P" in err
    assert run("-p", "-f", path, "-P", "one", "-N", "")[0] == 0
    assert keyfile.load_private(path) == key
    assert keyfile.load_private(path).get_comment() == "kept"


def test_public_key_is_printed(run, tmp_path):
    run("-q", "-f", tmp_path / "key", "-N", "secret", "-C", "some one", "-a", "1")
    assert run("-y", "-f", tmp_path / "key", "-P", "secret")[:2] == (0, (tmp_path / "key.pub").read_text())


def test_fingerprint_is_printed(run, tmp_path):
    run("-q", "-f", tmp_path / "key", "-N", "secret", "-C", "c", "-a", "1")
    key = keyfile.load_public(tmp_path / "key.pub")
    for file in ("key", "key.pub"):
        code, out, _ = run("-l", "-f", tmp_path / file)
        assert (code, out) == (0, f"512 {key.get_fingerprint()} c (MLDSA44-ED25519)\n")
    assert run("-lE", "md5", "-f", tmp_path / "key")[1].startswith("512 MD5:")


def test_fingerprints_of_standard_input(run, tmp_path):
    run("-q", "-f", tmp_path / "key", "-N", "", "-C", "c")
    argv = [sys.executable, "-m", "pqtun.cli.main", "ssh-keygen", "-lf", "-"]
    with (tmp_path / "key.pub").open() as public:
        ended = subprocess.run(argv, stdin=public, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, run("-lf", tmp_path / "key")[1])


def test_help(run):
    assert run("--help") == (0, ssh_keygen.USAGE, "")


# --- certificates ---


@pytest.fixture
def authority(run, tmp_path):
    for name in ("ca", "user"):
        run("-q", "-f", tmp_path / name, "-N", "", "-C", name)
    return tmp_path / "ca"


def test_user_certificate(run, tmp_path, authority):
    code, out, err = run(
        "-s", authority, "-I", "the id", "-n", "alice, bob", "-V", "-1h:+1d", "-z", "9", tmp_path / "user.pub"
    )
    assert (code, out) == (0, "")
    assert err.startswith(
        f'Signed user key {tmp_path / "user-cert.pub"}: id "the id" serial 9 for alice,bob valid from '
    )
    certificate = keyfile.load_certificate(tmp_path / "user-cert.pub")
    certificate.validate(asyncssh.public_key.CERT_TYPE_USER, "bob")
    assert certificate.signing_key == keyfile.load_public(authority)
    code, out, _ = run("-L", "-f", tmp_path / "user-cert.pub")
    assert code == 0
    assert out.startswith(f"{tmp_path / 'user-cert.pub'}:\n        Type: ssh-mldsa44-ed25519-cert user certificate\n")
    assert "-CERT)" in run("-l", "-f", tmp_path / "user-cert.pub")[1]


def test_several_host_certificates(run, tmp_path, authority):
    run("-q", "-t", "ed25519", "-f", tmp_path / "other", "-N", "")
    code, _, err = run(
        "-s", authority, "-h", "-I", "hosts", "-n", "a.example", "-z", "+41", tmp_path / "user", tmp_path / "other.pub"
    )
    assert code == 0
    assert "serial 41" in err.splitlines()[0]
    assert "serial 42" in err.splitlines()[1]
    for name in ("user", "other"):
        certificate = keyfile.load_certificate(tmp_path / f"{name}-cert.pub")
        certificate.validate(asyncssh.public_key.CERT_TYPE_HOST, "a.example")


def test_certificates_without_principals_are_warned_of(run, tmp_path, authority):
    code, _, err = run("-q", "-s", authority, "-I", "id", tmp_path / "user.pub")
    assert code == 0
    assert err.startswith("Warning: without principals")


@pytest.mark.parametrize(
    "words",
    [
        ["-V", "yesterday"],
        ["-O", "no-such-option"],
        ["-z", "x"],
        ["-z", "18446744073709551616"],
        ["-h", "-O", "no-pty"],
        ["-I", ""],
    ],
)
def test_refused_certificates(run, tmp_path, authority, words):
    code, _, err = run("-s", authority, "-I", "id", "-n", "a", *words, tmp_path / "user.pub")
    assert code == 1
    assert err.count("\n") == 1
    assert not (tmp_path / "user-cert.pub").exists()


@given(st.text(max_size=25), st.integers(1, 5))
def test_serials(text, count):
    try:
        found = ssh_keygen.serials(text, count)
    except UserError:
        return
    assert len(found) == count
    assert found[0] == int(text.removeprefix("+"))
    assert found[-1] - found[0] in (0, count - 1)


@given(st.lists(st.text(max_size=8) | st.sampled_from(["-t", "-f", "-N", "-l", "-s", "-I", "--", "ed25519"])))
def test_any_words(words):
    try:
        ssh_keygen.parse(words)
    except UserError:
        pass


def test_secrets_are_not_shown():
    wanted = ssh_keygen.parse(["-N", "new secret", "-P", "old secret"])
    assert "secret" not in repr(wanted)


# --- on a terminal ---


def typed(arguments, conversation, timeout=60):
    """Runs it on a terminal of its own and types each answer after its question; exit code and what was shown."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pqtun", "ssh-keygen", *map(str, arguments)])
    shown, deadline, left = b"", time.monotonic() + timeout, list(conversation)
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                continue
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # as Linux reports that the last one has closed the terminal
                break
            if left and shown.rstrip().endswith(left[0][0].encode()):
                os.write(terminal, left.pop(0)[1].encode() + b"\n")
    finally:
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not left, shown.decode()
    return code, shown.decode().replace("\r\n", "\n")


def test_passphrase_is_asked_for_twice(tmp_path):
    path = tmp_path / "key"
    asked = "(empty for no passphrase):"
    code, shown = typed(
        ["-f", path, "-C", "c", "-a", "1"],
        [(asked, "hidden"), ("again:", "other"), (asked, "hidden"), ("again:", "hidden")],
    )
    assert code == 0
    assert "Passphrases do not match." in shown
    assert "hidden" not in shown
    assert keyfile.load_private(path, lambda _: "hidden").get_comment() == "c"
    code, shown = typed(["-y", "-f", path], [(f"Enter passphrase for {path}:", "hidden")])
    assert code == 0
    assert shown.strip().endswith((tmp_path / "key.pub").read_text().strip())


def test_without_a_terminal(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pqtun", "ssh-keygen", "-f", tmp_path / "key"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.returncode == 1
    assert "no terminal" in done.stderr
    assert not (tmp_path / "key").exists()
