"""pqtun.daemon.engines: which engine is chosen, and what it is given."""

import asyncio
import io
import os
import socket
import sys
import types
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface

import pytest

from pqtun.daemon import engines, host
from pqtun.daemon.settings import ClientSettings
from pqtun.protocol.errors import UserError
from pqtun.pump.engine import HandshakeLimits
from pqtun.pump.offload import ALL, NAMES, NONE, parse
from pqtun.pump.python import PythonEngine

OWN = IPv4Interface("10.43.0.1/16")
OWN6 = IPv6Interface("fdd7:ef0f:7bd4::8d17:a2b:1/64")
DELIVER_TO = IPv4Address("192.0.2.9")
LIMITS = HandshakeLimits(20, 10)


@pytest.fixture
def built(monkeypatch):
    module = types.ModuleType(engines.NATIVE_MODULE)
    module.NULL_CIPHER = False
    monkeypatch.setitem(sys.modules, engines.NATIVE_MODULE, module)


@pytest.fixture
def not_built(monkeypatch):
    monkeypatch.setitem(sys.modules, engines.NATIVE_MODULE, None)


def test_without_the_native_module(not_built):
    assert engines.choose_engine(ClientSettings()) == engines.EngineChoice("python", 1, NONE, fallback=True)
    with pytest.raises(UserError, match=r"not part of this installation .*cargo.*--engine auto"):
        engines.choose_engine(ClientSettings(engine="native"))

    assert engines.choose_engine(ClientSettings(engine="python", workers=4)) == engines.EngineChoice("python", 1, NONE)


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_a_build_without_encryption_is_refused(built, monkeypatch, engine):
    monkeypatch.setattr(sys.modules[engines.NATIVE_MODULE], "NULL_CIPHER", True)
    monkeypatch.delenv("PQTUN_NULL_CIPHER", raising=False)
    with pytest.raises(UserError, match="without encryption"):
        engines.choose_engine(ClientSettings(engine=engine))
    monkeypatch.setenv("PQTUN_NULL_CIPHER", "1")
    assert engines.choose_engine(ClientSettings(engine=engine)).name == "native"


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_with_the_native_module(built, engine):
    choice = engines.choose_engine(ClientSettings(engine=engine))
    cores = len(os.sched_getaffinity(0))
    assert choice == engines.EngineChoice("native", min(cores, 8), ALL)
    assert choice.socket_buffer > engines.choose_engine(ClientSettings(engine="python")).socket_buffer


def test_workers(built, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(100)))
    assert engines.choose_engine(ClientSettings()).workers == 8
    assert engines.choose_engine(ClientSettings(workers=12)).workers == 12
    for text in ("off", "-multi-queue"):
        assert engines.choose_engine(ClientSettings(workers=12, offload=parse([text]))).workers == 1


def test_the_engine_owns_the_descriptors(monkeypatch, caplog):
    """The Python engine gets the first queue; the native one, here a stand-in, all of them and the sockets."""
    given = {}
    monkeypatch.setattr(engines, "SCALE", 8.0)

    def native_engine(tuns, sockets, **named):
        given.update(named, tuns=tuns, sockets=sockets)
        return "engine"

    monkeypatch.setitem(sys.modules, "pqtun.pump.native", types.SimpleNamespace(NativeEngine=native_engine))

    async def body(choice, queues, sockets=None, deliver_to=DELIVER_TO):
        ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(queues)]
        tun = host.Tun(tuple(io.FileIO(near.detach(), "r+") for near, _ in ends), "pq0", OWN, True, 1396, OWN6)
        udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(sockets or queues)]
        engine = engines.make_engine(choice, tun, udp, lambda: 0.0, deliver_to, LIMITS)
        assert all(file.closed for file in tun.files)
        for _, far in ends:
            far.close()
        return engine, udp

    for fallback in (False, True):
        caplog.clear()
        engine, _ = asyncio.run(body(engines.EngineChoice("python", 1, NONE, fallback), 1))
        assert isinstance(engine, PythonEngine)
        assert (engine.name, engine.workers, engine.offload()) == ("python", 1, {})
        assert sum("was not built" in record.message for record in caplog.records) == fallback
        engine.close()

    engine, udp = asyncio.run(body(engines.EngineChoice("native", 2, ALL), 2))
    assert engine == "engine"
    assert len(set(given["tuns"])) == 2
    assert given["sockets"] == udp
    assert (given["own"], given["subnet"], given["deliver_to"]) == (OWN.ip, OWN.network, DELIVER_TO)
    assert (given["virtio"], given["offload"]) == (True, list(NAMES))
    assert (given["handshakes"], given["clock_scale"], given["own6"]) == (LIMITS, 8.0, None)  # IPv6 has no other way
    for number in given["tuns"]:
        os.close(number)
    for sock in udp:
        sock.close()

    # A kernel that gave fewer queues than were asked for: nobody would read the other sockets.
    _, (kept, closed) = asyncio.run(body(engines.EngineChoice("native", 2, ALL), 1, sockets=2))
    assert given["sockets"] == [kept]
    assert kept.fileno() >= 0 > closed.fileno()
    os.close(given["tuns"][0])
    kept.close()

    _, (sock,) = asyncio.run(body(engines.EngineChoice("native", 1, ALL), 1, deliver_to=None))
    assert given["own6"] == OWN6
    os.close(given["tuns"][0])
    sock.close()


def test_the_python_engine_is_given_the_same(monkeypatch):
    given = {}

    def python_engine(*positional, **named):
        given.update(named, positional=positional)

    monkeypatch.setattr(engines, "PythonEngine", python_engine)

    async def body(deliver_to):
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        tun = host.Tun((io.FileIO(near.detach(), "r+"),), "pq0", OWN, False, 1396, OWN6)
        with far, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            engines.make_engine(engines.EngineChoice("python", 1, NONE), tun, [udp], lambda: 7.0, deliver_to, LIMITS)
            assert given["positional"][1] is udp
        os.close(given["positional"][0])

    for deliver_to, own6 in ((None, OWN6), (DELIVER_TO, None)):
        asyncio.run(body(deliver_to))
        assert (given["own"], given["subnet"], given["own6"]) == (OWN.ip, OWN.network, own6)
        assert (given["deliver_to"], given["handshakes"], given["clock"]()) == (deliver_to, LIMITS, 7.0)
