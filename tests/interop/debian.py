"""Root folders of Debian suites with some packages in them, kept in the checkout's ignored directory .cache/.

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
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CACHE = Path(__file__).resolve().parents[2] / ".cache"

_FETCH_SECONDS = 600


class Unavailable(Exception):
    """The packages cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Folder:
    """What a root folder is made of: .cache/NAME-SUITE holds the packages of the suite and all that they depend on."""

    name: str
    suite: str
    packages: tuple[str, ...]
    users: str = ""  # lines of its passwd(5) beside root's
    groups: str = ""

    def root(self) -> Path:
        """The folder, built on the first call (some 30 MB are fetched). Unavailable if that does not work."""
        root = CACHE / f"{self.name}-{self.suite}"
        CACHE.mkdir(exist_ok=True)
        with _only_one(root.with_name(f"{root.name}.lock")):
            if not root.exists():
                _build(self, root)
        return root


PQCONNECT = Folder(
    "pqconnect",
    "trixie",
    ("base-files", "libc-bin", "iptables", "python3-pqconnect"),
    # Debian's package makes this user in its postinst; any free number does in a folder of our own.
    users="pqconnect:x:990:990::/nonexistent:/usr/sbin/nologin\n",
    groups="pqconnect:x:990:\n",
)
_LOGIN = ("base-files", "libc-bin", "bash", "coreutils", "dash", "openssh-sftp-server", "rsync")
# What Debian 12 has of SSH is older than post-quantum signatures, and what Debian 13 has of them was not final.
OPENSSH = Folder("openssh", "sid", (*_LOGIN, "openssh-client", "openssh-server"))
TINYSSH = Folder("tinyssh", "trixie", (*_LOGIN, "tinysshd"))


def _build(folder: Folder, root: Path) -> None:
    for tool in ("apt-get", "dpkg", "chroot"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is missing: this is no Debian machine")
    if not KEYRING.exists():
        raise Unavailable(f"{KEYRING} is missing: install debian-archive-keyring")
    work = root.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    fresh, apt = work / "root", work / "apt"
    fresh.mkdir(parents=True)
    for package in _fetch(folder, apt, _mirror()):
        _run("dpkg", "-x", str(package), str(fresh))
    shutil.rmtree(apt)
    etc = fresh / "etc"
    (etc / "passwd").write_text(f"root:x:0:0:root:/root:/bin/sh\n{folder.users}")
    (etc / "group").write_text(f"root:x:0:\n{folder.groups}")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name in ("resolv.conf", "shadow"):
        (etc / name).touch()
    for name in ("proc", "dev", "run", "tmp"):
        (fresh / name).mkdir(exist_ok=True)
    fresh.chmod(0o755)
    _run("chroot", str(fresh), "/sbin/ldconfig")
    fresh.rename(root)
    shutil.rmtree(work)


def _fetch(folder: Folder, apt: Path, mirror: str) -> list[Path]:
    """Have apt bring the packages and all that they depend on; the archive files."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {folder.suite} main\n")
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
        # A mirror that is behind will do: these packages are tested with, not run. Signatures are checked all the same.
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _run("apt-get", *options, "-qq", "update")
    _run("apt-get", *options, "-qq", "-y", "--download-only", "install", *folder.packages)
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
