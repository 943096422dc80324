"""``pqtun ssh-keyconvert``: a host's Ed25519 key to and from TinySSH's key directory."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pqtun.cli import ending
from pqtun.shell import ssh


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="pqtun ssh-keyconvert",
        description="Convert ssh-ed25519 keys between OpenSSH's format and TinySSH's key directory.",
    )
    ways = top.add_subparsers(dest="way", required=True, metavar="WAY")
    to = ways.add_parser("to-tinyssh", help="make a key directory of a private key file")
    to.add_argument("file", metavar="FILE", type=Path, help="private key, ssh-ed25519")
    to.add_argument("directory", metavar="DIRECTORY", type=Path, help="directory to make")
    to.add_argument("-P", metavar="PASSPHRASE", dest="passphrase", help="of FILE; without it, it is asked for")
    back = ways.add_parser("from-tinyssh", help="make a private key file, and FILE.pub, of a key directory")
    back.add_argument("directory", metavar="DIRECTORY", type=Path, help="as tinysshd-makekey made it")
    back.add_argument("file", metavar="FILE", type=Path, help="private key file to make")
    back.add_argument("-C", metavar="COMMENT", dest="comment", default="", help="of the key")
    back.add_argument("-N", metavar="PASSPHRASE", dest="passphrase", default="", help="of FILE (none)")
    return top


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: 0 done, 1 failed (one line on stderr says why). 2 is wrong usage."""
    wanted = parser().parse_args(list(arguments))
    ssh.prepare()
    convert = _to_tinyssh if wanted.way == "to-tinyssh" else _from_tinyssh
    return ending.run("pqtun ssh-keyconvert", lambda: convert(wanted))


def _to_tinyssh(wanted: argparse.Namespace) -> int:
    from pqtun.cli.ssh_keys import passphrase_source  # these need asyncssh
    from pqtun.shell import keyfile, tinyssh

    key = keyfile.load_private(wanted.file, passphrase_source(wanted.passphrase))
    tinyssh.save(wanted.directory, key)
    print(f"{wanted.directory}: {keyfile.fingerprint(key)}")
    return 0


def _from_tinyssh(wanted: argparse.Namespace) -> int:
    from pqtun.shell import keyfile, tinyssh  # these need asyncssh

    key = tinyssh.load(wanted.directory)
    key.set_comment(wanted.comment)
    keyfile.save_pair(wanted.file, key, wanted.passphrase)
    print(f"{wanted.file}: {keyfile.fingerprint(key)}")
    return 0
