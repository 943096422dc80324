"""scripts/run-tamarin --text: which text a proof is of, whatever its comments and white space."""

import subprocess
from pathlib import Path

import pytest

from tests.tamarin.models import MODELS
from tests.tamarin.test_run import SCRIPT, run_tamarin

TEXT = """theory x begin
/* 'of' what // is */
builtins: hashing // "it's"
#ifdef F
rule A: [ Fr(~a) ] --> [ Out(<~a, '//', 'a b'>) ] // F
#else
rule B: [ ] --> [ ]
#endif
lemma l: "Ex #i. K('/*') @ i"
end
"""


def digest(text: str, flag: str = "F", folder: Path = MODELS) -> str:
    found: str = run_tamarin.digest(text, flag, folder)
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("theory x begin", "theory   x\n\n\tbegin"),
        ("/* 'of' what // is */", "/* something 'else\n\nover lines */ // and this"),
        ("""// "it's\"""", ""),
        (" // F", ""),
        ("<~a, '//', 'a b'>", "< ~a,'//' , 'a b' >"),
        ("rule B", "rule C"),
    ],
)
def test_comments_white_space_and_other_flags_do_not_count(old: str, new: str) -> None:
    assert old in TEXT
    assert digest(TEXT.replace(old, new)) == digest(TEXT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("theory x", "theory xx"),
        ("'//'", "'/ /'"),
        ("'a b'", "'a  b'"),
        ("Fr(~a)", "Fr(a)"),
        ("K('/*')", "K('*/')"),
        ("@ i", "@i2"),
        ("#ifdef F", "#ifdef G"),
        ("lemma l", "lemma l[reuse]"),
    ],
)
def test_all_else_does(old: str, new: str) -> None:
    assert old in TEXT
    assert digest(TEXT.replace(old, new)) != digest(TEXT)


def test_flags_have_texts_of_their_own() -> None:
    assert digest(TEXT, "") != digest(TEXT, "F")
    assert digest(TEXT, "") == digest(TEXT, "G")


def test_what_is_included_counts(tmp_path: Path) -> None:
    (tmp_path / "more").write_text("#ifdef F\nlemma m: exists-trace\n#endif\n")
    text = '#include "more"\n'
    assert digest(text, "F", tmp_path) == digest("lemma m: exists-trace", "F")
    assert digest(text, "", tmp_path) == digest("", "")


def test_there_is_a_line_for_each_run() -> None:
    done = subprocess.run([SCRIPT, "--text"], capture_output=True, text=True, timeout=60, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    names = [f"{model}+{flag}" if flag else model for model, flag in run_tamarin.RUNS]
    assert [name for name, _ in lines] == sorted(names)
    assert {len(digest) for _, digest in lines} == {64}
    assert len({digest for _, digest in lines}) == len(lines)
