"""X11 forwarding: which display, and the cookie that the server's programs may use there (ssh(1), -X and -Y)."""

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from pqtun.shell.client.config import Config
from pqtun.shell.client.ui import UserInterface

PROTOCOL: Final = "MIT-MAGIC-COOKIE-1"
_SLACK_SECONDS: Final = 60  # the display's timeout comes after ours, as with ssh
_XAUTH_SECONDS: Final = 10


class Display:
    """The display to forward to; a context that removes its cookie's file at the end."""

    def __init__(self, name: str, auth_path: str | None, directory: "tempfile.TemporaryDirectory[str] | None") -> None:
        """Use prepare()."""
        self.name = name
        self.auth_path = auth_path
        self._directory = directory

    def __enter__(self) -> "Display":
        """Return the display."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Remove the cookie."""
        if self._directory is not None:
            with suppress(OSError):
                self._directory.cleanup()


def prepare(config: Config, ui: UserInterface) -> Display | None:
    """Return the display to forward X11 to, None if there is none to be had.

    Untrusted (-X): the display makes a cookie that expires, for programs that it keeps from others' windows. Trusted
    (-Y): the user's own cookie, from Xauthority.
    """
    name = os.environ.get("DISPLAY")
    if not name:
        ui.debug("X11 forwarding requested but DISPLAY not set")
        return None
    if config.forwardx11trusted:
        return Display(name, None, None)
    directory = tempfile.TemporaryDirectory(prefix="pqtun-x11-")  # mode 700
    path = Path(directory.name) / "xauthority"
    argv = [config.xauthlocation, "-f", str(path), "generate", name, PROTOCOL, "untrusted"]
    if config.forwardx11timeout:
        argv += ["timeout", str(config.forwardx11timeout + _SLACK_SECONDS)]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            timeout=_XAUTH_SECONDS,
        )  # fmt: skip
        made = done.returncode == 0 and path.exists() and path.stat().st_size > 0
    except (OSError, subprocess.TimeoutExpired):
        made = False
    if not made:
        directory.cleanup()
        ui.say("Warning: untrusted X11 forwarding setup failed: xauth key data not generated")
        return None
    return Display(name, str(path), directory)
