"""``pqtun sshd`` from its start to its end, and what can be said of its settings without starting it."""

import asyncio
import codecs
import gc
import logging
import os
from ipaddress import IPv4Address
from pathlib import Path

from pqtun.daemon import privilege, supervisor
from pqtun.daemon.rundir import RunDirectory
from pqtun.daemon.settings import SshdSettings
from pqtun.protocol.errors import UserError
from pqtun.shell import ssh
from pqtun.shell.audit import AuditLog
from pqtun.shell.sshd import filemodes
from pqtun.shell.sshd.filemodes import FileRefused

log = logging.getLogger(__name__)

ROLE = "sshd"


def run(settings: SshdSettings, deliver_to: IPv4Address | None) -> int:
    """Serve until told to stop; returns the exit code. Raises UserError."""
    if os.geteuid() != 0:
        raise UserError("must be started as root: it becomes the users who log in")
    user = privilege.find_user(settings.user)
    ssh.prepare()
    from pqtun.shell.sshd import confinement, pamsession
    from pqtun.shell.sshd.listener import Listener
    from pqtun.shell.sshd.signer import Signer
    from pqtun.shell.sshd.worker import Workers

    os.umask(0o022)
    run_directory = RunDirectory(settings.run, ROLE)
    try:
        empty = confinement.empty_directory(settings.run)
        signer = Signer(settings.host_keys, empty)
        try:
            if settings.pam is not None and not pamsession.available(settings.pam):
                log.warning("there is no PAM, or no service %s: pqtun checks accounts itself", settings.pam)
            for fault in faults(settings):
                log.warning("%s", fault)
            network = confinement.network_of(signer.pid)
            workers = Workers(settings, user, empty, signer.keys, network)
            audit = None if settings.audit is None else AuditLog(settings.audit)
            try:
                _warm_up()
                control = run_directory.listen(user.pw_gid)
                return Listener(settings, deliver_to, workers, signer, audit, control).run(_ready)
            finally:
                if audit is not None:
                    audit.close()
        finally:
            signer.close()
    finally:
        _remove(settings.run / "empty")
        run_directory.close()


def faults(settings: SshdSettings) -> list[str]:
    """What is wrong with files that the settings name, which only logins would show; as root."""
    found = []
    for name, path, effect in (
        ("trusted_user_ca_keys", settings.trusted_user_ca_keys, "no certificate is taken"),
        ("revoked_keys", settings.revoked_keys, "nobody can log in"),
    ):
        try:
            if path is not None and filemodes.read_of_root(str(path)) is None:
                raise FileRefused(f"{path}: no such file")
        except FileRefused as refused:
            found.append(f"{name}: {refused}; {effect}")
    return found


def _ready() -> None:
    supervisor.notify_service_manager()
    log.info("sshd is ready")


def _warm_up() -> None:
    """Have everything in memory that connections need: workers cannot open files, and forks share what is there."""
    from pqtun.shell.sshd import connection

    for name in ("idna", "utf-8", "ascii", "latin-1", "unicode_escape"):
        codecs.lookup(name)
    asyncio.new_event_loop().close()
    connection.warm_up()
    gc.collect()
    gc.freeze()  # so that a child's collector does not write to, and so copy, what it shares


def _remove(empty: Path) -> None:
    try:
        empty.rmdir()
    except OSError:
        pass  # it was never made
