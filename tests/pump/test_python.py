"""The Python engine's own inside: keys at their end, and errors that sockets of a test do not give."""

import asyncio
import errno
import os
from typing import Any

import pytest

from pqtun.protocol import schedule
from pqtun.protocol.tunnel import Tunnel
from pqtun.pump import python
from pqtun.pump.engine import Alive, Datagram, Dead, Failed
from pqtun.pump.python import PythonEngine
from tests.pump.conftest import Scenario
from tests.pump.rig import OTHER, Rig, delivered, from_far, rig

pytestmark = pytest.mark.usefixtures("_own_network")


def run(scenario: Scenario) -> None:
    async def scene() -> None:
        with rig(PythonEngine) as made:
            await scenario(made)

    asyncio.run(scene())


def test_keys_are_erased_with_their_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tunnel] = []

    class Watched(Tunnel):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(python, "Tunnel", Watched)

    async def scenario(rig: Rig) -> None:
        removed, closed = rig.far(1), rig.far(2, OTHER)
        assert [t.tid for t in made if not t.dead] == [removed.tid, closed.tid]
        rig.engine.remove_tunnel(removed.tid)
        assert [t.tid for t in made if not t.dead] == [closed.tid]
        rig.engine.close()
        assert all(t.dead for t in made)

    run(scenario)
    assert len(made) == 2


def test_a_tunnel_that_comes_back_is_looked_at_once() -> None:
    """A cookie brings a tunnel back under its id. What was due of it before is forgotten."""

    async def scenario(rig: Rig) -> None:
        assert isinstance(rig.engine, PythonEngine)
        far = rig.far()
        for _ in range(20):
            rig.clock.now += 10
            rig.engine.remove_tunnel(far.tid)
            rig.add(far)
        await rig.pass_time(119)
        assert [link.tid for link in rig.engine._routes] == [far.tid]
        assert len([tid for _, _, tid in rig.engine._routes._deadlines if tid == far.tid]) == 1

    run(scenario)


def test_late_keys_of_all_tunnels_have_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "ALL_BLOCKS", 20)

    async def scenario(rig: Rig) -> None:
        fars = [rig.far(1), rig.far(2, OTHER)]
        late = []
        for far in fars:
            late.append(far.seal(from_far(b"late")))
            for _ in range(15 * 18):
                far.seal(b"")
            far.send_packet(b"on")
            await rig.delivered()
        for far, datagram in zip(fars, late, strict=True):
            far.send(datagram)
        assert await rig.delivered() == delivered(b"late")  # the first had its keys kept
        await rig.settle()
        assert [rig.tunnel_drops(far.tid) for far in fars] == [{}, {"replay": 1}]

    run(scenario)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
def test_a_passing_fault_of_the_device_is_counted(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        faults = [OSError(number, "passing")]
        read = os.read

        def faulty(fd: int, size: int) -> bytes:
            if fd == rig.tun_fd and faults:
                raise faults.pop()
            return read(fd, size)

        monkeypatch.setattr(os, "read", faulty)
        await rig.settle()
        assert rig.drops()["tun_read_" + errno.errorcode[number].lower()] == 1
        assert rig.events == []

    run(scenario)


def test_a_lasting_fault_of_the_device_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(rig: Rig) -> None:
        def broken(fd: int, size: int) -> bytes:
            raise OSError(errno.EBADFD, "in bad state")

        monkeypatch.setattr(os, "read", broken)
        rig.write(b"\0")
        assert await rig.event(Failed) == Failed("in bad state")

    run(scenario)


def test_a_fault_of_our_own_stops_no_reader(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    async def scenario(rig: Rig) -> None:
        far = rig.far()
        with monkeypatch.context() as patch:
            patch.setattr(Tunnel, "open", broken)
            for _ in range(3):
                far.send_packet(b"lost")
            await rig.until(lambda: rig.drops().get("internal_error") == 3, "the faults")
        far.send_packet(b"x")
        assert await rig.delivered() == delivered(b"x")
        far.send(b"\3\0")
        await rig.event(Datagram)
        assert await rig.event(Alive) == Alive(far.tid)
        assert Dead(far.tid) not in rig.events

    run(scenario)
    assert len(caplog.records) == 1
