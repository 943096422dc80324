"""``pqtun sshd``."""

import argparse
import sys
from typing import Any

from pqtun.cli import options
from pqtun.daemon import settings
from pqtun.daemon.settings import SshdSettings

_HELP = {
    "address": ("auto|ADDRESS/LENGTH", "own address and network inside; auto: those that the interface has"),
    "agent_forwarding": ("yes|no", "whether the client's agent may be used from here"),
    "allow_users": ("NAMES", "users who may log in, with * and ?; without it, all"),
    "audit": ("FILE|none", "where logins and what they do are written down"),
    "authorized_keys": ("FILES", "files of a user's public keys, below the home directory unless absolute"),
    "deny_users": ("NAMES", "users who may not log in"),
    "host_keys": ("DIR", "directory of the host keys, which are made at first start"),
    "interface": ("NAME", "name of the TUN interface"),
    "keepalive": ("N", "seconds of silence until a client is asked whether it is there; 0: never"),
    "max_channels": ("N", "channels in one connection"),
    "max_connections_user": ("N", "connections of one user"),
    "max_startups": ("N", "connections that have not logged in yet"),
    "max_startups_source": ("N", "those of one address"),
    "pam": ("NAME|none", "file in /etc/pam.d for account and session"),
    "permit_root_login": ("|".join(settings.ROOT_LOGINS), "how root may log in"),
    "port": ("N", "TCP port"),
    "revoked_keys": ("FILE|none", "public keys that let nobody in"),
    "run": ("DIR", "directory of pid file and sockets"),
    "stream_local_forwarding": ("yes|no", "whether Unix-domain sockets may be forwarded"),
    "tcp_forwarding": ("yes|no", "whether TCP connections may be forwarded"),
    "trusted_user_ca_keys": ("FILE|none", "public keys whose user certificates are taken"),
    "user": ("NAME", "unprivileged user that talks with the network"),
    "x11_forwarding": ("yes|no", "whether the client's X display may be used from here"),
}


def add_parsers(commands: Any) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "sshd", "Let users log in through the tunnel, with SSH.", run)
    defaults = SshdSettings()
    for name in settings.option_names(SshdSettings):
        metavar, text = _HELP[name]
        default = _shown(getattr(defaults, name))
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar=metavar, help=f"{text} ({default})" if default else text
        )
    parser.add_argument("--check", action="store_true", help="only check the settings and say where it would listen")
    parser.add_argument(
        "--config", metavar="FILE", type=options.PATH, help=f"configuration file ({settings.CONFIG_FILE})"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(default)
    return "" if default is None else str(default)


def run(arguments: argparse.Namespace) -> int:
    """Run until stopped."""
    flags = {name: getattr(arguments, name) for name in settings.option_names(SshdSettings)}
    loaded, deliver_to = settings.load_sshd(arguments.config, flags)
    if arguments.check:
        from pqtun.shell.sshd import addresses, service  # imports only what this command needs

        faults = service.faults(loaded)
        for fault in faults:
            print(f"pqtun sshd: {fault}", file=sys.stderr)
        if faults:
            return 1
        place = addresses.find(loaded.interface, loaded.address, deliver_to)
        if place is None:
            print(f"The settings are right. {loaded.interface} is not there yet: it would wait for it.")
        else:
            where = ", ".join(map(str, place.addresses))
            print(f"The settings are right. It would listen on {where} ({loaded.interface}) port {loaded.port}.")
        return 0
    from pqtun.shell.sshd import service

    return service.run(loaded, deliver_to)
