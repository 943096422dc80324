"""``pqtun status``: what the services on this machine do."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pqtun.cli import options
from pqtun.daemon import control
from pqtun.protocol.errors import UserError

ROLES = ("client", "server", "sshd")


def add_parsers(commands: Any) -> None:
    """Add the subcommand."""
    parser = options.add_command(
        commands, "status", "Show peers, tunnels, logins and counters of the running services.", run
    )
    parser.add_argument("role", nargs="?", choices=ROLES, help="one service; without it, all that run")
    options.add_run(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the status. Raises UserError if the service does not run."""
    found = _ask_all(arguments.run, [arguments.role] if arguments.role else ROLES)
    if arguments.json:
        print(json.dumps(found[arguments.role] if arguments.role else found, indent=2))
        return 0
    print("\n\n".join(_of_sshd(status) if role == "sshd" else _text(status) for role, status in found.items()))
    return 0


def _ask_all(directory: Path, roles: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for role in roles:
        try:
            found[role] = control.ask(directory, role, {"op": "status"})
        except control.NotRunningError:
            if len(roles) == 1:
                raise
    if not found:
        raise UserError(f"no pqtun client, server or sshd runs with {directory}; start one, or see --run")
    return found


def _text(status: Mapping[str, Any]) -> str:
    lines = [
        f"{status['role']}: {status['interface']}",
        f"  address: {status['address']}, mtu {status['mtu']}",
        f"  listening port: {_listening(status)}",
        *_engine(status),
        f"  up for: {_duration(status['uptime'])} (pid {status['pid']}, version {status['version']})",
    ]
    if status.get("keyhash"):
        lines.append(f"  key hash: {status['keyhash']}")
    for key in ("drops", "events", "dns", "handshakes", "key_server"):
        if status.get(key):
            lines.append(f"  {key.replace('_', ' ')}: {_counters(status[key])}")
    for peer in status["peers"]:
        lines += ["", *_peer(peer)]
    if not status["peers"]:
        lines += ["", "no peers yet"]
    if status.get("peers_total", 0) > len(status["peers"]):
        lines += ["", f"and {status['peers_total'] - len(status['peers'])} peers more, which were used less recently"]
    return "\n".join(map(_printable, lines))


def _of_sshd(status: Mapping[str, Any]) -> str:
    where = ", ".join(status["addresses"]) or "waits for its interface"
    lines = [
        f"sshd: {status['interface']}",
        f"  listening: {where} port {status['port']}",
        f"  up for: {_duration(status['uptime'])} (pid {status['pid']}, version {status['version']})",
        f"  not logged in yet: {status['starting']}",
        f"  connections: {_counters(status['users']) or 'none'}",
    ]
    if status["counters"]:
        lines.append(f"  counters: {_counters(status['counters'])}")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """What steers a terminal must not come out of a worker that somebody may have taken over."""
    return "".join(character if character.isprintable() else "?" for character in line)


def _engine(status: Mapping[str, Any]) -> list[str]:
    workers = status.get("workers", 1)
    lines = [f"  engine: {status['engine']}" + (f", {workers} workers" if workers > 1 else "")]
    if status.get("offload"):
        lines.append("  offload: " + ", ".join(f"{name} {state}" for name, state in status["offload"].items()))
    return lines


def _listening(status: Mapping[str, Any]) -> str:
    return f"{status['port']}" + (f", key server {status['key_port']}" if "key_port" in status else "")


def _peer(peer: Mapping[str, Any]) -> list[str]:
    lines = [
        f"peer: {peer['name']}",
        f"  state: {peer['state']}" + (f" ({peer['error']})" if peer.get("error") else ""),
    ]
    lines.append(f"  private address: {peer['private_address']}")
    if peer.get("real_address"):
        lines.append(f"  real address: {peer['real_address']}" + (f" port {peer['port']}" if peer.get("port") else ""))
    if "download" in peer:
        lines.append(f"  key download: {peer['download']['nodes']} of {peer['download']['of']} pieces")
    if "epoch" in peer:
        heard = peer["last_received"]
        lines += [
            f"  tunnel: {_duration(peer['age'])} old, epoch {peer['epoch']['send']} out, {peer['epoch']['receive']} in",
            f"  last heard: {'never' if heard is None else _duration(heard) + ' ago'}",
            f"  received: {_size(peer['bytes']['received'])} in {peer['packets']['received']} packets",
            f"  sent: {_size(peer['bytes']['sent'])} in {peer['packets']['sent']} packets",
        ]
        if peer["drops"]:
            lines.append(f"  drops: {_counters(peer['drops'])}")
    return lines


def _counters(counters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(counters.items()))


def _duration(seconds: float) -> str:
    parts = []
    rest = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    parts.append(f"{rest} s")
    return " ".join(parts[:2])


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.2f} {unit}"
        number /= 1024
    return f"{number:.2f} TiB"
