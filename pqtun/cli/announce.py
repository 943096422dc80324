"""``pqtun announce``: print the DNS records that announce a server."""

import argparse
import json
import re
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from pqtun.cli import options
from pqtun.keys.directory import load_public
from pqtun.protocol.constants import KEY_SERVER_PORT, SERVER_PORT
from pqtun.protocol.errors import UserError
from pqtun.protocol.keytree import KeyTree
from pqtun.protocol.names import make_label

TTL: Final = 3600
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_MAX_NAME: Final = 253  # RFC 1035 section 2.3.4, as text without the last dot


def _ip(text: str) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address (hosts come before --address)") from None
    if address.is_link_local:  # with a zone or without one
        raise argparse.ArgumentTypeError(f"{text!r} is an address of one link only; clients are elsewhere")
    return address


def add_parsers(commands: Any) -> None:
    """Add the subcommand."""
    parser = options.add_command(commands, "announce", "Print the DNS records that announce this server.", run)
    parser.add_argument("hosts", metavar="HOST", nargs="+", help="name that clients use, such as www.example.net")
    parser.add_argument(
        "--address", metavar="IP", dest="addresses", nargs="+", action="extend", type=_ip, required=True,
        help="public addresses of the server, IPv4 and IPv6",
    )  # fmt: skip
    options.add_keys(parser)
    parser.add_argument(
        "--port", metavar="N", type=options.PORT, default=SERVER_PORT, help="of pqtun server (%(default)s)"
    )
    parser.add_argument("--key-port", metavar="N", type=options.PORT, default=KEY_SERVER_PORT, help="(%(default)s)")
    parser.add_argument("--format", choices=("zone", "tinydns", "json"), default="zone", help="(%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print the records. Raises UserError for names, addresses, ports or keys that do not do."""
    if arguments.port == arguments.key_port:
        raise UserError(f"--port and --key-port are both {arguments.port}; the server needs two different ports")
    label = make_label(KeyTree(load_public(arguments.keys)).keyhash, arguments.port, arguments.key_port)
    records: list[dict[str, Any]] = []
    for host in arguments.hosts:
        name = _host(host)
        target = _target(label, name)
        records.append({"name": name, "type": "CNAME", "ttl": TTL, "value": target})
        for address in arguments.addresses:
            kind = "A" if isinstance(address, IPv4Address) else "AAAA"
            record = {"name": target, "type": kind, "ttl": TTL, "value": str(address)}
            if record not in records:
                records.append(record)
    print({"zone": _zone, "tinydns": _tinydns, "json": _json}[arguments.format](records))
    if not any(isinstance(address, IPv4Address) for address in arguments.addresses):
        print("pqtun announce: without an IPv4 address PQConnect clients cannot reach the server", file=sys.stderr)
    return 0


def _host(text: str) -> str:
    name = text.rstrip(".").lower()
    labels = name.split(".")
    if len(labels) < 2 or len(name) > _MAX_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise UserError(f"{text!r} is no host name with a domain; write one such as www.example.net")
    if len(labels) == 2:
        # RFC 1034 section 3.6.2: a CNAME stands alone, and a zone's own name has SOA and NS records.
        raise UserError(
            f"{text!r} is a domain itself, which cannot be a CNAME; announce a name in it such as www.{name}"
        )
    return name


def _target(label: str, host: str) -> str:
    """The pq1 name stands beside the host's own, in the same zone."""
    target = f"{label}.{host.partition('.')[2]}"
    if len(target) > _MAX_NAME:
        raise UserError(f"{host}: the domain is too long to hold a pq1 name beside it")
    return target


def _zone(records: list[dict[str, Any]]) -> str:
    def value(record: dict[str, Any]) -> str:
        return f"{record['value']}{'.' if record['type'] == 'CNAME' else ''}"

    return "\n".join(f"{r['name']}. {r['ttl']} IN {r['type']} {value(r)}" for r in records)


def _tinydns(records: list[dict[str, Any]]) -> str:
    """The data format of tinydns-data: ``C`` a CNAME, ``+`` an address; an AAAA as generic record 28 in octal bytes."""
    lines = []
    for record in records:
        name, value, ttl = record["name"], record["value"], record["ttl"]
        if record["type"] == "CNAME":
            lines.append(f"C{name}:{value}.:{ttl}")
        elif record["type"] == "A":
            lines.append(f"+{name}:{value}:{ttl}")
        else:
            octal = "".join(f"\\{byte:03o}" for byte in IPv6Address(value).packed)
            lines.append(f":{name}:28:{octal}:{ttl}")
    return "\n".join(lines)


def _json(records: list[dict[str, Any]]) -> str:
    return json.dumps({"records": records}, indent=2)
