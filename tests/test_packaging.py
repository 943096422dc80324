"""What is shipped beside the code: metadata, lock files, units, sample settings, scripts."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import pqtun
from pqtun.daemon import settings

ROOT = Path(__file__).parent.parent
UNITS = sorted((ROOT / "misc").glob("*.service"))
LOCKS = sorted(ROOT.glob("requirements*.lock"))
SAMPLE = ROOT / "misc" / "pqtun.toml"
MAX_LINES = 500
OWN_TEXT = {".py", ".rs", ".md", ".toml", ".service", ".lock", ".sh", ".cfg", ".yml", ".yaml", ".json", ""}


def own_files() -> list[Path]:
    """All files of the repository, found in the working tree, so that this holds in an unpacked archive too."""
    rooms = [ROOT / name for name in ("pqtun", "native", "tests", "benchmarks", "doc", "misc", "scripts", ".ci")]
    files = [*ROOT.iterdir(), *(file for room in rooms for file in room.rglob("*"))]
    built = {"__pycache__", ".hypothesis", "target"}
    return [file for file in files if file.is_file() and not built & set(file.parts)]


def test_version() -> None:
    assert metadata.version("pqtun") == pqtun.__version__


def test_console_script() -> None:
    (script,) = metadata.distribution("pqtun").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("pqtun", "pqtun.cli.main:main")
    assert callable(script.load())
    program = Path(sys.executable).with_name("pqtun")
    help_text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, timeout=30).stdout
    for command in ("keygen", "announce", "server", "client", "sshd", "check", "status"):
        assert command in help_text


def test_no_long_files() -> None:
    lines = {file: len(file.read_bytes().splitlines()) for file in own_files() if file.suffix in {".py", ".rs", ".sh"}}
    assert len(lines) > 20
    assert {str(file): count for file, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("host", ["py" + "pi.org", "pythonhosted" + ".org", "deb.debian" + ".org", "crates" + ".io"])
def test_no_registry_is_named(host: str) -> None:
    # Cargo itself writes the name of its registry into its lock files.
    text = [file for file in own_files() if file.suffix in OWN_TEXT and file.name != "Cargo.lock"]
    assert len(text) > 20
    assert [str(file) for file in text if host.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_locks_are_exact(lock: Path) -> None:
    requirements = re.sub(r"\\\n", "", lock.read_text())
    lines = [line for line in requirements.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_locks_agree_with_each_other_and_with_the_metadata() -> None:
    pinned = [dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE)) for lock in LOCKS]
    for one in pinned:
        for other in pinned:
            assert {name: other[name] for name in one.keys() & other} == {
                name: one[name] for name in one.keys() & other
            }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = [
        *project["project"]["dependencies"],
        *groups["build"],
        *groups["dev"],
        *project["build-system"]["requires"],
    ]
    names = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in wanted}
    assert names - set().union(*pinned) == set()


def test_sample_settings_change_nothing() -> None:
    assert tomllib.loads(SAMPLE.read_text()) == {"client": {}, "server": {}, "sshd": {}}


@pytest.mark.parametrize("section", settings.SECTIONS)
def test_sample_settings_are_all_options_at_their_defaults(tmp_path: Path, section: str) -> None:
    config = tmp_path / "pqtun.toml"
    config.write_text(re.sub(r"^#(?=[a-z0-9_]+ = )", "", SAMPLE.read_text(), flags=re.MULTILINE))
    loaded, named = settings.load(section, config, {})
    defaults = settings.SECTIONS[section]()
    assert set(named) == set(settings.option_names(settings.SECTIONS[section]))
    for option in named - {"deliver_to"}:  # its default is another option's value
        assert getattr(loaded, option) == getattr(defaults, option)


def test_all_units_are_there() -> None:
    assert [unit.name for unit in UNITS] == ["pqtun-client.service", "pqtun-server.service", "pqtun-sshd.service"]
    for unit in UNITS:
        parsed = configparser.ConfigParser(strict=False, interpolation=None)
        parsed.read(unit)
        side = unit.stem.removeprefix("pqtun-")
        assert parsed["Service"]["ExecStart"].split()[:2] == ["/usr/local/bin/pqtun", side]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_verify(tmp_path: Path, unit: Path) -> None:
    # The program need not be installed where the tests run: any that exists stands in for it.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/usr/local/bin/pqtun", sys.executable))
    result = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize(
    "script",
    sorted({*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"} - {ROOT / "scripts" / "__pycache__"}),
    ids=lambda path: path.name,
)
def test_scripts_parse(script: Path) -> None:
    first = script.read_text().partition("\n")[0]
    if script.suffix == ".py" or "python" in first:
        compile(script.read_text(), str(script), "exec")
    else:
        assert script.stat().st_mode & 0o111, f"{script} is not executable"
        subprocess.run(["bash" if "bash" in first else "sh", "-n", script], check=True, timeout=10)
