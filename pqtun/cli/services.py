"""``pqtun client`` and ``pqtun server``."""

import argparse
from typing import Any, cast

from pqtun.cli import options
from pqtun.daemon import settings
from pqtun.daemon.settings import ClientSettings, ServerSettings
from pqtun.pump import offload

_HELP = {
    "address": ("ADDRESS/LENGTH", "own private address and subnet"),
    "deliver_to": ("IP", "local address that clients' packets are delivered to, in place of the own private one"),
    "direct_minutes": ("N", "how long a server that failed is reached directly, where --failure allows it"),
    "engine": ("NAME", "packet engine: auto, native or python"),
    "failure": (
        "NAMES=block|direct,...",
        "servers that no tunnel can be made to: whether lookups may then get the real address, by name (else: block)",
    ),
    "handshakes_per_prefix": ("N", "handshakes a second from one network (IPv4 /24, IPv6 /56)"),
    "handshakes_per_second": ("N", "handshakes a second in all"),
    "incoming": ("block|allow", "whether servers may begin connections to this host through their tunnel"),
    "interface": ("NAME", "name of the TUN interface"),
    "key_port": ("N", "UDP port of the key server"),
    "keys": ("DIR", "key directory"),
    "mtu": ("auto|N", "bytes of the largest packet inside a tunnel; auto: what the way to the Internet carries"),
    "offload": ("auto|off|NAMES", f"what the native engine leaves to the kernel: {','.join(offload.NAMES)}"),
    "port": ("N", "UDP port"),
    "run": ("DIR", "directory of pid file and control socket"),
    "state": ("DIR", "directory of known peers and servers' public keys"),
    "user": ("NAME", "unprivileged user that does the work"),
    "workers": ("auto|N", "threads of the native engine; auto: one a core, at most 8"),
}


def add_parsers(commands: Any) -> None:
    """Add both subcommands."""
    client = options.add_command(
        commands, "client", "Protect this host's connections to servers that announce a key.", run_client
    )
    server = options.add_command(commands, "server", "Answer clients of this host's announced key.", run_server)
    for parser, kind in ((client, ClientSettings), (server, ServerSettings)):
        defaults = kind()
        for name in settings.option_names(kind):
            metavar, text = _HELP[name]
            default = getattr(defaults, name)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                metavar=metavar,
                help=text if default in (None, ()) else f"{text} ({default})",
            )
        parser.add_argument(
            "--config", metavar="FILE", type=options.PATH, help=f"configuration file ({settings.CONFIG_FILE})"
        )
        parser.add_argument("-v", "--verbose", action="store_true", help="log more")


def _load(section: str, arguments: argparse.Namespace) -> tuple[settings.ServiceSettings, frozenset[str]]:
    names = settings.option_names(settings.SECTIONS[section])
    flags = {name: getattr(arguments, name) for name in names}
    return settings.load(section, arguments.config, flags)


def run_client(arguments: argparse.Namespace) -> int:
    """Run until stopped."""
    from pqtun.daemon.client import run_client as start  # imports only what this command needs

    loaded, chosen = _load("client", arguments)
    return start(cast(ClientSettings, loaded), chosen)


def run_server(arguments: argparse.Namespace) -> int:
    """Run until stopped."""
    from pqtun.daemon.server import run_server as start  # imports only what this command needs

    loaded, chosen = _load("server", arguments)
    return start(cast(ServerSettings, loaded), chosen)
