"""Decides who a user is: by account, key and signature, each of which is looked at here, in root's process."""

import time
from fnmatch import fnmatchcase
from ipaddress import IPv4Address

from pqtun.daemon.settings import SshdSettings
from pqtun.shell import ssh
from pqtun.shell.sshd import accounts, certificates, request, signatures
from pqtun.shell.sshd.accounts import Account
from pqtun.shell.sshd.authorized import Authorizer
from pqtun.shell.sshd.permission import Permission
from pqtun.shell.sshd.request import RequestError

Found = tuple[Account, Permission]


class Authentication:
    """Answers for one connection. The work is the same whether the user exists or not."""

    def __init__(self, settings: SshdSettings) -> None:
        self._settings = settings
        self._authorizer = Authorizer(settings)

    @property
    def remarks(self) -> list[str]:
        """Why files and lines were passed over for the last answer."""
        return self._authorizer.remarks

    def permission(self, user: str, key: bytes, client: IPv4Address) -> Found | None:
        """Return who the user is and what the key lets him do; None if it does not let him in."""
        account = accounts.find(user)
        known = account if account is not None and self._may_log_in(account) else None
        permission = self._authorizer.permission(known, key, client, time.time())
        if known is None or permission is None:
            return None
        if known.uid == 0 and self._settings.permit_root_login != "keys" and permission.command is None:
            return None
        return known, permission

    def verified(
        self, user: str, signed: bytes, signature: bytes, session_id: bytes | None, client: IPv4Address
    ) -> Found | None:
        """The same for a user who has signed ``signed`` in the session of that identifier.

        Raises RequestError if what is signed is no request of this user's to log in here.
        """
        asked = request.parse(signed)
        if session_id is None or (asked.session_id, asked.user) != (session_id, user):
            raise RequestError("another session, or another user")
        if asked.algorithm not in ssh.PUBLIC_KEY_ALGORITHMS or len(signature) > request.MAX_SIGNATURE:
            return None
        found = self.permission(user, asked.key, client)
        permission = _nothing(asked.algorithm) if found is None else found[1]
        good = signatures.verify(permission, asked.key, signed, signature)
        return found if good else None

    def _may_log_in(self, account: Account) -> bool:
        settings = self._settings
        if account.uid == 0 and settings.permit_root_login == "no":
            return False
        if _listed(account, settings.deny_users):
            return False
        return not settings.allow_users or _listed(account, settings.allow_users)


def _listed(account: Account, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(account.name, pattern) for pattern in patterns)


def _nothing(algorithm: str) -> Permission:
    """What the signature of somebody who does not exist is verified with."""
    key_type = certificates.KEY_TYPES.get(algorithm, algorithm)
    return Permission(origin="", key_type=key_type, fingerprint="")
