"""What ``pqtun ssh-keygen`` does, one function an action. Questions and answers are those of ssh-keygen(1)."""

import os
import pwd
import socket
import sys
import time
from collections.abc import Callable, Mapping
from getpass import getpass
from pathlib import Path
from typing import Final

import asyncssh
from asyncssh.public_key import SSHOpenSSHCertificate

from pqtun.cli.ending import FAILURE
from pqtun.cli.ssh_keygen import USAGE, Arguments, serials
from pqtun.protocol.errors import UserError
from pqtun.shell import certify, keyfile, validity

DEFAULT_NAMES: Final = {"ssh-mldsa44-ed25519": "id_mldsa44_ed25519", "ssh-ed25519": "id_ed25519"}
"""File names in ~/.ssh, as OpenSSH has them."""

_STDIN: Final = Path("/dev/stdin")


def generate(wanted: Arguments) -> int:
    """Make a key pair; return 1 if it was not to replace another one."""
    say = _say(wanted)
    say(f"Generating public/private {wanted.key_type.removeprefix('ssh-')} key pair.")
    default = _ssh_directory() / DEFAULT_NAMES[wanted.key_type]
    path = wanted.file or _ask_path(default)
    public = keyfile.beside(path)
    if path.parent == _ssh_directory() and not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True)
        say(f"Created directory '{path.parent}'.")
    replace = os.path.lexists(path) or os.path.lexists(public)
    if replace and not _overwrite(path if os.path.lexists(path) else public):
        return FAILURE
    passphrase = wanted.new_passphrase if wanted.new_passphrase is not None else _ask_new(path)
    comment = _own_name() if wanted.comment is None else wanted.comment
    key = asyncssh.generate_private_key(wanted.key_type, _one_line(comment))
    keyfile.save_pair(path, key, passphrase, replace=replace, rounds=wanted.rounds or keyfile.ROUNDS)
    say(f"Your identification has been saved in {path}")
    say(f"Your public key has been saved in {public}")
    say("The key fingerprint is:")
    say(f"{key.get_fingerprint()} {keyfile.comment(key)}".rstrip())
    return 0


def change_passphrase(wanted: Arguments) -> int:
    """Encrypt a private key file under another passphrase, or not at all."""
    path = Path(os.path.realpath(_existing(wanted)))  # a link to it stays one
    key = keyfile.load_private(path, passphrase_source(wanted.passphrase))
    if key.has_comment():
        print(f"Key has comment '{keyfile.comment(key)}'")
    passphrase = wanted.new_passphrase if wanted.new_passphrase is not None else _ask_new(path)
    keyfile.save_private(path, key, passphrase, replace=True, rounds=wanted.rounds or keyfile.ROUNDS)
    print("Your identification has been saved with the new passphrase.")
    return 0


def print_public(wanted: Arguments) -> int:
    """Print the public half of a private key file."""
    key = keyfile.load_private(_existing(wanted), passphrase_source(wanted.passphrase))
    print(key.export_public_key().decode(errors="replace"), end="")
    return 0


def print_fingerprint(wanted: Arguments) -> int:
    """Print the fingerprints of the keys in a file, or in what stands for it: - for standard input."""
    path = _STDIN if wanted.file == Path("-") else _existing(wanted)
    print("\n".join(keyfile.fingerprints(path, wanted.hash_name)))
    return 0


def print_certificate(wanted: Arguments) -> int:
    """Print what a certificate says."""
    path = _existing(wanted)
    print(f"{path}:")
    for line in certify.describe_certificate(keyfile.load_certificate(path)):
        print(f"        {line}")
    return 0


def sign_certificates(wanted: Arguments) -> int:
    """Sign certificates of public keys, each into NAME-cert.pub."""
    if wanted.authority is None or not wanted.identity or not wanted.files:
        raise UserError("to certify, give the CA's key (-s), a key identity (-I), and the public keys' files")
    options = certify.parse_options(wanted.options)
    if wanted.host and wanted.options:
        raise UserError("host certificates take no options (-O)")
    first, last = validity.interval(wanted.validity, int(time.time())) if wanted.validity else (0, validity.FOREVER)
    authority = keyfile.load_private(wanted.authority, passphrase_source(wanted.passphrase))
    keys = [keyfile.load_public(path) for path in wanted.files]
    if not wanted.principals:
        print(
            "Warning: without principals (-n), servers refuse the certificate or take it for anybody", file=sys.stderr
        )
    for path, key, serial in zip(wanted.files, keys, serials(wanted.serial, len(keys)), strict=True):
        request = certify.Request(wanted.identity, wanted.host, wanted.principals, first, last, serial, options)
        certificate: SSHOpenSSHCertificate = certify.certify(authority, key, request)
        out = keyfile.beside(path, "-cert.pub")
        keyfile.save_certificate(out, certificate)
        if not wanted.quiet:
            print(certify.signed_line(str(out), certificate), file=sys.stderr)
    return 0


def print_usage(wanted: Arguments) -> int:
    """Print what can be asked for."""
    print(USAGE, end="")
    return 0


ACTIONS: Mapping[str, Callable[[Arguments], int]] = {
    "generate": generate,
    "passphrase": change_passphrase,
    "public": print_public,
    "fingerprint": print_fingerprint,
    "certificate": print_certificate,
    "certify": sign_certificates,
    "help": print_usage,
}


# --- names and questions ---


def _ssh_directory() -> Path:
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"  # not $HOME, as in OpenSSH


def _existing(wanted: Arguments) -> Path:
    """The file of -f or the first default key that is there, or what the person answers."""
    if wanted.file:
        return wanted.file
    defaults = [_ssh_directory() / name for name in DEFAULT_NAMES.values()]
    return _ask_path(next((path for path in defaults if path.exists()), defaults[0]), "the key is")


def _own_name() -> str:
    return f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"


def _one_line(comment: str) -> str:
    if "\n" in comment or "\r" in comment or "\0" in comment:
        raise UserError("a comment has one line")
    return comment


def _say(wanted: Arguments) -> Callable[[str], None]:
    return (lambda text: None) if wanted.quiet else print


def _ask_path(default: Path, what: str = "to save the key") -> Path:
    answer = _ask(f"Enter file in which {what} ({default}): ").strip()
    path = Path(answer) if answer else default
    keyfile.check_name(path)
    return path


def _ask(question: str) -> str:
    """An answer from standard input; "" at its end, as for someone who just presses Enter."""
    print(question, end="", flush=True)
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        print()
    return line.rstrip("\n")


def _overwrite(path: Path) -> bool:
    print(f"{path} already exists.")
    return _ask("Overwrite (y/n)? ")[:1] in ("y", "Y")


def _ask_new(path: Path) -> str:
    while True:
        passphrase = ask_secret(f'Enter passphrase for "{path}" (empty for no passphrase): ')
        if ask_secret("Enter same passphrase again: ") == passphrase:
            return passphrase
        print("Passphrases do not match.  Try again.")


def passphrase_source(given: str | None) -> keyfile.Passphrase:
    """Return what answers for an encrypted file: `given`, once, or the person at the terminal if it is None."""
    left = [given] if given is not None else []

    def answer(path: Path) -> str:
        if given is None:
            return ask_secret(f"Enter passphrase for {path}: ")
        if not left:
            raise UserError(f"the passphrase of -P is not that of {path}")
        return str(left.pop())

    return answer


def ask_secret(question: str) -> str:
    """Ask on the terminal, without showing the answer. Raises UserError if there is none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise UserError("there is no terminal to ask for a passphrase: give it with -N (new) or -P") from None
    try:
        return getpass(question)
    except EOFError:
        raise UserError("no passphrase was given") from None
