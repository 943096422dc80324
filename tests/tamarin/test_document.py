"""doc/verification.md names the lemmas that there are, and says of each claim what its lemmas' results are."""

import re
from pathlib import Path

from tests.tamarin.models import MODELS, read

DOCUMENT = (Path(__file__).parents[2] / "doc/verification.md").read_text()
RESULTS = re.findall(
    r"^\| `(\w+)` \| (verified|not yet proven: [^|]+?) \|\s*(\d*)\s*\|\s*(\d*)\s*\|$", DOCUMENT, re.MULTILINE
)
CLAIMS = re.findall(r"^\| (.+?) \| (.*) \| (verified, \d+ s|not yet proven.*|stated) \|$", DOCUMENT, re.MULTILINE)


def lemmas() -> set[str]:
    found: set[str] = set()
    for model in MODELS.glob("*.spthy"):
        for flags in (frozenset[str](), frozenset({"REPLAY_CACHE"}), frozenset({"OPEN"})):
            found |= read(model.read_text(), flags).lemmas.keys()
        if "diff(" in model.read_text():
            found.add("Observational_equivalence")
    return found


def families(prefix: str) -> tuple[str, ...]:
    """What a cell means by ``attack_``… or ``pose_``…: the lemmas of attacks.splib."""
    return ("attack_mceliece", "attack_k0") if prefix == "attack_" else (prefix,)


def outside_results(text: str) -> str:
    return text[: text.index("## Results")]


def test_every_lemma_has_one_row_and_every_row_a_lemma() -> None:
    names = [name for name, *_ in RESULTS]
    assert len(names) == len(set(names))
    assert set(names) == lemmas()


def test_every_lemma_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", outside_results(DOCUMENT)))
    in_families = families("attack_") + families("pose_")
    assert {n for n in lemmas() - explained if not n.startswith(in_families)} == set()


def test_every_name_that_looks_like_a_lemma_is_one() -> None:
    named = {n for _, cell, _ in CLAIMS for n in re.findall(r"`(\w+)`", cell)}
    assert named - lemmas() <= {"attack_", "pose_", "Initiator", "handed", "rs"}


def test_each_claim_says_what_its_lemmas_say() -> None:
    proven = {name for name, result, _, seconds in RESULTS if result == "verified" and seconds}
    assert len(CLAIMS) > 25
    for claim, cell, result in CLAIMS:
        names = [n for n in re.findall(r"`(\w+)`", cell) if n in lemmas()]
        names += [
            n
            for prefix in re.findall(r"`(attack_|pose_)`", cell)
            for n in lemmas()
            if n.startswith(prefix) and "_" in n[7:]
        ]
        if result.startswith("verified"):
            assert names, claim
            assert set(names) <= proven, claim


def test_what_is_open_in_the_models_is_what_is_not_proven() -> None:
    unproven = {name for name, result, *_ in RESULTS if result != "verified"}
    marked: set[str] = set()
    for model in MODELS.glob("*.spthy"):
        marked |= read(model.read_text(), frozenset({"OPEN"})).lemmas.keys() - read(model.read_text()).lemmas.keys()
    assert unproven == marked


def test_a_verified_lemma_took_ten_minutes_at_most() -> None:
    for name, result, steps, seconds in RESULTS:
        if result == "verified":
            assert int(steps) > 0, name
            assert int(seconds) <= 600, name
