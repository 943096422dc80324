"""scripts/run-tamarin: what it makes of the prover's outputs (recorded from 1.10.0), and of a missing prover."""

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.process import wait_until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/run-tamarin"
INSTALL = ROOT / "scripts/install-tamarin"
RECORDED = Path(__file__).parent / "recorded"


def _load() -> ModuleType:
    loader = SourceFileLoader("run_tamarin", str(SCRIPT))
    spec = importlib.util.spec_from_loader("run_tamarin", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_tamarin"] = module
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


run_tamarin = _load()


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def test_verified() -> None:
    found = run_tamarin.outcome(recorded("verified"), "old_epochs")
    assert (found.proven, found.steps) == (True, 15)


def test_a_lemma_that_was_not_asked_for_is_not_proven() -> None:
    found = run_tamarin.outcome(recorded("verified"), "used_keys")
    assert not found.proven
    assert "incomplete" in found.result


@pytest.mark.parametrize("lemma", ["never", "cannot"])
def test_falsified(lemma: str) -> None:
    found = run_tamarin.outcome(recorded("falsified"), lemma)
    assert found.result == "falsified"
    assert not found.proven


@pytest.mark.parametrize(
    ("name", "result", "steps"), [("equivalent", "verified", 4254), ("different", "falsified", 12)]
)
def test_two_worlds(name: str, result: str, steps: int) -> None:
    found = run_tamarin.outcome(recorded(name), run_tamarin.EQUIVALENCE)
    assert (found.result, found.steps) == (result, steps)
    cut = recorded(name)[: recorded(name).index("DiffLemma:  ")]
    assert not run_tamarin.outcome(cut, run_tamarin.EQUIVALENCE).proven


def test_a_warning_is_no_proof() -> None:
    text = recorded("warning")
    assert "secret_by_static (all-traces): verified" in text
    assert not run_tamarin.outcome(text, "secret_by_static").proven


@given(st.integers(min_value=0, max_value=len(recorded("verified"))))
def test_a_cut_output_is_no_proof_unless_the_line_is_whole(cut: int) -> None:
    text = recorded("verified")[:cut]
    whole = "old_epochs (all-traces): verified" in text
    assert run_tamarin.outcome(text, "old_epochs").proven == whole


def test_versions() -> None:
    assert run_tamarin.versions(recorded("version")) == ((1, 10, 0), (3, 4))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("tamarin-prover 1.10.0", "tamarin-prover 1.6.1", "too old"),
        ("Maude version 3.4", "Maude version 2.7.1", "too old"),
        ("tamarin-prover 1.10.0", "something else", "version"),
    ],
)
def test_other_versions_are_refused(old: str, new: str, word: str) -> None:
    text = recorded("version")
    assert old in text
    with pytest.raises(run_tamarin.Missing, match=word):
        run_tamarin.versions(text.replace(old, new))


def test_lemmas_of_flags() -> None:
    text = 'lemma a: "T"\n#ifdef F\nlemma b: "T"\n#else\nlemma c: "T"\n#endif\n'
    assert run_tamarin.lemmas_of_run(text, "") == ["a", "c"]
    assert run_tamarin.lemmas_of_run(text, "F") == ["b"]


def test_a_model_of_two_worlds_has_their_equivalence_and_the_prover_is_told(tmp_path: Path) -> None:
    text = 'rule A: [ Fr(~a) ] --> [ Out(diff(~a, ~a)) ]\nlemma a: "T"\n'
    assert run_tamarin.lemmas_of_run(text, "") == ["a", run_tamarin.EQUIVALENCE]
    assert run_tamarin.lemmas_of_run(text, "F") == []
    environment = prover(tmp_path, f'echo "$@" > {tmp_path}/arguments; cat {RECORDED}/equivalent.txt')
    done = run(environment, "unlinkable")
    assert done.returncode == 0, done.stdout
    assert f"ok   unlinkable {run_tamarin.EQUIVALENCE}: verified, 4254 steps, " in done.stdout
    assert "--diff" in (tmp_path / "arguments").read_text().split()
    run(prover(tmp_path, f'echo "$@" > {tmp_path}/arguments'), "schedule", "old_epochs")
    assert "--diff" not in (tmp_path / "arguments").read_text().split()


def test_without_arguments_each_lemma_is_proven_once() -> None:
    plain = list(run_tamarin.plan(run_tamarin.parse([])))
    assert {flag for _, flag, _ in plain} == {"", "REPLAY_CACHE"}
    assert len({lemma for _, _, lemma in plain}) == len(plain)
    flagged = [task for flag in ("", "REPLAY_CACHE") for task in run_tamarin.plan(run_tamarin.parse([f"-D={flag}"]))]
    assert sorted(flagged) == sorted(plain)


def prover(directory: Path, body: str) -> dict[str, str]:
    """An environment whose prover is a shell script that gives its version and then does ``body``."""
    script = directory / "prover"
    script.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then cat {RECORDED}/version.txt; exit; fi\n{body}\n')
    script.chmod(0o755)
    return {**os.environ, "TAMARIN": str(script)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_one_line_a_lemma_and_exit_code(tmp_path: Path) -> None:
    environment = prover(tmp_path, f"cat {RECORDED}/verified.txt")
    done = run(environment, f"--keep={tmp_path}/kept", "schedule", "old_epochs")
    assert done.returncode == 0, done.stderr
    assert "ok   schedule old_epochs: verified, 15 steps, " in done.stdout
    assert (tmp_path / "kept/schedule.old_epochs.txt").read_text() == recorded("verified")
    failed = run(environment, "schedule", "old_epochs", "key_known")
    assert failed.returncode == 1
    assert "FAIL schedule key_known: no answer" in failed.stdout
    assert failed.stdout.endswith("1 of 2 proven\n")


def test_the_time_limit_ends_the_prover_and_what_it_started(tmp_path: Path) -> None:
    environment = prover(tmp_path, f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    done = run(environment, "--seconds=1", "schedule", "old_epochs")
    assert done.returncode == 1
    assert "1 s were not enough" in done.stdout
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_whoever_ends_it_ends_the_prover(tmp_path: Path) -> None:
    environment = prover(
        tmp_path, f"echo $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600"
    )
    with subprocess.Popen([SCRIPT, "schedule", "old_epochs"], env=environment, stdout=subprocess.DEVNULL) as process:
        wait_until((tmp_path / "pid").exists, 10, "the prover")
        process.terminate()
        assert process.wait(10) == 143
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z", 10, "its end")


def test_wrong_use(tmp_path: Path) -> None:
    environment = prover(tmp_path, "exit 1")
    for arguments in (["nothing"], ["schedule", "no_such_lemma"], ["--what"], ["--jobs=0"], ["--seconds=x"]):
        done = run(environment, *arguments)
        assert (done.returncode, done.stdout) == (64, ""), arguments
        assert done.stderr.count("\n") == 1


def test_without_the_prover_it_says_what_to_do() -> None:
    done = run({**os.environ, "TAMARIN": "/nowhere/tamarin-prover"}, "schedule")
    assert done.returncode == 2
    assert "scripts/install-tamarin" in done.stderr


def tools(directory: Path, *names: str) -> dict[str, str]:
    """A PATH with nothing but what the installer itself needs and commands of these names, which do nothing."""
    for name in ("bash", "sed", "sort", "head", "cat", "id", "dirname"):
        (directory / name).symlink_to(Path("/usr/bin") / name)
    for name in names:
        (directory / name).write_text("#!/bin/bash\nexit 0\n")
        (directory / name).chmod(0o755)
    return {"PATH": str(directory)}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("brew", "+ brew install tamarin-prover/tap/tamarin-prover"),
        ("pacman", "+ pacman -S --needed --noconfirm tamarin-prover maude"),
        ("nix-env", "+ nix-env -iA nixpkgs.tamarin-prover nixpkgs.maude"),
    ],
)
def test_the_installer_takes_what_is_there(tmp_path: Path, command: str, said: str) -> None:
    environment = tools(tmp_path, command)
    done = subprocess.run(
        ["/bin/bash", INSTALL, "--dry-run"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, said)


def test_the_installer_says_what_to_do_where_nothing_helps(tmp_path: Path) -> None:
    done = subprocess.run(["/bin/bash", INSTALL], env=tools(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for word in ("Homebrew", "Nix", "Arch", "docker", "TAMARIN=COMMAND"):
        assert word in done.stderr


def test_the_installer_leaves_a_good_prover_alone(tmp_path: Path) -> None:
    environment = tools(tmp_path, "brew")
    (tmp_path / "tamarin-prover").write_text(f"#!/bin/bash\ncat {RECORDED}/version.txt\n")
    (tmp_path / "tamarin-prover").chmod(0o755)
    done = subprocess.run(["/bin/bash", INSTALL], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "tamarin-prover 1.10.0, Maude 3.4\n")


def test_the_installer_does_not_take_an_old_prover_for_installed(tmp_path: Path) -> None:
    environment = tools(tmp_path, "brew")
    (tmp_path / "tamarin-prover").write_text(f"#!/bin/bash\nsed s/1.10.0/1.6.1/ {RECORDED}/version.txt\n")
    (tmp_path / "tamarin-prover").chmod(0o755)
    done = subprocess.run(["/bin/bash", INSTALL], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1.8 or later" in done.stderr
