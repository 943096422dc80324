"""PAM's say in a login that a key has already decided: account and session, without authentication (pam(3)).

The C calls are python-pam's; it wraps only authentication by password, so the order and the conversation are here.
"""

import ctypes
import dataclasses
import functools
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from pqtun.shell.sshd import accounts
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.identity import UMASK
from pqtun.shell.sshd.messages import Refused

SERVICE_DIRECTORIES: Final = (Path("/etc/pam.d"), Path("/usr/lib/pam.d"))
TTY: Final = "ssh"  # as sshd says to modules that want one before there is any
MAX_TEXT: Final = 16 << 10  # characters that modules may say to the user in all
MAX_MESSAGES: Final = 32  # PAM_MAX_NUM_MSG, at once

# security/_pam_types.h
_PAM_SUCCESS: Final = 0
_PAM_BUF_ERR: Final = 5
_PAM_NEW_AUTHTOK_REQD: Final = 12
_PAM_ACCT_EXPIRED: Final = 13
_PAM_CONV_ERR: Final = 19
_PAM_TTY: Final = 3
_PAM_RHOST: Final = 4
_PAM_ESTABLISH_CRED: Final = 0x2
_PAM_DELETE_CRED: Final = 0x4
_TEXT_STYLES: Final = (3, 4)  # PAM_ERROR_MSG, PAM_TEXT_INFO

_REASONS: Final = {
    _PAM_ACCT_EXPIRED: "your account has expired",
    _PAM_NEW_AUTHTOK_REQD: "your password has expired or has to be changed, which cannot be done here",
}


@functools.cache
def _library() -> ModuleType | None:
    """python-pam with libpam behind it, None where either is missing. Loading takes 15 ms, once a process."""
    try:
        import pam.__internals as internals

        internals.PamAuthenticator()
    except (ImportError, OSError, AttributeError):  # AttributeError: python-pam looked for a libpam that is not there
        return None
    module: ModuleType = internals
    return module


def available(service: str | None) -> bool:
    """Whether PAM can be asked: a service is set, has its file, and libpam is there. Loads it, so ask before forking.

    A service without a file would be ``other``'s, which says nothing of logins like these.
    """
    return (
        service is not None
        and "/" not in service
        and any((directory / service).is_file() for directory in SERVICE_DIRECTORIES)
        and _library() is not None
    )


class Session:
    """One user's login as PAM sees it; without PAM what pqtun checks itself.

    For a process of root's and of one thread, which lives as long as the login: modules change its resource limits,
    login uid, control group and keyring, and the user's process, forked after `open`, takes them over.
    """

    def __init__(self, account: Account, rhost: str, *, service: str | None, tty: str = TTY) -> None:
        """`rhost` is the client's address; `service` a name in /etc/pam.d, None to do without PAM."""
        self.account = account  # after `open` with the groups that modules such as pam_group(8) added
        self.umask = UMASK  # after `open` that of pam_umask(8), if it is used
        self.texts: list[str] = []  # what modules want the user to read, pam_motd(8)'s for one
        self._items = {_PAM_TTY: tty, _PAM_RHOST: rhost}
        self._service = service if available(service) else None
        self._handle: Any = None
        self._conversation: Any = None  # C calls it as long as the handle lives
        self._is_open = False
        self._has_credentials = False

    @property
    def uses_pam(self) -> bool:
        """Whether PAM is asked."""
        return self._service is not None

    def account_refusal(self, now: float) -> str | None:
        """Why the user may not log in at `now` (seconds since 1970), as one may tell him; None if he may."""
        reason = accounts.refusal(self.account, now, pam=self.uses_pam)
        if reason is not None or not self.uses_pam:
            return reason
        library = self._start()
        code = library.pam_acct_mgmt(self._handle, 0)
        if code == _PAM_SUCCESS:
            return None
        said, self.texts = "\n".join(self.texts).strip(), []
        return said or _REASONS.get(code, "you may not log in at the moment")

    def open(self) -> dict[str, str] | None:
        """Open the session; the environment that modules set, None without PAM. `account_refusal` came before.

        Raises Refused if a module that must does not let the session begin.
        """
        if not self.uses_pam:
            return None
        library = self._start()
        groups, umask = os.getgroups(), os.umask(UMASK)
        try:
            os.setgroups(self.account.groups)  # pam_group adds to those of the process
            self._has_credentials = library.pam_setcred(self._handle, _PAM_ESTABLISH_CRED) == _PAM_SUCCESS
            self.account = dataclasses.replace(self.account, groups=tuple(os.getgroups()))
            os.setgroups(groups)
            code = library.pam_open_session(self._handle, 0)
        finally:
            os.setgroups(groups)
            self.umask = os.umask(umask)
        if code != _PAM_SUCCESS:
            raise Refused(f"PAM did not open a session: {self._reason(code)}")
        self._is_open = True
        return self._environment()

    def close(self) -> None:
        """End the session and PAM's state, as far as they were begun. May be called twice."""
        if self._handle is None:
            return
        library = self._start()
        if self._has_credentials:
            library.pam_setcred(self._handle, _PAM_DELETE_CRED)
        code = library.pam_close_session(self._handle, 0) if self._is_open else _PAM_SUCCESS
        library.pam_end(self._handle, code)
        self._handle = None
        self._is_open = self._has_credentials = False

    def _start(self) -> Any:
        """libpam's functions, with a handle begun. Raises Refused."""
        internals = _library()
        assert internals is not None
        assert self._service is not None
        library = internals.PamAuthenticator
        if self._handle is not None:
            return library
        handle = internals.PamHandle()
        self._conversation = internals.PamConv(internals.conv_func(self._converse), None)
        code = library.pam_start(
            self._service.encode(),
            os.fsencode(self.account.name),
            ctypes.byref(self._conversation),
            ctypes.byref(handle),
        )
        if code != _PAM_SUCCESS:
            raise Refused("PAM could not be started")
        self._handle = handle
        for item, text in self._items.items():
            if library.pam_set_item(handle, item, text.encode()) != _PAM_SUCCESS:
                raise Refused("PAM could not be told of the connection")
        return library

    def _converse(self, count: int, messages: Any, responses: Any, _data: object) -> int:
        """Keep what modules say; whoever asks something gets no answer, as nobody is there to give one."""
        internals = _library()
        if internals is None or not 0 < count <= MAX_MESSAGES:
            return _PAM_CONV_ERR
        shown = []
        for index in range(count):
            message = messages[index].contents
            if message.msg_style not in _TEXT_STYLES:
                return _PAM_CONV_ERR
            shown.append((message.msg or b"").decode("utf-8", "replace"))
        address = internals.PamAuthenticator.calloc(count, ctypes.sizeof(internals.PamResponse))
        if not address:
            return _PAM_BUF_ERR
        responses[0] = ctypes.cast(address, ctypes.POINTER(internals.PamResponse))
        left = MAX_TEXT - sum(map(len, self.texts))
        for text in shown:
            if text and left > 0:
                self.texts.append(text[:left])
                left -= len(text)
        return _PAM_SUCCESS

    def _environment(self) -> dict[str, str]:
        pointer = self._start().pam_getenvlist(self._handle)
        found: dict[str, str] = {}
        index = 0
        while pointer and (entry := pointer[index]) is not None:
            name, equals, value = os.fsdecode(entry).partition("=")
            if equals:
                found[name] = value
            index += 1
        return found

    def _reason(self, code: int) -> str:
        return os.fsdecode(self._start().pam_strerror(self._handle, code) or b"") or f"error {code}"
