"""``pqtun ssh-keygen``: make, show and change keys and certificates, with the options of ssh-keygen(1)."""

import getopt
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pqtun.cli import ending
from pqtun.protocol.errors import UserError
from pqtun.shell import ssh

USAGE: Final = """\
usage: pqtun ssh-keygen [-q] [-t mldsa44-ed25519 | ed25519] [-f file] [-C comment] [-N new_passphrase] [-a rounds]
       pqtun ssh-keygen -p [-f file] [-P old_passphrase] [-N new_passphrase] [-a rounds]
       pqtun ssh-keygen -y [-f file] [-P passphrase]
       pqtun ssh-keygen -l [-E md5 | sha256] [-f file]
       pqtun ssh-keygen -s ca_key -I identity [-h] [-n principals] [-O option] [-V validity] [-z serial] [-P passphrase]
                        file ...
       pqtun ssh-keygen -L [-f file]
"""

_WRONG_USAGE: Final = 2
_TYPES: Final = {
    "mldsa44-ed25519": "ssh-mldsa44-ed25519",
    "ssh-mldsa44-ed25519": "ssh-mldsa44-ed25519",
    "ed25519": "ssh-ed25519",
    "ssh-ed25519": "ssh-ed25519",
}
_HASHES: Final = ("md5", "sha1", "sha256", "sha384", "sha512")
_MAX_ROUNDS: Final = 100_000


@dataclass(slots=True)
class Arguments:
    """What the command line says. Texts as given; None where nothing was."""

    action: str = "generate"
    key_type: str = "ssh-mldsa44-ed25519"
    file: Path | None = None
    comment: str | None = None
    new_passphrase: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    rounds: int | None = None
    hash_name: str = "sha256"
    quiet: bool = False
    authority: Path | None = None
    identity: str | None = None
    principals: tuple[str, ...] = ()
    validity: str | None = None
    serial: str = "0"
    host: bool = False
    options: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def parse(arguments: Sequence[str]) -> Arguments:
    """Read the command line. Raises UserError."""
    try:
        pairs, files = getopt.gnu_getopt(list(arguments), "t:f:C:N:P:plyE:qa:b:s:I:n:V:z:hO:L", ["help"])
    except getopt.GetoptError as error:
        raise UserError(f"{error.msg}\n{USAGE}") from None
    found = Arguments(files=[Path(file) for file in files])
    actions = {
        "-p": "passphrase",
        "-l": "fingerprint",
        "-y": "public",
        "-L": "certificate",
        "-s": "certify",
        "--help": "help",
    }
    asked = {actions[flag] for flag, _ in pairs if flag in actions}
    if len(asked) > 1:
        raise UserError("only one of -p, -l, -y, -L and -s can be done at once")
    found.action = asked.pop() if asked else "generate"
    for flag, value in pairs:
        _take(found, flag, value)
    if found.files and found.action != "certify":
        raise UserError(f"too many arguments: {found.files[0]} (a file is named with -f)")
    return found


def _take(found: Arguments, flag: str, value: str) -> None:
    match flag:
        case "-t":
            if value not in _TYPES:
                raise UserError(f"key type {value!r}: pqtun makes mldsa44-ed25519 and ed25519")
            found.key_type = _TYPES[value]
        case "-f":
            found.file = Path(value)
        case "-C":
            found.comment = value
        case "-N":
            found.new_passphrase = value
        case "-P":
            found.passphrase = value
        case "-a":
            found.rounds = _number("-a", value, 1, _MAX_ROUNDS)
        case "-E":
            if value not in _HASHES:
                raise UserError(f"hash {value!r}: there are {', '.join(_HASHES)}")
            found.hash_name = value
        case "-q":
            found.quiet = True
        case "-s":
            found.authority = Path(value)
        case "-I":
            found.identity = value
        case "-n":
            found.principals = tuple(name.strip() for name in value.split(",") if name.strip())
        case "-V":
            found.validity = value
        case "-z":
            found.serial = value
        case "-h":
            found.host = True
        case "-O":
            found.options.append(value)


def _number(flag: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(high)) or not low <= int(text) <= high:
        raise UserError(f"{flag} {text}: a number from {low} to {high} is wanted")
    return int(text)


def serials(text: str, count: int) -> list[int]:
    """Return ``count`` serial numbers: N for all, or, of ``+N``, N and those after it. Raises UserError."""
    first = _number("-z", text.removeprefix("+"), 0, (1 << 64) - 1)
    return [first + place * text.startswith("+") for place in range(count)]


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code: 0 done, 1 failed or not wanted, 2 wrong usage."""
    try:
        wanted = parse(arguments)
    except UserError as error:
        print(f"pqtun ssh-keygen: {error}", file=sys.stderr)
        return _WRONG_USAGE
    ssh.prepare()
    from pqtun.cli import ssh_keys  # needs asyncssh

    return ending.run("pqtun ssh-keygen", lambda: ssh_keys.ACTIONS[wanted.action](wanted))
