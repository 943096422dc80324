"""The steps of the handshake as terms, from three places: the models' rules, the code, and doc/protocol.md."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.tamarin.models import Rule, Term

Steps = dict[str, set[str]]  # label: the terms that the step makes, as text


def _t(name: str, *arguments: Term) -> Term:
    return Term(name, arguments)


def _dh(point: Term, secret: Term) -> Term:
    """A power, written in one order: (g^a)^b and (g^b)^a are the same."""
    return _t("^", point, secret)


def of_rule(rule: Rule) -> Steps:
    """What a rule's let block makes at each label."""
    found: Steps = {}
    for name, _, label in rule.let:
        if label:
            found.setdefault(label, set()).add(str(rule.expand(Term(name))))
    return found


def message_of(rule: Rule) -> list[str]:
    """The fields of the handshake datagram that a rule sends or takes."""
    for fact in (*rule.conclusions, *rule.premises):
        if fact.name in ("In", "Out") and str(fact.arguments[0]).startswith("<'01 00'"):
            return [str(rule.expand(part)) for part in fact.arguments[0].arguments]
    return []


@dataclass
class Machine:
    """Runs functions of handshake.py on terms instead of bytes. Knows only what they do now; all else is an error."""

    source: str
    names: dict[str, Term]
    steps: Steps = field(default_factory=dict)
    label: str = ""
    message: list[str] = field(default_factory=list)
    session: dict[str, str] = field(default_factory=dict)

    def run(self, function: str) -> None:
        tree = ast.parse(self.source)
        (node,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
        lines = self.source.splitlines()
        for statement in _flat(node.body):
            labels = re.findall(r"#\s*([IR]\d)\b", lines[statement.lineno - 1])
            if labels:
                self.label = labels[0]
            self.statement(statement)

    def made(self, *terms: Term) -> None:
        self.steps.setdefault(self.label, set()).update(str(t) for t in terms if t.arguments)

    def statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Tuple):
                names = [ast.unparse(e) for e in target.elts]
                values = list(self.values(node.value, len(names)))
            else:
                names, values = [ast.unparse(target)], [self.value(node.value)]
            for name, value in zip(names, values, strict=True):
                self.names[name] = value
                if name == "datagram":
                    self.message = [str(part) for part in value.arguments]
                elif not _opens(node.value):
                    self.made(value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            if called == "mix":
                chain, extra = node.value.args
                self.names[ast.unparse(chain)] = _t("kdf", self.value(chain), self.value(extra), Term("'1'"))
                self.made(self.names[ast.unparse(chain)])
            elif called != "erase":
                raise AssertionError(f"unknown call {called}")
        elif isinstance(node, ast.Return):
            if isinstance(node.value, ast.Tuple | ast.Call):
                for call in ast.walk(node.value):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "Session":
                        self.session = {k.arg or "": str(self.value(k.value)) for k in call.keywords}
        else:
            raise AssertionError(f"unknown statement {ast.unparse(node)}")

    def values(self, node: ast.expr, count: int) -> Iterator[Term]:
        if isinstance(node, ast.Tuple):
            yield from (self.value(e) for e in node.elts)
            return
        assert isinstance(node, ast.Call), ast.unparse(node)
        called = ast.unparse(node.func)
        if called == "kdf":
            number, key, extra = node.args
            assert isinstance(number, ast.Constant)
            assert number.value == count
            for i in range(count):
                yield _t("kdf", self.value(key), self.value(extra), Term(f"'{i + 1}'"))
        elif called in ("primitives.skem_enc", "primitives.ekem_enc"):
            kind = called[11:15]
            secret = Term("~k0" if kind == "skem" else "~k3")
            yield _t(f"{kind}_ct", self.value(node.args[0]), secret)
            yield secret
        else:
            raise AssertionError(f"unknown call {called}")

    def value(self, node: ast.expr) -> Term:
        text = ast.unparse(node)
        if text in self.names:
            return self.names[text]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self.value(node.left), self.value(node.right)
            return _t("<>", *(left.arguments if left.name == "<>" else (left,)), right)
        if not isinstance(node, ast.Call):
            raise AssertionError(f"unknown expression {text}")
        called = ast.unparse(node.func)
        arguments = node.args
        if called == "seal":
            key, ad, message = map(self.value, arguments)
            return _t("aead", key, Term("'zero'"), ad, message)
        if called == "open_sealed":
            sealed = ast.unparse(arguments[2])
            inside = self.names[{"message.sealed_x25519": "X", "message.sealed_sntrup": "c2"}[sealed]]
            self.names[sealed] = _t("aead", self.value(arguments[0]), Term("'zero'"), self.value(arguments[1]), inside)
            self.made(self.names[sealed])
            return inside
        if called == "hash32":
            return _t("h", self.value(arguments[0]))
        if called in ("x25519_point", "bytes"):
            return self.value(arguments[0])
        if called.endswith(".x25519.shared") or called == "secrets.x25519.shared":
            return _dh(self.value(arguments[0]), self.names[called.removesuffix(".shared")])
        if called == "secrets.x25519.public":
            return _dh(Term("'g'"), self.names["secrets.x25519"])
        if called in ("primitives.skem_dec", "primitives.ekem_dec"):
            _ciphertext, secret = map(self.value, arguments)
            kind = called[11:15]
            shared = Term("k0" if kind == "skem" else "k3")
            self.made(_t(f"{kind}_ct", _t(f"{kind}_pk", secret), shared))
            return shared
        raise AssertionError(f"unknown call {text}")


def _opens(node: ast.expr) -> bool:
    """Whether this takes something apart: what it was made of is noted where that happens."""
    return any(isinstance(n, ast.Call) and ast.unparse(n.func) == "open_sealed" for n in ast.walk(node))


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, (ast.Try, ast.With)):
            yield from _flat(node.body)
        elif isinstance(node, ast.For | ast.Raise) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            continue
        else:
            yield node


def of_initiator(source: str) -> Machine:
    """``InitiatorSecrets.draw`` and ``compose``."""
    g = Term("'g'")
    machine = Machine(source, {"server.mceliece_pk": Term("mpk"), "ephemeral.sntrup_pk": Term("npk")})
    machine.names["X25519Secret.generate()"] = Term("~e")
    machine.run("draw")
    machine.names |= {f"secrets.{name}": machine.names[name] for name in ("c0", "k0", "x25519", "c2", "k3")}
    machine.names |= {
        "server.x25519_pk": _dh(g, Term("~s")),
        "ephemeral.x25519_pk": _dh(g, Term("~t")),
        "HANDSHAKE": Term("'01 00'"),
    }
    machine.run("compose")
    return machine


def of_responder(source: str) -> Machine:
    """``respond`` and ``_finish``. What is opened is named as the model names it."""
    X, k3 = _dh(Term("'g'"), Term("~y")), Term("k3")
    names = {
        "message.c0": _t("skem_ct", _t("skem_pk", Term("~sm")), Term("k0")),
        "message.sealed_x25519": Term("s1"),
        "message.sealed_sntrup": Term("s3"),
        "long_term.mceliece_sk": Term("~sm"),
        "long_term.x25519": Term("~sx"),
        "ephemeral.x25519": Term("~ex"),
        "ephemeral.sntrup_sk": Term("~en"),
        "X": X,
        "c2": _t("ekem_ct", _t("ekem_pk", Term("~en")), k3),
    }
    machine = Machine(source, names)
    machine.run("respond")
    machine.run("_finish")
    (fields,) = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef) and n.name == "HandshakeMessage"]
    read = [f"message.{ast.unparse(n.target)}" for n in fields.body if isinstance(n, ast.AnnAssign)]
    machine.message = ["'01 00'", *(str(machine.names[name]) for name in read)]
    return machine


def of_document(text: str) -> dict[str, str]:
    """The rows of section 5's tables: label and formulas."""
    return dict(re.findall(r"^\| ([IR]\d) \| (.*) \|$", text.replace("\\|", "|"), re.MULTILINE))
