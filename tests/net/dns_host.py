"""The DNS proxy as the client runs it: dns_host.py UID [rewrite]. Prints "ready PORT", then counters at SIGTERM.

A privileged parent holds the nftables table, a worker without privileges does the rest. With "rewrite", pq1 names get
private addresses from 10.43.0.2 on; without, all answers pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from ipaddress import IPv4Address, IPv4Network

from pqtun.daemon import privilege
from pqtun.dns.answer import Found, Private, rewrite
from pqtun.dns.origin import OriginalDestinations
from pqtun.dns.proxy import DnsProxy
from pqtun.dns.redirect import DnsSockets, Redirect, open_sockets
from pqtun.protocol.errors import UserError

PRIVATE = IPv4Network("10.43.0.0/16")


def make_rewrite():
    given: dict[str, IPv4Address] = {}

    def address_of(found: Found) -> Private:
        if found.real4 is not None:
            print("asked", found.name, *found.real4, "from", found.upstream[0], flush=True)
        return Private(given.setdefault(found.name, PRIVATE[2 + len(given)]), None)

    def run(message, upstream):
        return rewrite(message, upstream, address_of, lambda address: address in PRIVATE)

    return run


async def work(sockets: DnsSockets, rewriting: bool) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    answer = make_rewrite() if rewriting else lambda message, upstream: message
    proxy = DnsProxy(sockets.udp, sockets.tcp, OriginalDestinations(sockets.events), answer, time.monotonic)
    proxy.start()
    print(f"ready {sockets.port}", flush=True)
    await stop.wait()
    await proxy.close()
    status = {"counters": dict(proxy.counters), "outstanding": proxy.outstanding}
    print(json.dumps(status), flush=True)


def main(uid: int, rewriting: bool) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    sockets = open_sockets()
    parent = os.getpid()
    worker = os.fork()
    if worker == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        privilege.die_with_parent(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        asyncio.run(work(sockets, rewriting))
        os._exit(0)
    try:
        redirect = Redirect(sockets.port, uid)
    except UserError as error:
        os.kill(worker, signal.SIGKILL)
        sys.exit(f"error: {error}")
    sockets.close()
    print("redirected", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGCHLD})
    os.kill(worker, signal.SIGTERM)
    os.waitpid(worker, 0)
    redirect.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), "rewrite" in sys.argv[2:])
