"""One engine on a TUN device, with a tunnel of fixed keys: `python -m tests.net.pump_host ROLE PEER_ADDRESS`.

Prints "ready", then a line for each event; at SIGTERM the counters as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import socket
import subprocess
import time
from ipaddress import IPv4Address, IPv4Network

from pqtun.pump.engine import Event, Wanted
from pqtun.pump.python import PythonEngine
from pqtun.pump.tun import open_tun
from tests.pump.rig import session

DEVICE = "pump0"
PORT = 42424
# Each end's own address and what it calls the other.
CLIENT_OWN, CLIENT_PEER = "10.43.0.1", "10.43.0.2"
SERVER_OWN, SERVER_PEER = "10.42.0.1", "10.42.0.2"
NOBODY = "10.43.0.99"


def open_device(own: str, mtu: int) -> int:
    (tun,) = open_tun(DEVICE)
    for command in (f"addr add {own}/16 dev {DEVICE}", f"link set {DEVICE} mtu {mtu} up"):
        subprocess.run(["ip", *command.split()], check=True)
    return tun


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def run(arguments: argparse.Namespace) -> None:
    client = arguments.role == "client"
    own, peer = (CLIENT_OWN, CLIENT_PEER) if client else (SERVER_OWN, SERVER_PEER)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", PORT))
    loop = asyncio.get_running_loop()
    engine = PythonEngine(
        open_device(own, arguments.mtu),
        udp,
        own=IPv4Address(own),
        subnet=IPv4Network(f"{own}/16", strict=False),
        clock=boottime,
        loop=loop,
    )

    def listen(event: Event) -> None:
        print(type(event).__name__, getattr(event, "inner", ""), flush=True)
        if isinstance(event, Wanted):  # there is no control plane that could make a tunnel
            engine.drop_held(event.inner, unreachable=True)

    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    engine.start(listen)
    ours = session(1)[0 if client else 1]
    engine.add_tunnel(ours, IPv4Address(peer), (arguments.peer, PORT))
    print("ready", flush=True)
    await ended.wait()
    stats = engine.stats()
    tunnels = [{**dataclasses.asdict(t), "tid": t.tid.hex(), "inner": str(t.inner)} for t in stats.tunnels]
    print(json.dumps({"drops": stats.drops, "tunnels": tunnels}), flush=True)
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["client", "server"])
    parser.add_argument("peer")
    parser.add_argument("--mtu", type=int, default=1396)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
