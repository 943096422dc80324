"""Local listeners and the table of forwards, where no server is needed; the rest is in test_mux_*."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import MessageError
from pqtun.shell.client import forward_table
from pqtun.shell.client import route as route_module
from pqtun.shell.client.forward_table import ForwardTable
from pqtun.shell.client.forwardspec import Forward, parse_forward
from pqtun.shell.client.mux_client import to_wire
from pqtun.shell.client.mux_master import to_forward
from pqtun.shell.client.mux_messages import DYNAMIC, LOCAL, PATH_PORT, REMOTE
from pqtun.shell.client.mux_messages import Forward as WireForward
from pqtun.shell.client.route import Route, addresses


@pytest.mark.parametrize(
    ("kind", "text", "wire"),
    [
        ("local", "80:host:22", WireForward(LOCAL, "", 80, "host", 22)),
        ("local", "*:80:host:22", WireForward(LOCAL, "*", 80, "host", 22)),
        ("local", ":80:host:22", WireForward(LOCAL, "*", 80, "host", 22)),
        ("local", "[::1]:80:[::2]:22", WireForward(LOCAL, "::1", 80, "::2", 22)),
        ("local", "/a:/b", WireForward(LOCAL, "/a", PATH_PORT, "/b", PATH_PORT)),
        ("remote", "0:host:22", WireForward(REMOTE, "", 0, "host", 22)),
        ("remote", "80:/b", WireForward(REMOTE, "", 80, "/b", PATH_PORT)),
        ("remote", "1080", WireForward(REMOTE, "", 1080, "", 0)),
        ("dynamic", "localhost:1080", WireForward(DYNAMIC, "localhost", 1080, "", 0)),
    ],
)
def test_forwards_are_the_same_on_the_control_socket(kind: str, text: str, wire: WireForward) -> None:
    forward = parse_forward(kind, text)  # type: ignore[arg-type]
    assert to_wire(forward) == wire
    again = to_forward(wire)
    assert to_wire(again) == wire
    assert addresses(again, False) == addresses(forward, False)
    assert (again.connect, again.socks, again.kind) == (forward.connect, forward.socks, forward.kind)


def test_gateway_ports_are_the_askers() -> None:
    forward = parse_forward("local", "80:host:22")
    assert to_wire(forward, gateway_ports=True).listen_host == "*"
    assert addresses(forward, False) == ("127.0.0.1", "::1")
    assert addresses(forward, True) == ("0.0.0.0", "::")
    assert to_wire(parse_forward("remote", "80:host:22"), gateway_ports=True).listen_host == ""


ports = st.one_of(st.integers(0, 65535), st.just(PATH_PORT))
hosts = st.sampled_from(["", "*", "host", "/path"])


@given(st.builds(WireForward, st.sampled_from([LOCAL, REMOTE, DYNAMIC]), hosts, ports, hosts, ports))
def test_what_leads_nowhere_is_refused_and_the_rest_is_whole(wire: WireForward) -> None:
    try:
        forward = to_forward(wire)
    except MessageError:
        return
    assert (forward.listen_path is None) != (forward.listen_port is None)
    if forward.socks:
        assert forward.kind != "local"
    else:
        assert forward.connect_path or (forward.connect_host and forward.connect_port)


def test_who_comes_while_there_is_no_connection_waits_and_is_turned_away_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(route_module, "WAIT_SECONDS", 0.01)

    async def work() -> None:
        with pytest.raises(asyncssh.ChannelOpenError, match="not connected"):
            await Route().connection()

    asyncio.run(work())


def test_a_socket_file_is_its_users_alone_and_goes_with_the_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_module, "WAIT_SECONDS", 0.01)
    path = tmp_path / "s"
    forward = Forward("local", listen_path=str(path), connect_host="host", connect_port=1)

    async def work() -> None:
        table = ForwardTable()
        assert await table.open(forward) is None
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(table.forwards) == [forward]
        await table.open(forward)  # as it is
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await reader.read() == b""  # not connected
        writer.close()
        assert await table.cancel(forward)
        assert not await table.cancel(forward)
        assert not path.exists()
        path.touch()
        with pytest.raises(OSError, match="in use"):
            await table.open(forward)
        taking = ForwardTable(unlink=True)
        await taking.open(forward)
        taking.close()
        assert not path.exists()
        table.close()

    asyncio.run(work())


def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_table, "MAX_FORWARDS", 1)

    async def work() -> None:
        table = ForwardTable()
        await table.open(Forward("local", listen_path=str(tmp_path / "a"), connect_path="/x"))
        with pytest.raises(OSError, match="too many"):
            await table.open(Forward("local", listen_path=str(tmp_path / "b"), connect_path="/x"))
        table.close()

    asyncio.run(work())
