"""Whether a server's host key is the right one.

Inside a tunnel the server has proved its key hash already: its host key is taken at first sight and kept under the
hash; another one under the same hash is refused. Elsewhere the rules are those of ssh(1) for known_hosts.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pqtun.protocol.errors import UserError
from pqtun.shell.client import known_hosts
from pqtun.shell.client.config import PORT, Config
from pqtun.shell.client.ui import UserInterface

STORE: Final = "~/.ssh/pqtun_known_hosts"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class HostKeyError(UserError):
    """The host key is not accepted; the text is what ssh's users know, several lines were said before."""


@dataclass(frozen=True)
class HostKey:
    """A public key. ``algorithm`` is that of the key; ``blob`` its SSH encoding."""

    algorithm: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """SHA256:… as ssh-keygen -l prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def kind(self) -> str:
        """The type as messages call it: ED25519, MLDSA44-ED25519, …"""
        bare = self.algorithm.removeprefix("ssh-").partition("@")[0]
        return bare.removeprefix("sk-ssh-").upper() + ("-SK" if self.algorithm.startswith("sk-") else "")


class Verifier(Protocol):
    """Decides for one connection."""

    def known(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Return the encodings of trusted keys, trusted certificate authorities and revoked keys."""

    def preferred(self) -> list[str]:
        """Return the algorithms of known keys, which the server is to be asked for first."""

    def accept(self, key: HostKey) -> bool:
        """Decide on a key that is not among the trusted ones."""

    def learn(self, keys: Sequence[HostKey]) -> None:
        """Take more keys, after the server has proved with a trusted one who it is, and that it has these."""


class TunnelKeys:
    """The keys of a server whose key hash the tunnel has proved."""

    def __init__(
        self,
        keyhash: str,
        port: int,
        ui: UserInterface,
        store: Path | None = None,
        *,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        """``keyhash``: as the pq1 name writes it; services on different ports may have keys of their own.

        ``confirm`` is called before a first key is kept: UserError if the tunnel has gone since it was asked for.
        """
        self._confirm = confirm
        self._name = known_hosts.host_name(keyhash, port, PORT)
        self._store = store or Path(os.path.expanduser(STORE))
        self._ui = ui
        self._found = known_hosts.find([str(self._store)], [self._name])

    def known(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Return what is kept under the hash."""
        return [key.blob for key in self._found], [], []

    def preferred(self) -> list[str]:
        """Return the kept types.

        A server that still has a kept key shows it when asked so; one that shows another type has lost it.
        """
        return [key.algorithm for key in self._found]

    def accept(self, key: HostKey) -> bool:
        """Keep the first key; refuse any other. Raises UserError if that cannot be."""
        if not self._found:
            self._confirm()
        known = self._found or self._add([key])
        if any(kept.blob == key.blob for kept in known):
            return True
        self._ui.fault(
            f"The host key of {self._name} has changed: it shows {key.kind} {key.fingerprint}, which is not the one "
            f"kept in {known[0].where}. Its tunnel key is the same, so the server's SSH keys were replaced, or another "
            "program answers on its port. If that is right, remove the line."
        )
        return False

    def learn(self, keys: Sequence[HostKey]) -> None:
        """Keep more keys of a server that showed a kept one."""
        with suppress(UserError):  # they are learned the next time
            self._add(list({key.algorithm: key for key in keys}.values()), more=True)

    def _add(self, keys: Sequence[HostKey], *, more: bool = False) -> list[known_hosts.KnownKey]:
        """Write keys down unless another process has written one meanwhile; return what is kept. Raises UserError."""
        path = self._store
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = known_hosts.find([str(path)], [self._name])
                kept = {key.algorithm for key in found}  # one of each type, so no server can fill the file
                if more or not found:
                    lines = [
                        known_hosts.line_of(self._name, key.algorithm, key.blob)
                        for key in keys
                        if key.algorithm not in kept
                    ]
                    _replace(path, lines)
                    found = known_hosts.find([str(path)], [self._name])
            finally:
                os.close(lock)
        except OSError as error:
            raise UserError(f"cannot keep the host key in {path}: {error.strerror}") from None
        return found


def _replace(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a file by putting a longer one in its place, so that a crash leaves the old or the new one."""
    if not lines:
        return
    path = Path(os.path.realpath(path))
    old = path.read_bytes() if path.exists() else b""
    if old and not old.endswith(b"\n"):
        old += b"\n"
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 600
    try:
        with os.fdopen(fd, "wb") as sink:
            sink.write(old + "".join(lines).encode())
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


class KnownHosts:
    """The rules of ssh(1): StrictHostKeyChecking, UserKnownHostsFile and so on."""

    def __init__(self, config: Config, address: str | None, ui: UserInterface) -> None:
        """``address``: of the server; None behind a jump host or a proxy command, where nobody knows it."""
        self._config = config
        self._ui = ui
        name = (config.hostkeyalias or config.hostname).lower()
        self._name = name if config.hostkeyalias else known_hosts.host_name(name, config.port)
        self._address = address
        self._files = (*config.userknownhostsfile, *config.globalknownhostsfile)
        self._found = known_hosts.find(self._files, [self._name])
        # As with ssh, a key that is known for the host's port 22 is good for a port of which nothing is known.
        self._other_port = [] if self._name == name else known_hosts.find(self._files, [name])

    @property
    def _unchecked(self) -> bool:
        return self._config.nohostauthenticationforlocalhost and (
            self._config.hostname in _LOOPBACK or self._address in _LOOPBACK
        )

    def known(self) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Return what the files say of the host."""
        lists: dict[str, list[bytes]] = {"": [], "cert-authority": [], "revoked": []}
        for key in self._found or self._other_port:
            lists[key.marker].append(key.blob)
        return lists[""], lists["cert-authority"], lists["revoked"]

    def preferred(self) -> list[str]:
        """Return the types of the host's known keys."""
        return [key.algorithm for key in self._found if key.marker == ""]

    def accept(self, key: HostKey) -> bool:
        """Decide on a key that no file names: changed ones are refused, new ones as StrictHostKeyChecking says."""
        if self._unchecked:
            return True
        strict = self._config.stricthostkeychecking
        same_type = [known for known in self._found if known.marker == "" and known.algorithm == key.algorithm]
        if same_type:
            self._warn_changed(key, same_type[0].where)
            return strict == "no" and not self._forwards()  # as ssh has it: one may ask for that, and is warned
        if strict == "yes":
            self._ui.fault(f"No {key.kind} host key is known for {self._name} and you have requested strict checking.")
            return False
        if strict == "ask" and not self._ask(key):
            return False
        self._remember(key)
        return True

    def learn(self, keys: Sequence[HostKey]) -> None:
        """Nothing: UpdateHostKeys is not done."""

    def _forwards(self) -> bool:
        """Whether a man in the middle would get more than this session; says so. ssh goes on without that much."""
        config = self._config
        asked = bool(config.forwards) or config.forwardagent != "no" or config.forwardx11
        if asked:
            self._ui.fault("Agent, X11 and port forwarding are not done with a changed host key (-a, -x, -L, -R, -D).")
        return asked

    def _warn_changed(self, key: HostKey, where: str) -> None:
        bar = "@" * 59
        for line in (
            bar,
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
            bar,
            "IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!",
            "Someone could be eavesdropping on you right now (man-in-the-middle attack)!",
            "It is also possible that a host key has just been changed.",
            f"The fingerprint for the {key.kind} key sent by the remote host is",
            f"{key.fingerprint}.",
            f"Offending {key.kind} key in {where}",
        ):
            self._ui.fault(line)

    def _ask(self, key: HostKey) -> bool:
        shown = self._name if self._address in (None, self._config.hostname) else f"{self._name} ({self._address})"
        question = (
            f"The authenticity of host '{shown}' can't be established.\n"
            f"{key.kind} key fingerprint is {key.fingerprint}.\n"
            "This key is not known by any other names.\n"
            "Are you sure you want to continue connecting (yes/no/[fingerprint])? "
        )
        while True:
            answer = self._ui.ask(question, echo=True)
            if answer is None or answer.strip().lower() in ("no", ""):
                return False
            if answer.strip().lower() == "yes" or answer.strip() == key.fingerprint:
                return True
            question = "Please type 'yes', 'no' or the fingerprint: "

    def _remember(self, key: HostKey) -> None:
        if not self._config.userknownhostsfile:
            return
        line = known_hosts.line_of(self._name, key.algorithm, key.blob, hashed=self._config.hashknownhosts)
        try:
            known_hosts.append(self._config.userknownhostsfile[0], line)
        except UserError as error:
            self._ui.say(str(error))
        else:
            self._ui.say(f"Warning: Permanently added '{self._name}' ({key.kind}) to the list of known hosts.")
