"""The rooms use only those below them: the contracts of import-linter in pyproject.toml hold, and do catch a breach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-logo", "--no-cache", "--config", root / "pyproject.toml"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("protocol", "from pqtun import keys"),
        ("keys", "from pqtun import daemon"),
        ("dns", "from pqtun import pump"),
        ("pump", "from pqtun import keyserver"),
        ("daemon", "from pqtun import cli"),
        ("protocol", "import socket"),
        ("protocol", "import time"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(ROOT / "pqtun", tmp_path / "pqtun", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "pqtun" / module / "breach.py").write_text(f"{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode != 0, result.stdout
    assert "BROKEN" in result.stdout, result.stdout + result.stderr


def test_a_room_outside_the_layers_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pqtun", tmp_path / "pqtun", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "pqtun" / "attic").mkdir()
    (tmp_path / "pqtun" / "attic" / "__init__.py").touch()
    assert lint_imports(tmp_path).returncode != 0
