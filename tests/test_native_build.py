"""setup.py: the native engine where it can be built, the Python engine alone and one line where not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILT = [
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "pqtun",
    "native",
    "misc",
    "scripts",
    "doc",
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what the package is built from."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in BUILT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("target", "__pycache__", "*.so"))
        else:
            shutil.copy(source, copy)
    for lock in ROOT.glob("requirements*.lock"):
        shutil.copy(lock, copy)
    return copy


def build(project: Path, what: str, **environment: str) -> tuple[Path | None, str]:
    """Build a wheel or an sdist as pip does, with only the programs in bin/; the file, if any, and what was said."""
    out = project.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (project.parent / "bin").mkdir(exist_ok=True)
    program = f"import sys; from setuptools import build_meta; build_meta.build_{what}(sys.argv[1])"
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("CARGO", "RUST", "PQTUN", "PYTHON"))
    }
    clean |= {"PATH": str(project.parent / "bin"), "HOME": str(project.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", program, out], cwd=project, env=clean, capture_output=True, text=True, timeout=120
    )
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == any(out.iterdir()), said
    return next(out.iterdir(), None), said


def programs(project: Path, **versions: str) -> None:
    """Put programs into bin/ that know their version and can do nothing else."""
    for name, version in versions.items():
        program = project.parent / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            "#!/bin/sh\n"
            f'case "$1" in -V | --version) echo "{name} {version}" ;; --print) echo {project.parent} ;; '
            '*) echo "error: broken" >&2; exit 1 ;; esac\n'
        )
        program.chmod(0o755)


def warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if "pqtun:" in line]


def has_native(wheel: Path | None) -> bool:
    assert wheel is not None
    names = zipfile.ZipFile(wheel).namelist()
    assert "pqtun/pump/python.py" in names
    return any(name.startswith("pqtun/pump/_native") for name in names if name.endswith(".so"))


@pytest.mark.skipif(os.environ.get("PQTUN_NATIVE") == "no", reason="set up with PQTUN_NATIVE=no")
def test_the_module_is_there_for_every_python() -> None:
    spec = importlib.util.find_spec("pqtun.pump._native")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).name == "_native.abi3.so"


def test_without_cargo(project: Path) -> None:
    wheel, said = build(project, "wheel")
    (warning,) = warnings(said)
    assert warning.startswith("pqtun: warning: there is no cargo; only the slower Python engine gets installed")
    assert "Traceback" not in said
    assert not has_native(wheel)
    assert wheel is not None
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"cargo": "0.66.0", "rustc": "1.63.0"}, "cargo is 0.66, too old"),
        ({"cargo": "1.99.0", "rustc": "1.63.0"}, "rustc is 1.63, too old"),
        ({"cargo": "1.99.0"}, "there is no rustc"),
        ({"cargo": "1.99.0", "rustc": "1.99.0"}, "cargo failed"),
    ],
)
def test_with_a_compiler_that_will_not_do(project: Path, versions: dict[str, str], reason: str) -> None:
    programs(project, **versions)
    wheel, said = build(project, "wheel")
    (warning,) = warnings(said)
    assert reason in warning
    assert "Traceback" not in said
    assert not has_native(wheel)


def test_a_module_of_an_earlier_build_is_not_packed(project: Path) -> None:
    programs(project, cargo="1.99.0", rustc="1.99.0")
    build(project, "wheel")
    (library,) = (project / "build").glob("lib.*")
    for stale in (library / "pqtun/pump/_native.abi3.so", project / "pqtun/pump/_native.abi3.so"):
        stale.write_bytes(b"old")
    assert not has_native(build(project, "wheel")[0])


def test_what_is_wanted_decides(project: Path) -> None:
    wheel, said = build(project, "wheel", PQTUN_NATIVE="yes")
    assert wheel is None
    assert "the native engine cannot be built: there is no cargo" in said
    programs(project, cargo="1.99.0", rustc="1.99.0")
    wheel, said = build(project, "wheel", PQTUN_NATIVE="yes")
    assert wheel is None
    assert "error: broken" in said
    wheel, said = build(project, "wheel", PQTUN_NATIVE="no")
    assert not warnings(said)
    assert not has_native(wheel)
    wheel, said = build(project, "wheel", PQTUN_NATIVE="maybe")
    assert wheel is None
    assert "write auto, yes or no" in said


def test_the_source_archive_has_what_cargo_needs(project: Path) -> None:
    archive, _ = build(project, "sdist")
    assert archive is not None
    names = {name.partition("/")[2] for name in tarfile.open(archive).getnames()}
    crate = {str(file.relative_to(project)) for file in (project / "native").rglob("*") if file.is_file()}
    assert {"native/Cargo.toml", "native/Cargo.lock", "native/src/lib.rs"} <= crate <= names
    assert {"setup.py", "pyproject.toml", "misc/pqtun.toml", "scripts/install", "requirements.lock"} <= names


def test_the_crate_and_the_documents_agree() -> None:
    need = tomllib.loads((ROOT / "native" / "Cargo.toml").read_text())["package"]["rust-version"]
    assert f"Rust {need}" in (ROOT / "doc" / "user.md").read_text()


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({}, False),
        ({"cargo": "0.66.0", "rustc": "1.63.0"}, False),
        ({"cargo": "1.99.0"}, False),
        ({"cargo": "1.100.0", "rustc": "1.100.0"}, True),
    ],
)
def test_find_cargo(project: Path, versions: dict[str, str], found: bool) -> None:
    """scripts/find-cargo, with the system's own programs but for cargo and rustc."""
    programs(project, **versions)
    tools = project.parent / "tools"
    tools.mkdir()
    for name in ("sh", "sed", "dirname", "cut", "sort", "head", "getent"):
        program = shutil.which(name)
        assert program is not None
        (tools / name).symlink_to(program)
    environment = {"PATH": f"{project.parent / 'bin'}:{tools}", "HOME": str(project.parent)}
    done = subprocess.run([project / "scripts/find-cargo"], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode == 0) == found, done.stderr
    assert done.stdout.strip() == (str(project.parent / "bin" / "cargo") if found else "")
    assert done.stderr.startswith("pqtun: no cargo >= ") != found
