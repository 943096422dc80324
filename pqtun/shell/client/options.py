"""The command line of ``pqtun ssh``: the flags of ssh(1), read as getopt(3) does, and our own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client.forwardspec import parse_endpoint

USAGE: Final = """\
usage: pqtun ssh [-46AaCfGgMNnqsTtVvXxY] [--direct] [--persistent]
                 [-B bind_interface] [-b bind_address] [-c cipher_spec]
                 [-D [bind_address:]port] [-E log_file] [-e escape_char]
                 [-F configfile] [-i identity_file] [-J destination]
                 [-L address] [-l login_name] [-m mac_spec] [-O ctl_cmd]
                 [-o option] [-p port] [-R address] [-S ctl_path]
                 [-W host:port] destination [command [argument ...]]

The flags are those of ssh(1). Hosts must be reached through a tunnel, except:
  --direct      go to a host without a tunnel; ~/.ssh/known_hosts tells its key
  --persistent  connect again whenever the connection is lost
  --run=DIR     directory where the pqtun client's whois socket is"""

CONTROL_COMMANDS: Final = ("check", "forward", "cancel", "exit", "stop", "proxy")
# Flags that are a setting of ssh_config(5) each: keyword and value. The latest of them holds, whatever -o said before.
_SWITCHES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "4": (("addressfamily", "inet"),),
    "6": (("addressfamily", "inet6"),),
    "A": (("forwardagent", "yes"),),
    "a": (("forwardagent", "no"),),
    "C": (("compression", "yes"),),
    "f": (("forkafterauthentication", "yes"), ("stdinnull", "yes")),
    "g": (("gatewayports", "yes"),),
    "N": (("sessiontype", "none"), ("requesttty", "no")),
    "n": (("stdinnull", "yes"),),
    "q": (("loglevel", "QUIET"),),
    "s": (("sessiontype", "subsystem"),),
    "T": (("requesttty", "no"),),
    "X": (("forwardx11", "yes"),),
    "x": (("forwardx11", "no"),),
    "Y": (("forwardx11", "yes"), ("forwardx11trusted", "yes")),
}
# Flags with an argument: the keyword, and whether the latest holds (else the first).
_ARGUMENTS: Final = {
    "B": ("bindinterface", True),
    "b": ("bindaddress", True),
    "c": ("ciphers", True),
    "e": ("escapechar", True),
    "J": ("proxyjump", False),
    "l": ("user", False),
    "m": ("macs", True),
    "p": ("port", False),
    "S": ("controlpath", True),
}
# Flags with an argument that may be given again and add up.
_COLLECTED: Final = {"D": "dynamicforward", "i": "identityfile", "L": "localforward", "R": "remoteforward"}
_OTHER_ARGUMENTS: Final = "EFOoW"
_IGNORED: Final = "2k"  # what ssh takes and has no effect here


class UsageError(UserError):
    """The command line cannot be understood; the text is one line."""


@dataclass
class Options:
    """A command line.

    ``settings``: keywords of ssh_config(5) in lower case, and their values as they would stand in the file; what comes
    first holds, before all files. ``host`` is the destination as given, without user and port.
    """

    host: str = ""
    command: tuple[str, ...] = ()
    settings: list[tuple[str, str]] = field(default_factory=list)
    config_file: str | None = None  # -F; "none": no file
    log_file: str | None = None  # -E
    control_command: str | None = None  # -O
    stdio_forward: tuple[str, int] | None = None  # -W
    direct: bool = False  # --direct: no tunnel is asked for
    persistent: bool = False  # --persistent
    run: str | None = None  # --run: where the pqtun client's whois socket is
    version: bool = False  # -V
    print_config: bool = False  # -G
    help: bool = False  # -h, --help

    def assign(self, keyword: str, value: str) -> None:
        """Set a keyword, whatever was said before."""
        self.settings = [setting for setting in self.settings if setting[0] != keyword]
        self.settings.append((keyword, value))

    def setting(self, keyword: str) -> str | None:
        """Return what the command line says of a keyword (lower case), None if nothing."""
        return next((value for name, value in self.settings if name == keyword), None)


def parse(arguments: Sequence[str]) -> Options:
    """Read the arguments of ``pqtun ssh`` (without those two words). Raises UsageError.

    As in ssh(1), flags may follow the destination too, up to the first word of the command or ``--``.
    """
    options = Options()
    rest, terminated = _flags(options, list(arguments))
    if rest:
        _set_destination(options, rest.pop(0))
        if not terminated:
            rest, _ = _flags(options, rest)
    options.command = tuple(rest)
    if not (options.host or options.version or options.help):
        raise UsageError("name a host: pqtun ssh [options] [user@]host [command]")
    return options


def split_destination(destination: str) -> tuple[str | None, str, str | None]:
    """Return user, host and port of ``[user@]host`` or ``ssh://[user@]host[:port]``. Raises UsageError."""
    if destination.startswith("ssh://"):
        user, host, port = split_hop(destination[6:].rstrip("/"))
    else:
        before, at, host = destination.rpartition("@")
        user, port = before if at else None, None
    if not host or user == "" or host.startswith("-") or (user or "").startswith("-"):
        raise UsageError(f"{destination!r} is no destination: expected [user@]host")
    return user, host, port


def split_hop(hop: str) -> tuple[str | None, str, str | None]:
    """Return user, host and port of ``[user@]host[:port]``; the host may be an IPv6 address in brackets."""
    before, at, rest = hop.rpartition("@")
    user = before if at else None
    if rest.startswith("["):
        host, closed, port = rest[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            raise UsageError(f"{hop!r}: expected [user@]host[:port]")
        return user, host, port[1:] or None
    if rest.count(":") > 1:
        return user, rest, None  # an IPv6 address as it is
    host, _, port = rest.partition(":")
    return user, host, port or None


def _set_destination(options: Options, destination: str) -> None:
    user, options.host, port = split_destination(destination)
    if user is not None:
        options.settings.append(("user", user))
    if port is not None:
        options.settings.append(("port", port))


def _flags(options: Options, words: list[str]) -> tuple[list[str], bool]:
    """Take the flags at the front; return the other words, and whether ``--`` ended the flags."""
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            return words, True
        if word.startswith("--"):
            _long(options, word, words)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _ARGUMENTS or letter in _COLLECTED or letter in _OTHER_ARGUMENTS:
                if not letters and not words:
                    raise UsageError(f"option requires an argument -- {letter}")
                _argument(options, letter, letters or words.pop(0))
                break
            _switch(options, letter)
    return words, False


def _long(options: Options, word: str, words: list[str]) -> None:
    name, equals, value = word.partition("=")
    if name == "--run":
        if not equals and not words:
            raise UsageError("option requires an argument -- run")
        options.run = value if equals else words.pop(0)
    elif word in ("--direct", "--persistent", "--help"):
        setattr(options, word[2:], True)
    else:
        raise UsageError(f"unknown option {word}")


def _switch(options: Options, letter: str) -> None:
    if letter in _SWITCHES:
        for keyword, value in _SWITCHES[letter]:
            options.assign(keyword, value)
    elif letter == "t":
        options.assign("requesttty", "force" if options.setting("requesttty") in ("yes", "force") else "yes")
    elif letter == "M":
        options.assign("controlmaster", "ask" if options.setting("controlmaster") in ("yes", "ask") else "yes")
    elif letter == "v":
        level = (options.setting("loglevel") or "").upper()
        number = int(level[5:]) if level in ("DEBUG1", "DEBUG2", "DEBUG3") else 0
        options.assign("loglevel", f"DEBUG{min(number + 1, 3)}")
    elif letter == "V":
        options.version = True
    elif letter == "G":
        options.print_config = True
    elif letter == "h":
        options.help = True
    elif letter not in _IGNORED:
        raise UsageError(f"unknown option -- {letter}")


def _argument(options: Options, letter: str, value: str) -> None:
    if letter in _COLLECTED:
        options.settings.append((_COLLECTED[letter], value))
    elif letter in _ARGUMENTS:
        keyword, latest = _ARGUMENTS[letter]
        if latest:
            options.assign(keyword, value)
        else:
            options.settings.append((keyword, value))
    elif letter == "E":
        options.log_file = value
    elif letter == "F":
        options.config_file = value
    elif letter == "O":
        if value not in CONTROL_COMMANDS:
            raise UsageError(f"-O {value}: expected one of {', '.join(CONTROL_COMMANDS)}")
        options.control_command = value
    elif letter == "W":
        if options.stdio_forward is not None:
            raise UsageError("stdio forward already specified")
        try:
            options.stdio_forward = parse_endpoint(value)
        except ValueError as error:
            raise UsageError(str(error)) from None
        options.assign("sessiontype", "none")
        options.assign("requesttty", "no")
    else:
        options.settings.append(split_setting(value))


def split_setting(text: str) -> tuple[str, str]:
    """Return keyword (lower case) and value of a line of ssh_config(5). Raises UsageError."""
    stripped = text.strip()
    length = next((index for index, letter in enumerate(stripped) if letter in ' \t="'), len(stripped))
    keyword, value = stripped[:length], stripped[length:].lstrip()
    if value.startswith("="):
        value = value[1:].lstrip()
    if not keyword or not value:
        raise UsageError(f"command-line: missing argument in {text!r}")
    return keyword.lower(), value
