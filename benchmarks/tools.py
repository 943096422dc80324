"""The programs that pqtun is measured with, fetched or built on first use into the checkout's ignored .cache/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.interop.debian import CACHE, Unavailable

ROOT = Path(__file__).resolve().parents[1]
WIREGUARD_GO_SUITE = "sid"
BORINGTUN = "0.7.1"
NULL_CIPHER = "PQTUN_NULL_CIPHER"
_BUILD_SECONDS = 900


def wireguard_go() -> Path:
    """wireguard-go of Debian sid, unpacked beside the system's packages, none of which changes."""
    root = CACHE / f"wireguard-go-{WIREGUARD_GO_SUITE}"
    program = root / "usr/bin/wireguard-go"
    if not program.exists():
        work = root.with_suffix(".new")
        shutil.rmtree(work, ignore_errors=True)
        _run(str(ROOT / "scripts/fetch-debs"), WIREGUARD_GO_SUITE, str(work / "debs"), "wireguard-go")
        for package in (work / "debs").glob("*.deb"):
            _run("dpkg", "-x", str(package), str(work / "root"))
        shutil.rmtree(root, ignore_errors=True)
        (work / "root").rename(root)
        shutil.rmtree(work)
    _run(str(program), "--version")
    return program


def boringtun() -> Path:
    """boringtun-cli, built by cargo with the lock file that it was published with."""
    root = CACHE / f"boringtun-{BORINGTUN}"
    program = root / "bin/boringtun-cli"
    if not program.exists():
        places = ["--root", str(root), "--target-dir", str(root / "build")]
        _cargo("install", "boringtun-cli", "--version", BORINGTUN, "--locked", *places)
        shutil.rmtree(root / "build")
    return program


def load_tool() -> Path:
    """benchmarks/load, built if it is not or has changed."""
    target = CACHE / "load"
    manifest = ROOT / "benchmarks/load/Cargo.toml"
    _cargo("build", "--release", "--locked", "--manifest-path", str(manifest), "--target-dir", str(target))
    return target / "release/pqtun-load"


def null_cipher() -> Mapping[str, str]:
    """The environment in which `python -m pqtun` is this checkout with a native engine that does not encrypt.

    The engine is built a second time, with a feature that no installation has, and put into a tree of symbolic links
    beside the rest of the package; it refuses to work without the environment variable.
    """
    target = CACHE / "null-cipher"
    manifest = ROOT / "native/Cargo.toml"
    if not manifest.exists() or "null-cipher" not in manifest.read_text():
        raise Unavailable("native/ has no feature null-cipher")
    feature = ("--features", "null-cipher", "--target-dir", str(target / "build"))
    _cargo("build", "--release", "--locked", "--manifest-path", str(manifest), *feature)
    tree = target / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    pump = tree / "pqtun/pump"
    pump.mkdir(parents=True)
    for source, place in ((ROOT / "pqtun", tree / "pqtun"), (ROOT / "pqtun/pump", pump)):
        for entry in source.iterdir():
            if entry.name not in ("pump", "__pycache__") and not entry.name.startswith("_native"):
                (place / entry.name).symlink_to(entry)
    shutil.copy(target / "build/release/lib_native.so", pump / "_native.abi3.so")
    # Safe path: the current directory, which holds the other engine, does not come first.
    return {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1", NULL_CIPHER: "1"}


def _cargo(*arguments: str) -> None:
    cargo = shutil.which("cargo")
    if cargo is None:
        raise Unavailable("cargo is missing")
    _run(cargo, *arguments)


def _run(*argv: str) -> None:
    CACHE.mkdir(exist_ok=True)
    if "cargo" in argv[0]:
        print(f"building: {' '.join(argv[1:4])}", file=sys.stderr)
    environment = {**os.environ, "LC_ALL": "C", "CARGO_TERM_QUIET": "true"}
    environment.pop("CARGO_TARGET_DIR", None)
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_BUILD_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{argv[0]} took more than {_BUILD_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        raise Unavailable(f"{argv[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
