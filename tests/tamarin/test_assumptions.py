"""What the models take for granted: equations, private functions and restrictions, each of them listed here."""

import re
from pathlib import Path

import pytest

from tests.tamarin.models import MODELS, ParseError, Theory, read

KEM_EQUATIONS = {f"{kem}_dec({kem}_ct({kem}_pk(sk), k), sk) = k" for kem in ("skem", "ekem")}
AEAD_EQUATION = {"aead_open(aead(k, n, ad, m), k, n) = m"}
EQUATIONS = {
    "handshake": KEM_EQUATIONS | AEAD_EQUATION,
    "unlinkable": KEM_EQUATIONS | AEAD_EQUATION,
    "schedule": AEAD_EQUATION,
}
# The attacker derives the keys of the schedule by the rules KDF_2 and KDF_19.
PRIVATE = {"handshake": set[str](), "unlinkable": set[str](), "schedule": {"root", "chain", "packet_key"}}
# A model has one of the two; its rules then say NotAbove(x, y), or NotAbove(x, y + 1).
NOT_ABOVE = ("All x y #i. NotAbove(x, y) @ i ==> x << y | x = y", "All x y #i. NotAbove(x, y) @ i ==> x << y")
STRICT = read((MODELS / "schedule.spthy").read_text()).restrictions.get("Not_above") == NOT_ABOVE[1]
RESTRICTIONS = {
    "Below": "All x y #i. Below(x, y) @ i ==> x << y",
    "Not_above": NOT_ABOVE[STRICT],
    "Erased_is_gone": "All side x #i #j. Reads(side, x) @ i & Erases(side, x) @ j ==> not (#j < #i)",
    "Replay_cache": "All H c #i #j. Remembered(H, c) @ i & Remembered(H, c) @ j ==> #i = #j",
}
ALLOWED = {
    ("schedule", ""): {"Below", "Not_above", "Erased_is_gone"},
    ("handshake", "REPLAY_CACHE"): {"Replay_cache"},
}
TRACES = "EXEC"  # under this flag there may be any restriction: a trace that is narrower than it has to be is a trace


def flags_of(text: str) -> set[str]:
    included = [path.read_text() for path in MODELS.glob("*.splib")]
    return {"", *re.findall(r"^\s*#ifdef\s+(\w+)", "\n".join([text, *included]), re.MULTILINE)}


def with_flag(text: str, flag: str, folder: Path = MODELS) -> Theory:
    return read(text, frozenset({flag} if flag else ()), folder)


def assumed(model: str, text: str) -> list[str]:
    """What a model takes for granted beyond the lists."""
    plain = with_flag(text, "")
    found = []
    for flag in sorted(flags_of(text)):
        theory = with_flag(text, flag)
        if theory.equations != EQUATIONS[model]:
            found.append(f"{flag}: equations {sorted(theory.equations ^ EQUATIONS[model])}")
        if theory.private != PRIVATE[model]:
            found.append(f"{flag}: private {sorted(theory.private ^ PRIVATE[model])}")
        found += [f"{flag}: {r.name} restricts" for r in theory.rules.values() for a in r.actions if a.name[0] == "_"]
        if flag == TRACES:
            proven_there = theory.lemmas.keys() - plain.lemmas.keys()
            found += [f"{flag}: {name} is no trace" for name in proven_there if not theory.lemmas[name].exists]
            continue
        for name, formula in theory.restrictions.items():
            allowed = ALLOWED.get((model, ""), set()) | ALLOWED.get((model, flag), set())
            if name not in allowed or formula != RESTRICTIONS[name]:
                found.append(f"{flag}: restriction {name}: {formula}")
    return found


def assumes_more(model: str, text: str) -> bool:
    try:
        return bool(assumed(model, text))
    except ParseError:
        return True


def test_every_model_is_listed() -> None:
    assert {path.stem for path in MODELS.glob("*.spthy")} == EQUATIONS.keys() == PRIVATE.keys()


@pytest.mark.parametrize("model", EQUATIONS)
def test_models_take_only_what_is_listed_for_granted(model: str) -> None:
    assert assumed(model, (MODELS / f"{model}.spthy").read_text()) == []


NOTHING_LOST = 'restriction Nothing_lost: "not (Ex x y #i. Lost(x, y) @ i)"\n'
NONE_STOLEN = 'restriction None_stolen: "All s r n #i. Stolen(s, r, n) @ i ==> F"\n'


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("handshake", "ekem_dec(ekem_ct(ekem_pk(sk), k), sk) = k", "ekem_dec(ekem_ct(pk, k), sk) = k"),
        ("handshake", "aead_open(aead(k, n, ad, m), k, n) = m", "aead_open(aead(k, n, ad, m), l, n) = m"),
        ("handshake", "kdf/3, mac/2", "kdf/3 [private], mac/2"),
        ("handshake", "rule Long_term_key:", NOTHING_LOST + "rule Long_term_key:"),
        ("handshake", "rule Long_term_key:", "  " + NOTHING_LOST + "rule Long_term_key:"),
        ("handshake", "rule Long_term_key:", NOTHING_LOST.replace("restriction", "axiom") + "rule Long_term_key:"),
        ("handshake", "#ifdef REPLAY_CACHE\n", "#ifdef REPLAY_CACHE\n" + NOTHING_LOST),
        ("handshake", "--[ Server(H) ]->", "--[ Server(H), _restrict(F) ]->"),
        ("handshake", "Remembered(H, c) @ i & Remembered(H, c) @ j", "Remembered(H, c) @ i & Remembered(x, c) @ j"),
        ("schedule", "rule KDF_2", NONE_STOLEN + "rule KDF_2"),
        ("schedule", "rule KDF_2", "#ifdef OTHER\n" + NONE_STOLEN + "#endif\nrule KDF_2"),
        ("schedule", "rule KDF_2", '#ifdef EXEC\nlemma x: "T"\n' + NONE_STOLEN + "#endif\nrule KDF_2"),
        ("schedule", "Below(x, y) @ i ==> x << y", "Below(x, y) @ i ==> F"),
        ("schedule", "root/2 [private]", "root/2"),
    ],
)
def test_what_is_taken_for_granted_besides_is_found(model: str, old: str, new: str) -> None:
    text = (MODELS / f"{model}.spthy").read_text()
    assert old in text
    assert assumes_more(model, text.replace(old, new, 1))


def test_traces_may_be_narrowed() -> None:
    text = (MODELS / "schedule.spthy").read_text()
    narrow = f'#ifdef EXEC\nlemma exec_x: exists-trace "T"\n{NONE_STOLEN}#endif\n'
    assert not assumes_more("schedule", text.replace("rule KDF_2", narrow + "rule KDF_2", 1))
