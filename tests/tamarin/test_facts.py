"""The facts of handshake.spthy: what stands where in them, who makes them, and what each loss gives away."""

import itertools
import re
from pathlib import Path

import pytest

from tests.tamarin import steps
from tests.tamarin.models import MODELS, ParseError, Rule, Term, Theory
from tests.tamarin.test_assumptions import flags_of, with_flag

CODE = (Path(__file__).parents[2] / "pqtun/protocol/handshake.py").read_text()
HANDSHAKE = (MODELS / "handshake.spthy").read_text()

# e and r are one run of the client and of the server, `old` the run of the tunnel that is continued.
SIGNATURES = {
    name: tuple(arguments.split())
    for name, arguments in {
        "Fr": "fresh", "In": "message", "Out": "message",
        "Server": "H", "Announces": "H source", "!Announced": "H source",
        "!Long_term": "H sm sx", "!Ephemeral": "H en ex", "Half_minute": "H en ex npk expk",
        "!X25519": "secret", "!Point": "secret", "Attackers": "npk expk", "Attackers_server": "H",
        "Initiated": "e H source npk expk tid ti tr rs", "Responded": "r H npk expk tid ti tr rs",
        "Root": "e H npk expk root", "Resume_secret": "e H npk expk rs",
        "Dh_static": "e s z3", "Dh_ephemeral": "e t z4", "Remembered": "H c0",
        "!Client_random": "e k0 k3", "!Client_tunnel": "e H tid ti tr rs", "Server_tunnel": "r H tid ti rs",
        "Client_first": "e H tid ti", "Client_waits": "e H tid ti tr",
        "Server_first": "r H tid tr", "Server_waits": "r H tid ti",
        "ClientSent": "e H tid ti m", "ServerSent": "r H tid tr m",
        "Confirmed": "e H tid ti tr m", "ServerReceived": "r H tid ti m",
        "ClientResumes": "old e H old_tid tid ti old_rs", "Resumed": "old r H old_tid tid ti old_rs",
        "Lost": "kind of", "RsLeaked": "e rs", "RootLeaked": "e root", "Other": "r",
    }.items()
}  # fmt: skip
ANY = {"fresh", "message", "secret", "root", "of", "kind"}  # checked apart, where it matters
FORMS = {("Responded", "npk"): "ekem_pk(en)", ("Responded", "expk"): "('g'^ex)"}
ATTACKERS = {"Attackers": ["ekem_pk(z)", "('g'^z)"], "Attackers_server": ["h(<skem_pk(z), ('g'^z)>)"]}
QUERIED = {"tid", "ti", "tr", "rs", "npk", "expk", "H"}

# What each loss gives away: from which fact, of whom, and what.
LOSSES = {
    "mceliece": "!Long_term(H, ~sm, ~sx) H ~sm",
    "static": "!Long_term(H, ~sm, ~sx) H ~sx",
    "sntrup": "!Ephemeral(H, ~en, ~ex) ekem_pk(~en) ~en",
    "ephemeral": "!Ephemeral(H, ~en, ~ex) ('g'^~ex) ~ex",
    "k0": "!Client_random(~e, ~k0, ~k3) ~e ~k0",
    "e": "!Client_random(~e, ~k0, ~k3) ~e ~e",
    "k3": "!Client_random(~e, ~k0, ~k3) ~e ~k3",
    "ti": "!Client_tunnel(~e, H, tid, ti, tr, rs) ~e ti",
    "tr": "!Client_tunnel(~e, H, tid, ti, tr, rs) ~e tr",
    "rs": "!Client_tunnel(~e, H, tid, ti, tr, rs) ~e rs",
    "mceliece broken": "!Long_term(H, ~sm, ~sx) H ~sm",
    "sntrup broken": "!Ephemeral(H, ~en, ~ex) ~en ~en",
    "x25519 broken": "!X25519(~x) ~x ~x",
}
RULES = {
    "Long_term_key", "Ephemeral_key", "Announcement_honest", "Announcement_attacker", "Attacker_keys",
    "Initiator", "Responder", "Client_sends", "Server_sends", "Client_receives", "Server_receives",
    "Client_resumes", "Server_resumes",
}  # fmt: skip
OTHER = "Responder_other_ciphertext"  # as Responder, for a ciphertext of sntrup761 that was made for another key
LEAKS = {"ti": "RootLeaked", "tr": "RootLeaked", "rs": "RsLeaked"}  # the action that names the value


def facts(rule: Rule) -> list[Term]:
    return [*rule.premises, *rule.actions, *rule.conclusions]


def bare(text: object) -> str:
    return re.sub(r"[~$%]", "", str(text))


def placed(fact: str, name: str, value: str) -> bool:
    forms = [name, FORMS.get((fact, name))] + (["'honest'", "'attacker'"] if name == "source" else [])
    return name in ANY or value in forms


def misplaced(theory: Theory) -> list[str]:
    """Facts of rules whose arguments do not stand where they belong."""
    found = []
    for rule in theory.rules.values():
        for fact in facts(rule):
            if fact.name not in SIGNATURES:
                found.append(f"{rule.name}: {fact.name} is not known")
                continue
            names, given = SIGNATURES[fact.name], [bare(a) for a in fact.arguments]
            if fact.name in ATTACKERS:
                right = given == ATTACKERS[fact.name]
            else:
                given = continued(fact, given, names)
                right = len(names) == len(given) and all(map(placed, itertools.repeat(fact.name), names, given))
            if not right:
                found.append(f"{rule.name}: {fact}")
    return found


def continued(fact: Term, given: list[str], names: tuple[str, ...]) -> list[str]:
    """In a rule that resumes, one of the facts is of the old tunnel, and all in it is."""
    if fact.name in ("!Client_tunnel", "Server_tunnel") and given[0] == "old" and given[1] == "H":
        expected = [f"old_{name}" for name in names[2:]]
        return [*names[:2], *(n if g == e else g for n, g, e in zip(names[2:], given[2:], expected, strict=True))]
    return given


def misread(theory: Theory) -> list[str]:
    """Facts in formulas with a variable that is named as something that stands elsewhere in this fact."""
    found = []
    for lemma in theory.lemmas.values():
        for name, inside in re.findall(r"\b(\w+)\(((?:[^()]|\([^()]*\))*)\) @", lemma.formula):
            names = SIGNATURES.get(name) or SIGNATURES.get(f"!{name}")
            if names is None:
                if name not in ("KU", "K"):
                    found.append(f"{lemma.name}: {name} is not known")
                continue
            given = [bare(part.strip()) for part in re.split(r",(?![^(<]*[)>])", inside)]
            if len(given) != len(names):
                found.append(f"{lemma.name}: {name}({inside})")
                continue
            for expected, value in zip(names, given, strict=True):
                meant = re.sub(r"^old(?=[a-z])", "old_", re.sub(r"\d+$", "", value))
                if meant not in names:
                    meant = meant.removeprefix("old_")
                if meant in names and meant.removeprefix("old_") in QUERIED and meant != expected:
                    found.append(f"{lemma.name}: {name}({inside})")
    return found


def of_the_client(theory: Theory, code: str) -> list[str]:
    """What the rule Initiator draws and what it marks as secret, by what the code draws and yields."""
    rule, machine = theory.rules["Initiator"], steps.of_initiator(code)
    found = []
    drawn = {str(f.arguments[0]) for f in rule.premises if f.name == "Fr"}
    if drawn != {"~k0", "~k3", "~e"}:
        found.append(f"Initiator draws {sorted(drawn)}")
    marked = {
        name: {str(rule.expand(a.arguments[-1])) for a in rule.actions if a.name == name}
        for name in ("Root", "Resume_secret", "Dh_static", "Dh_ephemeral")
    }
    session = machine.session
    expected = {
        "Root": {session["send_root"], session["recv_root"]},
        "Resume_secret": {session["resume_secret"]},
        "Dh_static": {"(('g'^~s)^~e)"},
        "Dh_ephemeral": {"(('g'^~t)^~e)"},
    }
    found += [f"{name}: {marked[name]}" for name in expected if marked[name] != expected[name]]
    made = {f.name for f in (*rule.actions, *rule.conclusions)}
    missing = {
        "Initiated",
        "Out",
        "!X25519",
        "!Point",
        "!Client_random",
        "Client_first",
        "Client_waits",
        "!Client_tunnel",
    }
    found += [f"Initiator makes no {name}" for name in sorted(missing - made)]
    taken = {str(f) for f in rule.premises if f.name != "Fr"}
    if taken != {"!Announced(H, source)", "In(<mpk, xpk>)", "In(<npk, expk>)", "!Point(~s)", "!Point(~t)"}:
        found.append(f"Initiator takes {sorted(taken)}")
    for name, secrets in (("Long_term_key", {"~sx"}), ("Ephemeral_key", {"~ex"}), ("Initiator", {"~e"})):
        for kind in ("!X25519", "!Point"):
            has = {str(f.arguments[0]) for f in theory.rules[name].conclusions if f.name == kind}
            if has != secrets:
                found.append(f"{name}: {kind} of {sorted(has)}")
    return found


def of_the_server(theory: Theory) -> list[str]:
    """The rule Responder. That the other one does the same is shown with the steps of the handshake."""
    rule = theory.rules["Responder"]
    found = []
    taken = [f.name for f in rule.premises]
    if taken != ["!Long_term", "!Ephemeral", "In", "!Point", "Fr"]:
        found.append(f"Responder takes {taken}")
    if [f.name for f in rule.actions] != ["Remembered", "Responded"]:
        found.append(f"Responder: {rule.actions}")
    if {f.name for f in rule.conclusions} != {"Server_first", "Server_waits", "Server_tunnel"}:
        found.append(f"Responder: {rule.conclusions}")
    return found


def named_losses(theory: Theory) -> set[str]:
    formulas = [*theory.predicates.values(), *(lemma.formula for lemma in theory.lemmas.values())]
    return {
        name
        for formula in formulas
        for found in re.findall(r"Lost\('([^']+)'|w = '([^']+)'", formula)
        for name in found
        if name
    }


def wrong_losses(theory: Theory) -> list[str]:
    """Each loss is of one rule, which gives away just what it says, and leaves all as it is."""
    found = []
    leaks: dict[str, list[str]] = {}
    for rule in theory.rules.values():
        lost = [a for a in rule.actions if a.name == "Lost"]
        if bool(lost) != (rule.name not in RULES | {OTHER}):
            found.append(f"{rule.name} loses {lost}")
        if not lost:
            continue
        (action,), out = lost, [f for f in rule.conclusions if f.name == "Out"]
        kind = str(action.arguments[0]).strip("'")
        given = [*rule.premises, rule.expand(action.arguments[1]), *(rule.expand(o.arguments[0]) for o in out)]
        leaks.setdefault(kind, []).append(" ".join(map(str, given)))
        if len(rule.conclusions) != 1 or any(not str(f).startswith("!") for f in rule.premises):
            found.append(f"{rule.name}: {rule.premises} {rule.conclusions}")
        if kind in LEAKS and Term(LEAKS[kind], (Term("~e"), Term(kind))) not in rule.actions:
            found.append(f"{kind} leaks without {LEAKS[kind]}")
    found += [
        f"{k}: {leaks.get(k)} / {LOSSES.get(k)}" for k in leaks.keys() | LOSSES if leaks.get(k) != [LOSSES.get(k)]
    ]
    found += [f"no rule loses {name}" for name in sorted(named_losses(theory) - leaks.keys())]
    return found


def wrong(text: str, code: str) -> list[str]:
    found = []
    for flag in sorted(flags_of(text)):
        theory = with_flag(text, flag)
        found += [f"no rule {name}" for name in sorted(RULES - theory.rules.keys())]
        if found:
            return found
        found += misplaced(theory) + misread(theory) + of_the_client(theory, code) + of_the_server(theory)
        found += wrong_losses(theory)
    return found


def is_wrong(text: str) -> bool:
    try:
        return bool(wrong(text, CODE))
    except (AssertionError, ParseError, LookupError, ValueError):
        return True


def test_facts_are_made_and_read_as_they_are_meant() -> None:
    assert wrong(HANDSHAKE, CODE) == []


MUTATIONS = [
    ("Initiated(~e, H, source, npk, expk, tid, ti, tr, rs)", "Initiated(~e, H, source, npk, expk, tid, tr, ti, rs)"),
    ("!Client_tunnel(~e, H, tid, ti, tr, rs) ]\n", "!Client_tunnel(~e, H, tid, ti, tr, tr) ]\n"),
    ("Responded(~r, H, ekem_pk(~en), 'g'^~ex, tid,", "Responded(~r, H, ekem_pk(~en), 'g'^~sx, tid,"),
    ("Server_tunnel(~r, H, tid, ti, rs) ] // R8", "Server_tunnel(~r, H, tid, tr, rs) ] // R8"),
    ("Client_waits(~e, H, tid, ti, tr)\n", "Client_waits(~e, H, tid, tr, ti)\n"),
    ("Remembered(H, c0), Responded", "Remembered(H, ~r), Responded"),
    ("Remembered(H, c0), Responded", "Responded"),
    ("Root(~e, H, npk, expk, ti), ", ""),
    ("Root(~e, H, npk, expk, tr), ", "Root(~e, H, npk, expk, rs), "),
    ("Resume_secret(~e, H, npk, expk, rs)", "Resume_secret(~e, H, npk, expk, tr)"),
    (", !X25519(~e), !Point(~e), !Client_random", ", !Point(~e), !Client_random"),
    ("!Client_random(~e, ~k0, ~k3), Client_first", "!Client_random(~e, ~k0, ~k0), Client_first"),
    ("!Announced(H, source), In(<mpk", "In(H), In(source), In(<mpk"),
    ("Fr(~k0), Fr(~k3), Fr(~e), !Point(~s)", "In(~k0), Fr(~k3), Fr(~e), !Point(~s)"),
    ("rule Leak_ephemeral:", "rule Responder_other_ciphertext:"),
    ("Lost('x25519 broken', ~x) ]-> [ Out(~x) ]", "Lost('x25519 broken', ~x) ]-> [ ]"),
    ("Lost('x25519 broken', ~x) ]-> [ Out(~x) ]", "Lost('x25519 broken', ~x) ]-> [ Out('g'^~x) ]"),
    ("Lost('mceliece', H) ]-> [ Out(~sm) ]", "Lost('mceliece', H) ]-> [ Out(~sx) ]"),
    ("Lost('sntrup', ekem_pk(~en))", "Lost('sntrup', ~en)"),
    ("Lost('rs', ~e), RsLeaked(~e, rs)", "Lost('rs', ~e)"),
    ("Lost('ti', ~e), RootLeaked(~e, ti)", "Lost('ti', ~e), RootLeaked(~e, tr)"),
    ("Lost('tr', ~e), RootLeaked(~e, tr) ]-> [ Out(tr) ]", "Lost('tr', ~e), RootLeaked(~e, tr) ]-> [ Out(rs) ]"),
    ("Lost('k3', e) @ a & #a < #t)", "Lost('k4', e) @ a & #a < #t)"),
    ("Attackers(ekem_pk(~z), 'g'^~z)", "Attackers('g'^~z, ekem_pk(~z))"),
    ("Confirmed(e, H, tid, ti, tr, m) @ i & Server(H)", "Confirmed(e, H, tid, tr, ti, m) @ i & Server(H)"),
    ("Resumed(oldr, r, H, oldtid, tid, ti, s) @ i", "Resumed(oldr, r, H, tid, oldtid, ti, s) @ i"),
    ("Responded(r, H2, npk2, expk2, tid, ti2, tr2, rs2)", "Responded(r, H2, npk2, expk2, tid, tr2, ti2, rs2)"),
]


@pytest.mark.parametrize(("old", "new"), MUTATIONS)
def test_a_change_of_the_facts_is_found(old: str, new: str) -> None:
    assert old in HANDSHAKE
    assert is_wrong(HANDSHAKE.replace(old, new, 1))


def test_a_rule_that_leaks_is_missed() -> None:
    (rule,) = re.findall(r"^rule Leak_ephemeral: .*\n", HANDSHAKE, re.MULTILINE)
    assert is_wrong(HANDSHAKE.replace(rule, ""))
    assert is_wrong(HANDSHAKE.replace(rule, rule + rule.replace("Leak", "Spill")))
