"""What a service says of itself, as the JSON document of ``pqtun status`` (doc/user.md describes it)."""

import os
from ipaddress import IPv4Interface
from typing import Any

from pqtun import __version__
from pqtun.pump.engine import Engine, EngineStats, TunnelStats


def service(
    role: str,
    *,
    started: float,
    now: float,
    engine: Engine,
    interface: str,
    address: IPv4Interface,
    port: int,
    mtu: int,
) -> dict[str, Any]:
    """The head of the document. Times are seconds."""
    return {
        "role": role,
        "version": __version__,
        "pid": os.getpid(),
        "uptime": round(now - started, 1),
        "engine": engine.name,
        "workers": engine.workers,
        "offload": engine.offload(),
        "interface": interface,
        "address": str(address),
        "port": port,
        "mtu": mtu,
    }


def tunnel(stats: TunnelStats, now: float) -> dict[str, Any]:
    """One tunnel: epochs, age and silence in seconds, packets and bytes each way, drops by reason."""
    return {
        "real_address": stats.endpoint[0],
        "port": stats.endpoint[1],
        "epoch": {"send": stats.send_epoch, "receive": stats.recv_epoch},
        "age": round(now - stats.created, 1),
        "last_sent": _ago(stats.last_sent, now),
        "last_received": _ago(stats.last_received, now),
        "packets": {"sent": stats.packets_sent, "received": stats.packets_received},
        "bytes": {"sent": stats.bytes_sent, "received": stats.bytes_received},
        "drops": dict(stats.drops),
    }


def engine(stats: EngineStats) -> dict[str, Any]:
    """What belongs to no tunnel."""
    return {
        "drops": dict(stats.drops),
        "held": {"addresses": stats.held_addresses, "packets": stats.held_packets, "bytes": stats.held_bytes},
    }


def _ago(then: float | None, now: float) -> float | None:
    return None if then is None else round(now - then, 1)
