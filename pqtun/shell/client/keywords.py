"""The keywords of ssh_config(5): what their values may be, and how often they count."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pqtun.shell.client.forwardspec import parse_forward, parse_permitted

Converter = Callable[[Sequence[str]], Any]

_TIME: Final = re.compile(r"(\d+)([smhdw]?)", re.IGNORECASE)
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LOG_LEVELS: Final = ("QUIET", "FATAL", "ERROR", "INFO", "VERBOSE", "DEBUG", "DEBUG1", "DEBUG2", "DEBUG3")


@dataclass(frozen=True)
class Keyword:
    """How a keyword is read.

    ``convert`` gets the words of the line and raises ValueError; ``adds``: every line adds to the list, else the first
    one holds; ``raw``: the rest of the line is one word as it stands.
    """

    convert: Converter
    adds: bool = False
    raw: bool = False


def _one(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise ValueError("keyword has extra arguments at end of line")
    return words[0]


def _string(words: Sequence[str]) -> str:
    return _one(words)


def _strings(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(words)


def _flag(words: Sequence[str]) -> bool:
    value = _one(words).lower()
    if value not in ("yes", "true", "no", "false"):
        raise ValueError("Bad yes/no argument")
    return value in ("yes", "true")


def choice(**values: str) -> Converter:
    """Return what reads one of some words; ``values``: each word, and what it stands for."""

    def convert(words: Sequence[str]) -> str:
        try:
            return values[_one(words).lower()]
        except KeyError:
            raise ValueError(f'unsupported option "{words[0]}"') from None

    return convert


def _flag_or(*others: str) -> Converter:
    """Yes, no, or one of some words."""
    return choice(yes="yes", true="yes", no="no", false="no", **{other: other for other in others})


def _integer(words: Sequence[str]) -> int:
    word = _one(words)
    if not re.fullmatch(r"-?\d{1,9}", word):
        raise ValueError(f"integer value {word} invalid" if word else "missing integer value")
    return int(word)


def _port(words: Sequence[str]) -> int:
    word = _one(words)
    if not re.fullmatch(r"\d{1,5}", word) or not 0 < int(word) <= 65535:
        raise ValueError(f"Bad number '{word}'")
    return int(word)


def seconds(text: str) -> int:
    """Return the seconds of a time as sshd_config(5) writes it: 600, 10m, 1h30m. Raises ValueError."""
    parts = _TIME.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 20:
        raise ValueError("invalid time value.")
    return sum(int(number) * _UNITS[unit.lower()] for number, unit in parts)


def _time(words: Sequence[str]) -> int | None:
    word = _one(words)
    return None if word.lower() == "none" else seconds(word)


def _persist(words: Sequence[str]) -> int | None:
    """ControlPersist: seconds until a master without sessions ends; 0: it stays; None: it does not."""
    word = _one(words).lower()
    return {"no": None, "false": None, "yes": 0, "true": 0}[word] if word.isalpha() else seconds(word)


def _level(words: Sequence[str]) -> str:
    word = _one(words).upper()
    if word not in LOG_LEVELS:
        raise ValueError(f"unsupported log level '{words[0]}'")
    return word


def _escape(words: Sequence[str]) -> bytes | None:
    word = _one(words)
    if word.lower() == "none":
        return None
    if len(word) == 2 and word[0] == "^" and 64 <= ord(word[1]) < 128:
        return bytes([ord(word[1]) & 31])
    if len(word) != 1 or not word.isascii():
        raise ValueError("Bad escape character.")
    return word.encode()


def _two_forms(kind: Any) -> Converter:
    """LocalForward 8080 host:80, or as -L has it in one word."""

    def convert(words: Sequence[str]) -> Any:
        if len(words) > 2:
            raise ValueError("Bad forwarding specification")
        return parse_forward(kind, ":".join(words))

    return convert


def _permitted(words: Sequence[str]) -> tuple[str, ...]:
    parse_permitted(words)
    return tuple(words)


def _environment(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = tuple(word.partition("=")[::2] for word in words)
    if not all("=" in word for word in words):
        raise ValueError("Invalid environment.")
    return pairs


def _known_files(words: Sequence[str]) -> tuple[str, ...]:
    return () if len(words) == 1 and words[0].lower() == "none" else tuple(words)


def _ignored(words: Sequence[str]) -> None:
    return None


_STRICT: Final = choice(
    **{"yes": "yes", "true": "yes", "no": "no", "false": "no", "off": "no", "ask": "ask", "accept-new": "accept-new"}
)
KEYWORDS: Final[Mapping[str, Keyword]] = {
    "addkeystoagent": Keyword(_ignored),
    "addressfamily": Keyword(choice(any="any", inet="inet", inet6="inet6")),
    "batchmode": Keyword(_flag),
    "bindaddress": Keyword(_string),
    "bindinterface": Keyword(_string),
    "certificatefile": Keyword(_string, adds=True),
    "ciphers": Keyword(_string),
    "clearallforwardings": Keyword(_flag),
    "compression": Keyword(_flag),
    "connectionattempts": Keyword(_integer),
    "connecttimeout": Keyword(_time),
    "controlmaster": Keyword(_flag_or("ask", "auto", "autoask")),
    "controlpath": Keyword(_string),
    "controlpersist": Keyword(_persist),
    "dynamicforward": Keyword(_two_forms("dynamic"), adds=True),
    "enableescapecommandline": Keyword(_flag),
    "escapechar": Keyword(_escape),
    "exitonforwardfailure": Keyword(_flag),
    "forkafterauthentication": Keyword(_flag),
    "forwardagent": Keyword(_string),
    "forwardx11": Keyword(_flag),
    "forwardx11timeout": Keyword(_time),
    "forwardx11trusted": Keyword(_flag),
    "gatewayports": Keyword(_flag),
    "globalknownhostsfile": Keyword(_known_files),
    "hashknownhosts": Keyword(_flag),
    "hostkeyalgorithms": Keyword(_string),
    "hostkeyalias": Keyword(_string),
    "hostname": Keyword(_string),
    "identitiesonly": Keyword(_flag),
    "identityagent": Keyword(_string),
    "identityfile": Keyword(_string, adds=True),
    "ignoreunknown": Keyword(_string),
    "kexalgorithms": Keyword(_string),
    "localcommand": Keyword(_string, raw=True),
    "localforward": Keyword(_two_forms("local"), adds=True),
    "loglevel": Keyword(_level),
    "macs": Keyword(_string),
    "nohostauthenticationforlocalhost": Keyword(_flag),
    "permitlocalcommand": Keyword(_flag),
    "permitremoteopen": Keyword(_permitted),
    "port": Keyword(_port),
    "proxycommand": Keyword(_string, raw=True),
    "proxyjump": Keyword(_string),
    "pubkeyacceptedalgorithms": Keyword(_string),
    "pubkeyauthentication": Keyword(_flag_or("unbound", "host-bound")),
    "remotecommand": Keyword(_string, raw=True),
    "remoteforward": Keyword(_two_forms("remote"), adds=True),
    "requesttty": Keyword(_flag_or("force", "auto")),
    "sendenv": Keyword(_strings, adds=True),
    "serveralivecountmax": Keyword(_integer),
    "serveraliveinterval": Keyword(_time),
    "sessiontype": Keyword(choice(none="none", subsystem="subsystem", default="default")),
    "setenv": Keyword(_environment),
    "stdinnull": Keyword(_flag),
    "streamlocalbindmask": Keyword(_string),
    "streamlocalbindunlink": Keyword(_flag),
    "stricthostkeychecking": Keyword(_STRICT),
    "tag": Keyword(_string),
    "tcpkeepalive": Keyword(_flag),
    "user": Keyword(_string),
    "userknownhostsfile": Keyword(_known_files),
    "visualhostkey": Keyword(_flag),
    "xauthlocation": Keyword(_string),
}
ALIASES: Final = {
    "dsaauthentication": "pubkeyauthentication",
    "identityfile2": "identityfile",
    "keepalive": "tcpkeepalive",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "userknownhostsfile2": "userknownhostsfile",
    "globalknownhostsfile2": "globalknownhostsfile",
}
# What OpenSSH knows and has no meaning here: passwords, GSSAPI, PKCS#11, names that DNS makes, and the like.
_OTHERS: Final = """
    afstokenpassing canonicaldomains canonicalizefallbacklocal canonicalizehostname canonicalizemaxdots
    canonicalizepermittedcnames casignaturealgorithms challengeresponseauthentication channeltimeout checkhostip
    cipher compressionlevel controlmasterpath enablesshkeysign fallbacktorsh fingerprinthash gssapiauthentication
    gssapiclientidentity gssapidelegatecredentials gssapikexalgorithms gssapikeyexchange gssapirenewalforcesrekey
    gssapiserveridentity gssapitrustdns hostbasedacceptedalgorithms hostbasedauthentication hostbasedkeytypes ipqos
    kbdinteractiveauthentication kbdinteractivedevices kerberosauthentication kerberostgtpassing knownhostscommand
    logverbose numberofpasswordprompts obscurekeystroketiming passwordauthentication pkcs11provider
    preferredauthentications protocol protocolkeepalives proxyusefdpass refuseconnection rekeylimit requiredrsasize
    revokedhostkeys rhostsauthentication rhostsrsaauthentication rsaauthentication securitykeyprovider setuptimeout
    skeyauthentication smartcarddevice syslogfacility tisauthentication tunnel tunneldevice updatehostkeys
    useblacklistedkeys useprivilegedport useroaming usersh verifyhostkeydns versionaddendum warnweakcrypto
"""
WITHOUT_EFFECT: Final = frozenset(_OTHERS.split())
