"""What the client does about a server that announces a key and cannot be reached through a tunnel."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

BLOCK: Final = "block"  # a server that announces a key is never spoken to in clear
DIRECT: Final = "direct"  # for some minutes, lookups get its real address
ACTIONS: Final = (BLOCK, DIRECT)

# Of DNS names in ASCII, with fnmatch's signs: * any letters and dots, ? one of them, [abc] and [!abc] one of some.
_PATTERN: Final = re.compile(r"[A-Za-z0-9_.*?\[\]!-]{1,253}")


class RuleError(ValueError):
    """A rule is wrong. ``pattern`` is that of the rule, the text one line for people."""

    def __init__(self, pattern: str, text: str) -> None:
        super().__init__(text)
        self.pattern = pattern


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do about names that match a pattern, which is in lower case without final dot."""

    pattern: str
    action: str


Rules = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """The rules in their order, and for how many minutes a server that failed is reached directly."""

    patterns: Rules = ()
    minutes: int = 10

    def allows_direct(self, names: Iterable[str]) -> bool:
        """Whether a server with these names (the pq1 name, the one that was asked for) may be reached directly.

        The first rule whose pattern matches one of the names counts; without one the answer is no.
        """
        known = [name.lower().rstrip(".") for name in names]
        for rule in self.patterns:
            if any(fnmatchcase(name, rule.pattern) for name in known):
                return rule.action == DIRECT
        return False


def parse_rules(value: object) -> Rules:
    """Read rules: a table of patterns and actions, or a text such as ``*.example.net=direct,*=block``.

    Raises ValueError, RuleError where it is about one rule.
    """
    if isinstance(value, Mapping):
        return tuple(_rule(pattern, action) for pattern, action in value.items())
    if not isinstance(value, str) or not value.strip():
        raise ValueError("write name patterns with what to do, such as '*.example.net=direct'")
    parts = (part.partition("=") for part in value.split(","))
    return tuple(_rule(pattern.strip(), action.strip()) for pattern, _, action in parts)


def _rule(pattern: str, action: object) -> Rule:
    if isinstance(action, Mapping):
        raise RuleError(pattern, "write the pattern in quotes")
    if not _PATTERN.fullmatch(pattern):
        raise RuleError(
            pattern, "a name pattern has letters, digits, '-', '_', '.', and *, ?, [ and ] that match others"
        )
    if action not in ACTIONS:
        raise RuleError(pattern, f"choose one of {', '.join(ACTIONS)}")
    return Rule(pattern.lower().rstrip("."), str(action))
