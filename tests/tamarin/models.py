"""Reads Tamarin models, as far as ours need it: preprocessor, rules with their let blocks, facts, lemmas, equations."""

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
    private: frozenset[str]  # functions that the attacker cannot apply
    equations: frozenset[str]
    restrictions: Mapping[str, str]  # formulas, white space normalised
    predicates: Mapping[str, str]
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


def _lemma(text: str) -> Lemma:
    found = re.fullmatch(r'lemma\s+(\w+)\s*(?:\[([^\]]*)\])?\s*:\s*(exists-trace|all-traces)?\s*"([^"]*)"', text)
    if found is None:
        raise ParseError(f"no lemma: {text[:60]!r}")
    attributes = tuple(a.strip() for a in (found[2] or "").split(",") if a.strip())
    return Lemma(found[1], attributes, found[3] == "exists-trace", found[4])


def preprocess(text: str, flags: frozenset[str] = frozenset(), folder: Path = MODELS) -> str:
    """Do #include and #ifdef, and take block comments out."""
    kept: list[str] = []
    stack: list[bool] = []
    for line in text.splitlines():
        word = line.split()
        if word[:1] == ["#ifdef"] and len(word) == 2:
            stack.append(word[1] in flags)
        elif word[:1] in (["#ifdef"], ["#define"]):
            raise ParseError(f"not understood: {line}")
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


# All words that begin a part of a theory, those of parts that our models have not included: `read` refuses these.
_PARTS = (
    r"(?=^[ \t]*(?:rule|lemma|restriction|functions|equations|predicates|builtins|theory|begin|end|axiom|macros|tactic"
    r"|heuristic|configuration|options|process|predicate|diffLemma|equivLemma|export)\b)"
)


def _functions(text: str) -> tuple[dict[str, int], frozenset[str]]:
    if not re.fullmatch(r"functions:\s*\w+/\d+(?:\s*\[private\])?(?:\s*,\s*\w+/\d+(?:\s*\[private\])?)*\s*", text):
        raise ParseError(f"no functions: {text[:60]!r}")
    found = re.findall(r"(\w+)/(\d+)(\s*\[private\])?", text)
    return {name: int(arity) for name, arity, _ in found}, frozenset(name for name, _, private in found if private)


def _equations(text: str) -> frozenset[str]:
    reader = _Reader(text)
    reader.take("equations")
    reader.take(":")
    found: list[str] = []
    while reader.peek():
        if found:
            reader.take(",")
        left = reader.term()
        reader.take("=")
        found.append(f"{left} = {reader.term()}")
    return frozenset(found)


def _predicates(text: str) -> dict[str, str]:
    if '"' in text:
        raise ParseError(f"no predicates: {text[:60]!r}")
    heads = list(re.finditer(r"(\w+)\([^()]*\)\s*<=>", text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {
        head[1]: " ".join(text[head.end() : end].split()).rstrip(",") for head, end in zip(heads, ends, strict=True)
    }


def read(text: str, flags: frozenset[str] = frozenset(), folder: Path = MODELS) -> Theory:
    """Parse a theory. Raises ParseError."""
    functions: dict[str, int] = {}
    private: frozenset[str] = frozenset()
    equations: frozenset[str] = frozenset()
    restrictions: dict[str, str] = {}
    predicates: dict[str, str] = {}
    rules: dict[str, Rule] = {}
    lemmas: dict[str, Lemma] = {}
    for part in map(str.strip, re.split(_PARTS, preprocess(text, flags, folder), flags=re.MULTILINE)):
        word = re.match(r"\w*", part)
        match word[0] if word else "":
            case "rule":
                rule = _rule(part)
                if rule.name in rules:
                    raise ParseError(f"two rules {rule.name}")
                rules[rule.name] = rule
            case "lemma":
                lemma = _lemma(part)
                if lemma.name in lemmas:
                    raise ParseError(f"two lemmas {lemma.name}")
                lemmas[lemma.name] = lemma
            case "restriction":
                found = re.fullmatch(r'restriction\s+(\w+)\s*:\s*"([^"]*)"', part)
                if found is None or found[1] in restrictions:
                    raise ParseError(f"no restriction, or two: {part[:60]!r}")
                restrictions[found[1]] = " ".join(found[2].split())
            case "functions":
                more, hidden = _functions(part)
                functions |= more
                private |= hidden
            case "equations":
                equations |= _equations(part)
            case "predicates":
                predicates |= _predicates(part)
            case _:
                # A tactic only says where the prover looks first.
                if not re.fullmatch(r"|theory\s+\w+|begin|end|builtins:[\w\s,-]+|tactic:\s*\w+\s*prio:(?s:.*)", part):
                    raise ParseError(f"unexpected {part[:60]!r}")
    return Theory(functions, private, equations, restrictions, predicates, rules, lemmas)
