"""doc/verification.md names the lemmas that there are, and says of each claim what its lemmas' results are."""

import re
from pathlib import Path

import pytest

from tests.tamarin.models import MODELS, read
from tests.tamarin.test_run import run_tamarin

SECURITY = (Path(__file__).parents[2] / "doc/security.md").read_text()
DOCUMENT = (Path(__file__).parents[2] / "doc/verification.md").read_text()
RESULT = re.compile(r"^\| `(\w+)` \| (verified|not yet proven: [^|]+?) \|\s*(\d*)\s*\|\s*(\d*)\s*\|$", re.MULTILINE)
CLAIM = re.compile(r"\| (.+?) \| (.*) \| (verified, \d+ s|not yet proven[^|]*|stated) \|")


def lemmas() -> set[str]:
    return {
        name
        for model, flag in run_tamarin.RUNS
        for name in run_tamarin.lemmas_of_run((MODELS / f"{model}.spthy").read_text(), flag)
    }


def results(document: str) -> list[tuple[str, str, str, str]]:
    """Of each row of a lemma: its name, the result, steps and seconds."""
    return [(row[1], row[2], row[3], row[4]) for row in RESULT.finditer(document)]


def claims(document: str) -> list[str]:
    """The rows of the table of claims."""
    table = document[document.index("| claim | lemmas | result |") :]
    return table[: table.index("\n\n")].splitlines()[2:]


def families(prefix: str) -> tuple[str, ...]:
    """What a cell means by ``attack_``… or ``pose_``…: the lemmas of attacks.splib."""
    return ("attack_mceliece", "attack_k0") if prefix == "attack_" else (prefix,)


def outside_results(text: str) -> str:
    return text[: text.index("## Results")]


def test_every_lemma_has_one_row_and_every_row_a_lemma() -> None:
    names = [name for name, *_ in results(DOCUMENT)]
    assert len(names) == len(set(names))
    assert set(names) == lemmas()


def test_every_lemma_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", outside_results(DOCUMENT)))
    in_families = families("attack_") + families("pose_")
    assert {n for n in lemmas() - explained if not n.startswith(in_families)} == set()


def claim_differences(document: str) -> list[str]:
    """Claims whose result is not what their lemmas' rows say; and what is named there and is none."""
    there = lemmas()
    proven = {name for name, result, steps, seconds in results(document) if result == "verified" and steps and seconds}
    rules = {rule for model in MODELS.glob("*.spthy") for rule in read(model.read_text()).rules}
    words = {word for name in there for word in name.split("_")}
    found = []
    for row in claims(document):
        parts = CLAIM.fullmatch(row)
        if parts is None:
            found.append(f"no claim: {row}")
            continue
        _, cell, result = parts.groups()
        named = set(re.findall(r"`(\w+)`", cell))
        meant = named & there
        for number, prefix in re.findall(r"(\d+) lemmas `(attack_|pose_)`", cell):
            family = {name for name in there if name.startswith(families(prefix))}
            meant |= family
            named.discard(prefix)
            if len(family) != int(number):
                found.append(f"{len(family)} lemmas {prefix}: {row}")
        found += [f"no lemma {name}: {row}" for name in named - there - rules - words]
        if result == "stated":
            right = not meant
        elif result.startswith("verified"):
            right = bool(meant) and meant <= proven
        else:
            right = bool(meant - proven)
        if not right:
            found.append(f"{sorted(meant - proven)}: {row}")
    return found


def test_each_claim_says_what_its_lemmas_say() -> None:
    assert len(claims(DOCUMENT)) > 25
    assert claim_differences(DOCUMENT) == []


VERIFIED = r"verified(, \d+ s)?"


@pytest.mark.parametrize(
    ("row", "new"),
    [
        ("| `secret_by_static` | ", "not yet proven: 600 s were not enough"),
        ("| `attack_k0_e_k3` | ", "not yet proven: no trace in 600 s"),
        ("| the same, seen by the server |", "not yet proven"),
        ("| the same, seen by the server |", "stated"),
        ("| the same, seen by the server |", "true"),
        ("| these four are all there is", "not yet proven: one of them"),
    ],
)
def test_a_claim_with_another_result_is_found(row: str, new: str) -> None:
    (line,) = (line for line in DOCUMENT.splitlines() if line.startswith(row))
    assert claim_differences(DOCUMENT.replace(line, re.sub(VERIFIED, new, line)))


def test_an_unproven_claim_says_so() -> None:
    changed = DOCUMENT
    for row in ("| `secret_at_server` | ", "| the same, seen by the server |"):
        (line,) = (line for line in DOCUMENT.splitlines() if line.startswith(row))
        changed = changed.replace(line, re.sub(VERIFIED, "not yet proven: 600 s were not enough", line))
    assert claim_differences(changed) == claim_differences(DOCUMENT)


def first_cells(table: str) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][1:]


def test_each_row_of_security_md_has_its_lemmas() -> None:
    who, broken = SECURITY.split("\n\n|")[1:3]
    rows = DOCUMENT[DOCUMENT.index("| row | lemmas") :].split("\n\n")[0]
    assert first_cells(rows) == [*first_cells(f"|{who}"), *first_cells(f"|{broken}")]
    named = {name for name in re.findall(r"`(\w+)`", rows) if "_" in name.rstrip("_")}
    assert named - lemmas() <= {"session_key", "secret_by_", "forged_packets_"}


def test_a_verified_lemma_took_ten_minutes_at_most() -> None:
    for name, result, steps, seconds in results(DOCUMENT):
        if result == "verified":
            assert int(steps) > 0, name
            assert int(seconds) <= 600, name


def test_what_was_proven_are_the_models_as_they_are() -> None:
    section = DOCUMENT[DOCUMENT.index("## Results") :]
    recorded = re.search(r"<!-- texts -->\n(.*?)<!-- end -->", section, re.DOTALL)
    lines = re.findall(r"^\s*([\w+]+ [0-9a-f]{64})$", recorded[1] if recorded else "", re.MULTILINE)
    assert lines == run_tamarin.texts(), "prove again, then put the lines of scripts/run-tamarin --text there"
