"""Reads Tamarin models, as far as ours need it: preprocessor, rules with their let blocks, facts, functions, lemmas."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).parents[2] / "tamarin"


@dataclass(frozen=True)
class Term:
    """A variable or constant (no arguments), or a function of terms. ``<a, b>`` is the function "<>", a^b is "^"."""

    name: str
    arguments: tuple["Term", ...] = ()

    def __str__(self) -> str:
        if self.name == "<>":
            return f"<{', '.join(map(str, self.arguments))}>"
        if self.name in ("^", "*", "%+"):
            return "(" + self.name.join(map(str, self.arguments)) + ")"
        return self.name + (f"({', '.join(map(str, self.arguments))})" if self.arguments else "")


@dataclass(frozen=True)
class Rule:
    """One rule. The terms of facts are as they are written; ``let`` has the definitions, in their order."""

    name: str
    let: tuple[tuple[str, Term, str], ...]  # name, term, the comment behind it
    premises: tuple[Term, ...]
    actions: tuple[Term, ...]
    conclusions: tuple[Term, ...]
    comments: tuple[str, ...]

    def expand(self, term: Term) -> Term:
        """Put the definitions in the place of their names."""
        return _substitute(term, {name: value for name, value, _ in self.let})


@dataclass(frozen=True)
class Lemma:
    name: str
    attributes: tuple[str, ...]
    exists: bool
    formula: str


@dataclass(frozen=True)
class Theory:
    functions: Mapping[str, int]
    rules: Mapping[str, Rule]
    lemmas: Mapping[str, Lemma]


class ParseError(Exception):
    pass


def _substitute(term: Term, values: Mapping[str, Term]) -> Term:
    if not term.arguments:
        return _substitute(values[term.name], values) if term.name in values else term
    return Term(term.name, tuple(_substitute(a, values) for a in term.arguments))


_TOKEN = re.compile(
    r"\s+|(?P<string>'[^']*')|(?P<name>[~$%#!]?[A-Za-z_]\w*|%\d+)|(?P<mark>--\[|\]->|-->|\[[+-]\]|%\+|[<>(),=:\[\]^*])|(?P<comment>//[^\n]*)"
)


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ParseError(f"unexpected {text[at : at + 20]!r}")
            if found.lastgroup:
                self.tokens.append((found.lastgroup, found[0]))
            at = found.end()
        self.at = 0

    def comments(self) -> list[str]:
        """Take the comments that come next."""
        found = []
        while self.at < len(self.tokens) and self.tokens[self.at][0] == "comment":
            found.append(self.tokens[self.at][1][2:].strip())
            self.at += 1
        return found

    def peek(self) -> str:
        at = self.at
        while at < len(self.tokens) and self.tokens[at][0] == "comment":
            at += 1
        return self.tokens[at][1] if at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        self.comments()
        if self.at == len(self.tokens):
            raise ParseError("unexpected end")
        token = self.tokens[self.at][1]
        if expected and token != expected:
            raise ParseError(f"{token!r} where {expected!r} should be")
        self.at += 1
        return token

    def term(self) -> Term:
        left = self.atom()
        while self.peek() in ("^", "*", "%+"):
            operator = self.take()
            left = Term(operator, (left, self.atom()))
        return left

    def atom(self) -> Term:
        token = self.take()
        if token == "<":
            return Term("<>", self.list_until(">"))
        if token == "(":
            inside = self.term()
            self.take(")")
            return inside
        if not re.match(r"['~$%#!A-Za-z_]", token):
            raise ParseError(f"{token!r} where a term should be")
        if self.peek() == "(":
            self.take("(")
            found = Term(token, self.list_until(")"))
            if self.peek() in ("[+]", "[-]"):  # what the prover is to solve first, or last
                self.take()
            return found
        return Term(token)

    def list_until(self, end: str) -> tuple[Term, ...]:
        found: list[Term] = []
        while self.peek() != end:
            if found:
                self.take(",")
            found.append(self.term())
        self.take(end)
        return tuple(found)


def _rule(text: str) -> Rule:
    reader = _Reader(text)
    reader.take("rule")
    name = reader.take()
    if reader.peek() == "[":
        reader.take("[")
        reader.list_until("]")
    reader.take(":")
    let: list[tuple[str, Term, str]] = []
    if reader.peek() == "let":
        reader.take("let")
        while reader.peek() != "in":
            defined = reader.take()
            reader.take("=")
            value = reader.term()
            let.append((defined, value, " ".join(reader.comments())))
        reader.take("in")
    reader.take("[")
    premises = reader.list_until("]")
    actions: tuple[Term, ...] = ()
    if reader.take() == "--[":
        actions = reader.list_until("]->")
    reader.take("[")
    conclusions = reader.list_until("]")
    rest = reader.comments()
    if reader.at != len(reader.tokens):
        raise ParseError(f"more behind rule {name}: {reader.peek()!r}")
    comments = [
        *(comment for _, _, comment in let if comment),
        *(t[2:].strip() for k, t in reader.tokens if k == "comment"),
        *rest,
    ]
    return Rule(name, tuple(let), premises, actions, conclusions, tuple(dict.fromkeys(comments)))


def preprocess(text: str, flags: frozenset[str] = frozenset(), folder: Path = MODELS) -> str:
    """Do #include and #ifdef, and take block comments out."""
    kept: list[str] = []
    stack: list[bool] = []
    for line in text.splitlines():
        word = line.split()
        if word[:1] == ["#ifdef"]:
            stack.append(word[1] in flags)
        elif word[:1] == ["#else"]:
            stack[-1] = not stack[-1]
        elif word[:1] == ["#endif"]:
            stack.pop()
        elif all(stack):
            if word[:1] == ["#include"]:
                line = preprocess((folder / word[1].strip('"')).read_text(), flags, folder)
            kept.append(line)
    if stack:
        raise ParseError("#ifdef without #endif")
    return re.sub(r"/\*.*?\*/", "", "\n".join(kept), flags=re.DOTALL)


_PARTS = r"(?=^(?:rule|lemma|restriction|functions|equations|predicates|builtins|theory|begin|end)\b)"


def read(text: str, flags: frozenset[str] = frozenset(), folder: Path = MODELS) -> Theory:
    """Parse a theory. Raises ParseError."""
    functions: dict[str, int] = {}
    rules: dict[str, Rule] = {}
    lemmas: dict[str, Lemma] = {}
    for part in re.split(_PARTS, preprocess(text, flags, folder), flags=re.MULTILINE):
        word = part.split(maxsplit=1)[0] if part.strip() else ""
        if word == "rule":
            rule = _rule(part)
            if rule.name in rules:
                raise ParseError(f"two rules {rule.name}")
            rules[rule.name] = rule
        elif word.startswith("lemma"):
            found = re.match(
                r'lemma\s+(\w+)\s*(?:\[([^\]]*)\])?\s*:\s*(exists-trace|all-traces)?\s*"([^"]*)"\s*$', part
            )
            if found is None:
                raise ParseError(f"no lemma: {part[:60]!r}")
            attributes = tuple(a.strip() for a in (found[2] or "").split(",") if a.strip())
            if found[1] in lemmas:
                raise ParseError(f"two lemmas {found[1]}")
            lemmas[found[1]] = Lemma(found[1], attributes, found[3] == "exists-trace", found[4])
        elif word.startswith("functions"):
            for name, arity in re.findall(r"(\w+)/(\d+)", part):
                functions[name] = int(arity)
    return Theory(functions, rules, lemmas)
