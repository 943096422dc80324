"""The models say what the code does: labels, messages, their fields and order, and what goes into every key."""

import ast
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol import constants
from tests.tamarin import steps
from tests.tamarin.models import MODELS, ParseError, Rule, Term, Theory, preprocess, read

ROOT = Path(__file__).parents[2]
HANDSHAKE = (MODELS / "handshake.spthy").read_text()
SCHEDULE = (MODELS / "schedule.spthy").read_text()
UNLINKABLE = (MODELS / "unlinkable.spthy").read_text()
CODE = (ROOT / "pqtun/protocol/handshake.py").read_text()
SCHEDULE_CODE = (ROOT / "pqtun/protocol/schedule.py").read_text()
PRIMITIVES = (ROOT / "pqtun/protocol/primitives.py").read_text()
PROTOCOL = (ROOT / "doc/protocol.md").read_text()
FLAGS = [frozenset[str](), frozenset({"REPLAY_CACHE"})]


def differences(model: str, code: str, document: str) -> list[str]:
    """Whatever of the handshake is in one of the three and not in the others."""
    theory = read(model)
    found = []
    for rule, machine in (
        (theory.rules["Initiator"], steps.of_initiator(code)),
        (theory.rules["Responder"], steps.of_responder(code)),
    ):
        modelled = steps.of_rule(rule)
        labels = sorted(modelled.keys() | machine.steps.keys())
        found += [
            f"{n}: {modelled.get(n)} / {machine.steps.get(n)}"
            for n in labels
            if modelled.get(n) != machine.steps.get(n)
        ]
        documented = {label for label in steps.of_document(document) if label[0] == rule.name[0]}
        all_labels = {c for c in rule.comments if re.fullmatch(r"[IR]\d", c)}
        if not documented == all_labels == set(labels) | {rule.name[0] + "8"}:
            found.append(f"labels of {rule.name}: {sorted(documented ^ all_labels)}")
        if machine.message != steps.message_of(rule):
            found.append(f"message: {machine.message} / {steps.message_of(rule)}")
        found += [
            f"{label} in doc/protocol.md: {operations(text)}"
            for label, text in steps.of_document(document).items()
            if label in modelled and operations(text) != made_by(rule, label)
        ]
    outgoing = steps.message_of(theory.rules["Initiator"])
    (sent,) = re.findall(r"I8 \| send `([^`]*)`", document.replace("\\|", "|"))
    if sent != "01 00 || c0 || c1 || t1 || c3 || t3" or len(outgoing) != 4:
        found.append(f"I8 in doc/protocol.md: {sent}")
    found += roles(theory, steps.of_initiator(code), steps.of_responder(code))
    return found


def roles(theory: Theory, initiator: steps.Machine, responder: steps.Machine) -> list[str]:
    """Who sends under which of the keys."""
    found = []
    for rule, machine, first, waits in (
        ("Initiator", initiator, "Client_first", "Client_waits"),
        ("Responder", responder, "Server_first", "Server_waits"),
    ):
        made = theory.rules[rule]
        facts = {f.name: f for f in made.conclusions}
        sends = made.expand(facts[first].arguments[-1])
        receives = made.expand(facts[waits].arguments[-1])
        modelled = {"send_root": str(sends), "recv_root": str(receives), "resume_secret": str(made.expand(Term("rs")))}
        if {k: v for k, v in machine.session.items() if k} != modelled:
            found.append(f"keys of {rule}: {machine.session}")
    return found


def operations(text: str) -> list[str]:
    """The functions that a row of doc/protocol.md applies, each as the model has it."""
    kinds = {"skem": "skem_ct", "ekem": "ekem_ct", "AEAD": "aead", "open": "aead", "H": "h", "KDF": "kdf", "dh": "^"}
    words = re.findall(r"\b(skem|ekem)\.(?:enc|dec)\(|\b(AEAD|H|KDF|dh)(?=\()|^(open)\b", text)
    found = [kinds["".join(word)] for word in words]
    numbers = re.findall(r"KDF\((\d)", text)
    return sorted([*found, *["kdf"] * (sum(map(int, numbers)) - len(numbers))])


def made_by(rule: Rule, label: str) -> list[str]:
    """The same of what the model makes at that label: what each definition applies itself."""
    found = []
    defined = {name: value for name, value, _ in rule.let}
    for _, value, at in rule.let:
        if at == label:
            found.append(value.name)
            found += ["^" for a in value.arguments if a.name == "^" and value.name == "kdf"]
            found += [
                "^"
                for a in value.arguments
                if value.name == "kdf" and a.name in defined and defined[a.name].name == "^"
            ]
    return sorted(found)


def test_handshake_model_code_and_document_agree() -> None:
    assert differences(HANDSHAKE, CODE, PROTOCOL) == []


def other_ciphertext_agrees(model: str) -> bool:
    """Whether the server does with a ciphertext for another key what it does with one for its own, but for k3."""
    rules = read(model).rules
    own, other = rules["Responder"], rules["Responder_other_ciphertext"]
    made = {name: str(value) for name, value, _ in own.let if name != "c2"}
    taken = {name: str(value) for name, value, _ in other.let}
    return (
        taken == {**made, "k3": "ekem_reject(c2, ~en)"}
        and (other.premises, other.conclusions) == (own.premises, own.conclusions)
        and [a for a in other.actions if a.name != "Other"] == list(own.actions)
    )


def test_the_server_takes_a_ciphertext_for_another_key() -> None:
    assert other_ciphertext_agrees(HANDSHAKE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k3 = ekem_reject(c2, ~en)", "k3 = ekem_reject(c2, ~ex)"),
        ("C6 = kdf(C4, k3, '1')", "C6 = kdf(C4, c2, '1')"),
        ("s3 = aead(C4, 'zero', T2, c2)", "s3 = aead(C3, 'zero', T2, c2)"),
        ("Server_waits(~r, H, tid, ti)", "Server_waits(~r, H, tid, tr)"),
    ],
)
def test_another_server_is_found(old: str, new: str) -> None:
    start, end = HANDSHAKE.index("rule Responder_other_ciphertext"), HANDSHAKE.index("/* --- the first packet")
    rule = HANDSHAKE[start:end]
    assert old in rule
    assert not other_ciphertext_agrees(HANDSHAKE.replace(rule, rule.replace(old, new, 1)))


MODEL_MUTATIONS = [
    ("C3 = kdf(~k0, z3, '1')", "C3 = kdf(~k0, z4, '1')"),
    ("C4 = kdf(C3, z4, '1')", "C4 = kdf(~k0, z4, '1')"),
    ("tid = kdf(C6, T6, '1')", "tid = kdf(C6, T2, '1')"),
    ("ti = kdf(C6, T6, '2')", "ti = kdf(C6, T6, '3')"),
    ("T2 = h(<c0, s1>)", "T2 = h(<s1, c0>)"),
    ("s1 = aead(~k0, 'zero', c0, 'g'^~e)", "s1 = aead(~k0, 'zero', 'none', 'g'^~e)"),
    ("s3 = aead(C4, 'zero', T2, c2)", "s3 = aead(C3, 'zero', T2, c2)"),
    ("C4 = kdf(C3, X^~ex, '1')", "C4 = kdf(C3, X^~sx, '1')"),
    ("Out(<'01 00', c0, s1, s3>)", "Out(<'01 00', c0, s3, s1>)"),
    ("In(<'01 00', c0, s1, s3>)", "In(<'01 00', c0, s3, s1>)"),
    ("// I6", "// I5"),
    ("// R4", "// R5"),
    ("Server_first(~r, H, tid, tr)", "Server_first(~r, H, tid, ti)"),
]
CODE_MUTATIONS = [
    ("mix(chain, secrets.k3)  # I6", "mix(chain, secrets.c2)  # I6"),
    ("transcript = hash32(transcript + sealed_x25519)", "transcript = hash32(sealed_x25519 + transcript)"),
    ("# I3", "# I4"),
    (
        "HANDSHAKE + secrets.c0 + sealed_x25519 + sealed_sntrup",
        "HANDSHAKE + secrets.c0 + sealed_sntrup + sealed_x25519",
    ),
    ("tid, ti, tr, rs = kdf(4, chain, transcript)  # I7", "tid, tr, ti, rs = kdf(4, chain, transcript)  # I7"),
    ("mix(chain, long_term.x25519.shared(client_x25519))  # R3", "mix(chain, long_term.x25519.shared(client_x25519))"),
    ("send_root=tr, recv_root=ti", "send_root=ti, recv_root=tr"),
    (
        "c2 = open_sealed(chain, transcript, message.sealed_sntrup)",
        "c2 = open_sealed(chain, message.c0, message.sealed_sntrup)",
    ),
]
DOCUMENT_MUTATIONS = [
    ("| I4 | `C = KDF(1, C, dh(", "| I4 | `C = KDF(1, C, H("),
    ("`tid, ti, tr, rs = KDF(4, C, T)` |\n| I8", "`tid, ti, tr = KDF(3, C, T)` |\n| I8"),
    ("| R6 |", "| R9 |"),
    ("c0 \\|\\| c1 \\|\\| t1 \\|\\| c3 \\|\\| t3` [1299]", "c1 \\|\\| c0 \\|\\| t1 \\|\\| c3 \\|\\| t3` [1299]"),
]


def fails(model: str, code: str, document: str) -> bool:
    try:
        return bool(differences(model, code, document))
    except (AssertionError, ParseError, KeyError):
        return True


def plain(text: str) -> str:
    """The model as it is without flags, so that a mutation is of what is compared."""
    return preprocess(text)


@pytest.mark.parametrize(("old", "new"), MODEL_MUTATIONS)
def test_a_change_of_the_model_is_found(old: str, new: str) -> None:
    assert old in plain(HANDSHAKE)
    assert fails(plain(HANDSHAKE).replace(old, new, 1), CODE, PROTOCOL)


@pytest.mark.parametrize(("old", "new"), CODE_MUTATIONS)
def test_a_change_of_the_code_is_found(old: str, new: str) -> None:
    assert old in CODE
    assert fails(HANDSHAKE, CODE.replace(old, new, 1), PROTOCOL)


@pytest.mark.parametrize(("old", "new"), DOCUMENT_MUTATIONS)
def test_a_change_of_the_document_is_found(old: str, new: str) -> None:
    assert old in PROTOCOL
    assert fails(HANDSHAKE, CODE, PROTOCOL.replace(old, new, 1))


def same_client(text: str) -> bool:
    """Whether the client of this model makes and sends what that of handshake.spthy does."""
    other, ours = read(HANDSHAKE), read(text)
    initiator, its = other.rules["Initiator"], ours.rules["Initiator"]
    made = [d for d in initiator.let if d[0] not in ("tr", "H")]
    key, ad, resume = (v for _, v, _ in other.rules["Client_resumes"].let)
    new_key, new_ad, first, second = (v for _, v, _ in ours.rules["Client_resumes"].let)
    resumes = [str(t).replace(f"tid{n}", "old_tid").replace(f"rs{n}", "old_rs") for n, t in ((1, first), (2, second))]
    (sent,) = (o for o in ours.rules["Client_resumes"].conclusions if o.name == "Out")
    return (
        {**ours.functions, "ekem_reject": 2} == other.functions
        and {f.name for f in its.premises} <= {f.name for f in initiator.premises} | {"!Long_term"}
        and sorted(map(str, its.let)) == sorted(map(str, made))
        and [str(f) for f in its.conclusions if f.name == "Out"]
        == ["Out(c0)", "Out(s1)", "Out(s3)", "Out(tid)", "Out(rs)"]
        and (str(key), str(ad)) == (str(new_key), str(new_ad))
        and resumes == [str(resume)] * 2
        and str(sent) == "Out(aead(key, 'zero', ad, diff(first, second)))"
    )


def test_the_client_that_cannot_be_linked_is_the_same() -> None:
    assert same_client(UNLINKABLE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("C4 = kdf(C3, z4, '1')", "C4 = kdf(~k0, z4, '1')"),
        ("rs = kdf(C6, T6, '4')", "rs = kdf(C6, T6, '3')"),
        ("In(npk), !Point(~t),", "In(npk), !Point(~t), !Client(~c),"),
        ("Out(s3), Out(tid)", "Out(tid)"),
        ("mac(rs2, tid)", "mac(rs2, tid2)"),
        ("Out(aead(key, 'zero', ad, diff(first, second)))", "Out(aead(key, 'zero', ad, first))"),
    ],
)
def test_another_client_is_found(old: str, new: str) -> None:
    assert old in plain(UNLINKABLE)
    assert not same_client(plain(UNLINKABLE).replace(old, new, 1))


def test_the_aead_has_the_nonce_of_the_model() -> None:
    (function,) = [n for n in ast.walk(ast.parse(PRIMITIVES)) if isinstance(n, ast.FunctionDef) and n.name == "seal"]
    names = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
    zero = [
        n
        for n in ast.parse(PRIMITIVES).body
        if isinstance(n, ast.Assign | ast.AnnAssign) and "bytes(12)" in ast.unparse(n)
    ]
    assert any(ast.unparse(n.target if isinstance(n, ast.AnnAssign) else n.targets[0]) in names for n in zero)


def test_tunnel_packets_have_the_fields_of_the_code() -> None:
    theory = read(HANDSHAKE)
    for name in (
        "Client_sends",
        "Server_sends",
        "Client_receives",
        "Server_receives",
        "Client_resumes",
        "Server_resumes",
    ):
        rule = theory.rules[name]
        root = {"Server_sends": "tr", "Client_receives": "tr"}.get(name, "ti")
        assert str(rule.expand(Term("ad"))) == "<'02 00', tid, '0', '0'>"
        assert str(rule.expand(Term("key"))) == f"kdf(kdf({root}, 'none', '2'), 'none', '2')"
    assert constants.TUNNEL == b"\x02\x00"
    assert constants.HANDSHAKE == b"\x01\x00"
    assert "02 00 || tid (32) || epoch (2 BE) || counter (4 BE)" in PROTOCOL


def schedule_differences(model: str, code: str) -> list[str]:
    theory = read(model)
    tree = ast.parse(code)
    functions = {n.name: ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    found = []
    out = {
        name: [str(t) for t in theory.rules[name].conclusions[0].arguments[0].arguments] for name in ("KDF_2", "KDF_19")
    }
    if out["KDF_2"] != ["root(r, (%e%+%1))", "chain(r, %e, %1)"]:
        found.append("KDF_2")
    if out["KDF_19"] != ["chain(r, %e, (%b%+%1))", "packet_key(r, %e, %b, '1')", "packet_key(r, %e, %b, '2')"]:
        found.append("KDF_19")
    if "halves = (both[:KEY_BYTES], both[KEY_BYTES:])" not in functions["_split_root"]:
        found.append("_split_root")
    if "self._next_root, self._chain_key = _split_root(root)" not in functions["_step"]:
        found.append("_step")
    block = functions["_next_block"]
    if (
        "memoryview(chain_key)[:] = memoryview(stream)[:KEY_BYTES]" not in block
        or "block = stream[KEY_BYTES:]" not in block
    ):
        found.append("_next_block")
    five = "(((((%e%+%1)%+%1)%+%1)%+%1)%+%1)"
    for name in ("Receive_block_ahead", "Derive_block", "Receive", "Steal_receiver_chain", "Steal_receiver_key"):
        if Term("Below", (Term("%n"), _sum("%e", constants.MAX_EPOCHS))) not in theory.rules[name].actions:
            found.append(f"{name}: {five}")
    return found


def _sum(name: str, ones: int) -> Term:
    term = Term(name)
    for _ in range(ones):
        term = Term("%+", (term, Term("%1")))
    return term


def test_schedule_model_and_code_agree() -> None:
    assert schedule_differences(SCHEDULE, SCHEDULE_CODE) == []
    assert constants.KEYS_PER_BLOCK + 1 == 19
    assert "KDF(2, root of e, " in PROTOCOL
    assert "KDF(19, chain key, " in PROTOCOL


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("root(r, %e %+ %1), chain(r, %e, %1)", "root(r, %e %+ %1), chain(r, %e %+ %1, %1)"),
        ("chain(r, %e, %b %+ %1), packet_key", "chain(r, %e, %b), packet_key"),
        ("Below(%n, %e %+ %1 %+ %1 %+ %1 %+ %1 %+ %1)", "Below(%n, %e %+ %1 %+ %1 %+ %1 %+ %1)"),
    ],
)
def test_a_change_of_the_schedule_is_found(old: str, new: str) -> None:
    assert old in plain(SCHEDULE)
    assert schedule_differences(plain(SCHEDULE).replace(old, new, 1), SCHEDULE_CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("both[:KEY_BYTES], both[KEY_BYTES:]", "both[KEY_BYTES:], both[:KEY_BYTES]"),
        ("block = stream[KEY_BYTES:]", "block = stream[:-KEY_BYTES]"),
    ],
)
def test_a_change_of_the_schedule_code_is_found(old: str, new: str) -> None:
    assert old in SCHEDULE_CODE
    assert schedule_differences(SCHEDULE, SCHEDULE_CODE.replace(old, new, 1))


@pytest.mark.parametrize("flags", FLAGS)
def test_rules_use_functions_and_facts_that_exist(flags: frozenset[str]) -> None:
    theory = read(HANDSHAKE, flags)
    made = {(f.name, len(f.arguments)) for r in theory.rules.values() for f in r.conclusions} | {("Fr", 1), ("In", 1)}
    for rule in theory.rules.values():
        assert {(f.name, len(f.arguments)) for f in rule.premises} <= made, rule.name
    known = set(theory.functions) | {"h", "<>", "^", "*"}
    assert {t.name for r in theory.rules.values() for _, v, _ in r.let for t in subterms(v) if t.arguments} <= known


def subterms(term: Term) -> list[Term]:
    return [term, *itertools.chain.from_iterable(map(subterms, term.arguments))]


def losses() -> dict[str, set[str]]:
    """The names of losses in each of the predicates that the secrecy lemmas conclude."""
    text = HANDSHAKE[HANDSHAKE.index("predicates:") : HANDSHAKE.index("/* A server drops")]
    found = {}
    for part in re.split(r",\n", text):
        (name,) = re.findall(r"(\w+Lost)\(", part)
        found[name] = set(re.findall(r"Lost\('([^']+)'", part))
    return found


def minimal_sets() -> set[frozenset[str]]:
    """The smallest sets that hit each predicate. An ephemeral key that the attacker handed out hits its own."""
    predicates = losses()
    hits = {
        *itertools.chain.from_iterable(predicates.values()),
        "npk handed",
        "expk handed",
    }
    predicates["SntrupLost"].add("npk handed")
    predicates["EphemeralLost"].add("expk handed")
    sets: set[frozenset[str]] = set()
    for size in range(1, 5):
        for chosen in itertools.combinations(sorted(hits), size):
            candidate = frozenset(chosen)
            if all(candidate & p for p in predicates.values()) and not any(s <= candidate for s in sets):
                sets.add(candidate)
    return sets


def test_the_attacks_are_all_that_the_secrecy_lemmas_leave() -> None:
    theory = read(HANDSHAKE)
    for name, predicate in zip(
        ("mceliece", "static", "sntrup", "ephemeral"), ("McEliece", "Static", "Sntrup", "Ephemeral"), strict=True
    ):
        assert re.search(rf"==> {predicate}Lost\([^()]*\)\s*$", theory.lemmas[f"secret_by_{name}"].formula)
    shown = set()
    for name, lemma in theory.lemmas.items():
        if not re.match(r"attack_(mceliece|k0)", name):
            continue
        assert lemma.exists
        assert "K(x) @ j" in lemma.formula
        (allowed,) = re.findall(r"All w y #a\. Lost\(w, y\) @ a ==> #i < #a & \((.*)\)\)", lemma.formula)
        found = set(re.findall(r"w = '([^']+)'", allowed))
        handed = ("& Attackers(npk, gx) @ h" in lemma.formula, "& Attackers(nk, expk) @ l" in lemma.formula)
        found |= {name for name, is_handed in zip(("npk handed", "expk handed"), handed, strict=True) if is_handed}
        own = {  # what is not handed out is of the server itself, and of one half minute
            (False, False): "& Half_minute(H, en, ex, npk, expk) @ h",
            (False, True): "& Half_minute(H, en, ex, npk, gx) @ h",
            (True, False): "& Half_minute(H, en, ex, nk, expk) @ l",
            (True, True): "",
        }
        assert own[handed] in lemma.formula
        shown.add(frozenset(found))
    # An X25519 key handed out is only needed where the static one leaked; where sntrup761's is handed out, so it is.
    assert shown == minimal_sets()


WORDS = st.sampled_from(["a", "~k", "$A", "'c'", "%1", "X1"])
TERMS = st.recursive(
    WORDS.map(Term),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["f", "kdf"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda p: Term(p[0], tuple(p[1]))
        ),
        st.lists(inner, min_size=2, max_size=3).map(lambda p: Term("<>", tuple(p))),
        st.tuples(inner, inner).map(lambda p: Term("^", p)),
    ),
    max_leaves=12,
)


@given(
    st.lists(st.tuples(st.from_regex(r"[A-Z][a-z]{1,5}", fullmatch=True), st.lists(TERMS, max_size=3)), max_size=3),
    TERMS,
)
def test_the_parser_reads_what_is_written(facts: list[tuple[str, list[Term]]], value: Term) -> None:
    written = [Term(name, tuple(arguments)) for name, arguments in facts if arguments]
    text = ", ".join(map(str, written))
    rule = f"rule R:\n  let v = {value} // I1\n  in\n  [ {text} ]\n--[ {text} ]->\n  [ {text} ]\n"
    read_back = read(rule).rules["R"]
    assert read_back.premises == read_back.actions == read_back.conclusions == tuple(written)
    assert read_back.let == (("v", value, "I1"),)


@given(st.text(alphabet="rule :[]()<>-=,'~abAB1^*%+$\n/#\"", max_size=60))
def test_the_parser_refuses_or_reads(text: str) -> None:
    try:
        read("rule A: [ ] --> [ ]\n" + text)
    except (ParseError, IndexError):
        return


@pytest.mark.parametrize("cut", range(0, 600, 37))
def test_a_cut_rule_is_refused(cut: int) -> None:
    text = plain(HANDSHAKE)
    start = text.index("rule Initiator")
    with pytest.raises(ParseError):
        read(text[start : start + 20 + cut])
