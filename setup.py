"""Builds the native packet engine (native/) with the package where there is cargo; the rest is in pyproject.toml.

Where it cannot be built one line says so, and the package has the Python engine alone. PQTUN_NATIVE=yes makes that an
error, PQTUN_NATIVE=no leaves the native engine out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CompileError
from setuptools_rust import Binding, RustExtension, Strip
from setuptools_rust.build import build_rust

MANIFEST = Path("native/Cargo.toml")
NEED = tomllib.loads(MANIFEST.read_text())["package"]["rust-version"]  # as "1.85"
WANTED = os.environ.get("PQTUN_NATIVE", "auto")


def version(program: str | Path) -> tuple[int, ...]:
    """What a program of Rust's tools says of its version; (0,) where there is none."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    found = re.match(r"\S+ (\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0,)


def missing_tools() -> str | None:
    """Put cargo and the rustc beside it into the environment; return what is wrong with them, or None."""
    cargo = os.environ.get("CARGO") or shutil.which("cargo") or Path.home() / ".cargo" / "bin" / "cargo"
    os.environ["CARGO"] = str(cargo)
    os.environ["PATH"] = f"{Path(cargo).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    need = tuple(map(int, NEED.split(".")))
    for program in (cargo, os.environ.get("RUSTC", "rustc")):
        have = version(program)
        if have == (0,):
            return f"there is no {Path(program).name}"
        if have < need:
            return f"{program} is {'.'.join(map(str, have))}, too old"
    return None


def without(reason: str, hint: str = "") -> None:
    """Go on without the native engine, or raise BaseError where it is wanted."""
    if WANTED == "yes":
        raise BaseError(f"the native engine cannot be built: {reason}")
    print(f"pqtun: warning: {reason}; only the slower Python engine gets installed{hint}", file=sys.stderr)


class BuildPython(build_py):
    """Says at the one moment of a build when a person can hear it what is left out."""

    def run(self) -> None:
        if FAULT is not None:
            debian = "in Debian 13 the package cargo, in Debian 12 cargo-web"
            without(FAULT, f" (the native one needs cargo and rustc {NEED}, {debian})")
        super().run()


class BuildNative(build_rust):
    """Compiles; the compiler's own words stand before ours if that fails."""

    def run(self) -> None:
        self.verbose = 0  # else cargo prints each command of the compiler
        try:
            super().run()
        except (BaseError, CompileError, subprocess.SubprocessError, OSError):
            # One of an earlier build would not fit the Python side.
            Path(self.get_dylib_ext_path(NATIVE, NATIVE.name)).unlink(missing_ok=True)
            without("cargo failed, as it says above")


if WANTED not in ("auto", "yes", "no"):
    raise SystemExit(f"PQTUN_NATIVE={WANTED}: write auto, yes or no")
FAULT = missing_tools() if WANTED != "no" else None
NATIVE = RustExtension(
    "pqtun.pump._native",
    path=str(MANIFEST),
    binding=Binding.PyO3,
    py_limited_api=True,
    debug=False,
    strip=Strip.No,  # Cargo.toml says what is stripped
    cargo_manifest_args=["--locked"],
)
setup(
    rust_extensions=[] if WANTED == "no" or FAULT is not None else [NATIVE],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    cmdclass={"build_py": BuildPython, "build_rust": BuildNative},
)
