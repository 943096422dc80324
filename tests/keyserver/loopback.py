"""Real sockets on the loopback device of a network namespace of this process. Prints what test_server.py asserts."""

import asyncio
import json
import os
import random
import signal
import socket
import time
import tracemalloc

from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.admission import Admission
from pqtun.keyserver.download import DownloadError
from pqtun.keyserver.fetch import fetch_ephemeral, fetch_server_key
from pqtun.keyserver.server import KeyServer, KeyServerSocket
from pqtun.protocol.keydatagram import ephemeral_request, static_request
from pqtun.protocol.keytree import NODES
from tests.keyserver.servers import a_server, the_tree
from tests.protocol.vectors import public_key

PORT = 42425


def bound(address, port=PORT):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if port != PORT else 1)
    sock.bind((address, port))
    return sock


def connected(address, port=PORT):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect((address, port))
    return sock


async def answered(address, port=PORT):
    """Whether a connected socket, which takes datagrams from that very address only, gets an answer."""
    with connected(address, port) as sock:
        for _ in range(50):
            sock.send(static_request((1, 0)))
            try:
                async with asyncio.timeout(0.1):
                    answer = await asyncio.get_running_loop().sock_recv(sock, 2048)
            except TimeoutError:
                continue
            return len(answer) == len(static_request((1, 0)))
        return False


async def flood(server):
    generator = random.Random(1)
    datagrams = [generator.randbytes(generator.randrange(1400)) for _ in range(2000)]
    with connected("127.0.0.1") as sock:
        before = None
        for start in range(0, 12_000, 50):
            if start == 2000:  # whatever grows once has grown
                tracemalloc.start()
                before = tracemalloc.get_traced_memory()[0]
            for number in range(start, start + 50):
                sock.send(datagrams[number % 2000])
            await asyncio.sleep(0)
        growth = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        answers = 0
        try:
            while True:
                sock.recv(2048)
                answers += 1
        except BlockingIOError:
            pass
    dropped = sum(value for name, value in server.counters.items() if name.startswith("dropped_"))
    return {
        "answers": answers,
        "dropped": dropped,
        "memory_growth": growth,
        "answers_afterwards": await answered("127.0.0.1"),
    }


async def turns_under_load(child_sends_for=1.0):
    """Another process fills the server's socket all the time; how often does a task here get its turn meanwhile?"""
    child = os.fork()
    if child == 0:
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            until = time.monotonic() + child_sends_for
            while time.monotonic() < until:
                sock.sendto(ephemeral_request(), ("127.0.0.1", PORT))
        finally:
            os._exit(0)
    turns = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):  # noqa: ASYNC222 - it does not wait
        turns += 1
        await asyncio.sleep(0)
    return turns


def serve():
    """A server in a process of its own, until SIGTERM; it tells through a pipe when it is ready."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading

    async def run():
        server = KeyServerSocket(a_server(), [bound("0.0.0.0")])
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        server.start()
        os.write(writing, b"ready\n")
        await ended.wait()
        server.close()

    try:
        asyncio.run(run())
    finally:
        os._exit(0)


async def download(result):
    progress = []
    with connected("127.0.0.1") as sock:
        key = await fetch_server_key(
            sock, the_tree().keyhash, clock=time.monotonic, on_progress=lambda done, total: progress.append(done)
        )
        ephemeral = await fetch_ephemeral(sock, clock=time.monotonic)
    result["key"] = key == public_key()
    result["ephemeral"] = len(ephemeral.sntrup_pk) == 1158 and len(ephemeral.x25519_pk) == 32
    result["progress"] = progress
    assert len(NODES) == progress[-1]


async def refused(fetch):
    try:
        await fetch
    except DownloadError as error:
        return error.reason
    return "answered"


async def in_one_process(result):
    server = a_server()
    service = KeyServerSocket(server, [bound("0.0.0.0"), bound("::")])
    sources = []
    ring = EphemeralRing(lambda: 1_800_000_010.0, lambda: 5000.0)
    dual = KeyServerSocket(KeyServer(the_tree(), ring, Admission(), sources.append), [bound("::", PORT + 1)])
    service.start()
    dual.start()
    result["asked"] = {address: await answered(address) for address in ("127.0.0.1", "127.0.0.2", "::1")}
    result["asked"]["127.0.0.3 on a dual-stack socket"] = await answered("127.0.0.3", PORT + 1)
    result["asked"]["::1 on a dual-stack socket"] = await answered("::1", PORT + 1)
    result["sources"] = {}
    for name, address, port in (("IPv4", "127.0.0.1", PORT + 2), ("IPv6", "::1", PORT + 2)):
        seen = []
        other = KeyServerSocket(KeyServer(the_tree(), ring, Admission(), seen.append), [bound(address, port)])
        other.start()
        with connected(address, port) as sock:
            await fetch_ephemeral(sock, clock=time.monotonic)
        other.close()
        (result["sources"][name],) = set(seen)
    for address in ("127.0.0.1", "::1"):
        with connected(address, PORT + 1) as sock:
            await fetch_ephemeral(sock, clock=time.monotonic)
    result["sources"]["dual"] = sorted(set(sources))
    result["flood"] = await flood(server)
    result["turns_under_load"] = await turns_under_load()
    service.close()
    service.close()
    dual.close()
    bound("0.0.0.0").close()  # the port is free again
    result["closed"] = True
    with connected("127.0.0.1") as one, connected("127.0.0.1") as other:
        result["refused"], result["refused_ephemeral"] = await asyncio.gather(
            refused(fetch_server_key(one, bytes(32), clock=time.monotonic)),
            refused(fetch_ephemeral(other, clock=time.monotonic)),
        )


def main():
    result = {}
    the_tree()
    child, reading = serve()
    with os.fdopen(reading) as lines:
        assert lines.readline() == "ready\n"
        try:
            asyncio.run(download(result))
        finally:
            os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    asyncio.run(in_one_process(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
