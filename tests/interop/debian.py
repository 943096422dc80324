"""A Debian 13 root folder with PQConnect in it, kept in the checkout's ignored directory .cache/.

apt fetches the packages with a configuration of its own (the machine's packages stay as they are) and checks the
archive's signature; dpkg unpacks them. No maintainer script runs. Needs apt and dpkg, Debian's archive keyring and an
apt source of Debian's from which the mirror is taken; PQTUN_DEBIAN_MIRROR names another one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "trixie"
PACKAGES = ("base-files", "libc-bin", "iptables", "python3-pqconnect")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CACHE = Path(__file__).resolve().parents[2] / ".cache"
# Debian's pqconnect package makes this user in its postinst; any free number does in a folder of our own.
USER_LINES = "root:x:0:0:root:/:/usr/sbin/nologin\npqconnect:x:990:990::/nonexistent:/usr/sbin/nologin\n"
GROUP_LINES = "root:x:0:\npqconnect:x:990:\n"

_FETCH_SECONDS = 600


class Unavailable(Exception):
    """The packages cannot be had on this machine; the text says why."""


def pqconnect_root() -> Path:
    """The root folder, built on the first call (about 25 MB are fetched). Unavailable if that does not work."""
    root = CACHE / f"pqconnect-{SUITE}"
    CACHE.mkdir(exist_ok=True)
    with _only_one(CACHE / f"pqconnect-{SUITE}.lock"):
        if not root.exists():
            _build(root)
    return root


def _build(root: Path) -> None:
    for tool in ("apt-get", "dpkg", "chroot"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing: this is no Debian machine")
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} is missing: install debian-archive-keyring")
    work = root.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    fresh, apt = work / "root", work / "apt"
    fresh.mkdir(parents=True)
    packages = _fetch(apt, _mirror())
    for package in packages:
        _run("dpkg", "-x", str(package), str(fresh))
    shutil.rmtree(apt)
    etc = fresh / "etc"
    (etc / "passwd").write_text(USER_LINES)
    (etc / "group").write_text(GROUP_LINES)
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    (etc / "resolv.conf").touch()
    for name in ("proc", "dev", "run", "tmp"):
        (fresh / name).mkdir(exist_ok=True)
    fresh.chmod(0o755)
    _run("chroot", str(fresh), "/sbin/ldconfig")
    fresh.rename(root)
    shutil.rmtree(work)


def _fetch(apt: Path, mirror: str) -> list[Path]:
    """Have apt bring the packages and all that they depend on; the archive files."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    settings = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferences": "-",
        "Dir::Etc::preferencesparts": "-",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # the cache is root's
        "APT::Update::Error-Mode": "any",
        "Acquire::Retries": "3",
        "Acquire::Languages": "none",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _run("apt-get", *options, "-qq", "update")
    _run("apt-get", *options, "-qq", "-y", "--download-only", "install", *PACKAGES)
    return sorted((apt / "cache/archives").glob("*.deb"))


def _mirror() -> str:
    """The Debian archive that this machine uses."""
    named = os.environ.get("PQTUN_DEBIAN_MIRROR")
    if named:
        return named
    form = "$(REPO_URI) $(LABEL)"
    listed = _run("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for line in listed.splitlines():
        uri, _, label = line.partition(" ")
        # The label is known only once the machine has run `apt-get update`.
        if label == "Debian" or (not label and uri.rstrip("/").endswith("/debian")):
            return uri
    raise Unavailable("this machine's apt has no source of Debian's; set PQTUN_DEBIAN_MIRROR")


def _run(*argv: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_FETCH_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{argv[0]} took more than {_FETCH_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(f"{argv[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Runs at the same time build it once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
