"""``pqtun keygen``: make a server's long-term key."""

import argparse
from typing import Any

from pqtun.cli import options
from pqtun.daemon.settings import KEYS_DIRECTORY
from pqtun.keys.directory import generate
from pqtun.protocol.base32 import encode
from pqtun.protocol.constants import KEY_SERVER_PORT, SERVER_PORT


def add_parsers(commands: Any) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "keygen", "Make a server's long-term key.", run)
    options.add_keys(parser)
    parser.add_argument("--force", action="store_true", help="replace a key that is there already")


def run(arguments: argparse.Namespace) -> int:
    """Make the key; print its hash and what to do next."""
    keyhash = generate(arguments.keys, force=arguments.force)
    keys = "" if arguments.keys == KEYS_DIRECTORY else f" --keys {arguments.keys}"
    print(f"key hash: {encode(keyhash)}")
    print(f"The key is in {arguments.keys}; keep a copy of that directory in a safe place.")
    print("Next:")
    print(f"  1. pqtun announce HOST --address IP{keys}")
    print("     prints the DNS records that announce this server; publish them")
    print(f"  2. pqtun server{keys}")
    print(f"     serves clients (UDP ports {SERVER_PORT} and {KEY_SERVER_PORT} must be reachable)")
    print("  3. pqtun check HOST")
    print("     on another machine, tries each step on the way here")
    return 0
