from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import settings
from pqtun.daemon.policy import Rule
from pqtun.protocol.errors import UserError
from pqtun.pump.offload import NONE
from pqtun.pump.offload import parse as parse_offload


@pytest.fixture
def config(tmp_path):
    def write(text):
        file = tmp_path / "pqtun.toml"
        file.write_text(text)
        return file

    return write


def test_defaults():
    client, chosen = settings.load("client", None, {})
    assert client == settings.ClientSettings()
    assert (client.port, str(client.address), client.interface) == (42423, "10.43.0.1/16", "pqtcli0")
    server, _ = settings.load("server", None, {})
    assert (server.port, server.key_port, str(server.address), server.interface) == (
        42424,
        42425,
        "10.42.0.1/16",
        "pqtsrv0",
    )
    assert chosen == frozenset()


def test_file_and_flags(config):
    file = config('[client]\nport = 1000\nmtu = 1200\n[server]\nmtu = "auto"\nport = 2000\ndeliver_to = "192.0.2.9"\n')
    client, chosen = settings.load("client", file, {"port": "1001", "state": None})
    assert (client.port, client.mtu) == (1001, 1200)
    assert chosen == {"port", "mtu"}
    server, _ = settings.load("server", file, {"address": "10.9.0.1/24"})
    assert server.deliver_to == IPv4Address("192.0.2.9")
    assert server.mtu is None
    assert server.address == IPv4Interface("10.9.0.1/24")


def test_relative_paths_become_absolute():
    loaded, _ = settings.load("client", None, {"run": "here"})
    assert loaded.run == Path.cwd() / "here"


def test_offload_and_workers(config):
    file = config(
        '[client]\noffload = ["udp-gso", "tun-tso"]\nworkers = 3\n[server]\noffload = "off"\nworkers = "auto"\n'
    )
    client, _ = settings.load("client", file, {})
    assert client.offload == parse_offload(["tun-tso", "udp-gso"])
    assert client.workers == 3
    server, chosen = settings.load("server", file, {})
    assert (server.offload, server.workers) == (NONE, None)
    assert chosen == {"offload", "workers"}
    flagged, _ = settings.load("server", file, {"offload": "-tun-uso, -udp-gro", "workers": "2"})
    assert flagged.offload == parse_offload(["-tun-uso", "-udp-gro"])
    assert flagged.workers == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[client]\nport = 1\nprot = 2\n", "line 3: unknown option 'prot' in [client]"),
        ("[client]\n\n# prot = 1\n'prot' = 2\n", "line 4: unknown option 'prot' in [client]"),
        ("[server]\nprot = 1\n[client]\nport = 1\n", "line 2: unknown option 'prot' in [server]"),
        ("port = 1\n", "line 1: unknown name 'port'"),
        ("[client]\nport = 1\n[clients]\nport = 1\n", "line 3: unknown name 'clients'"),
        ("\nclient = 4\n", "line 2: client is a section"),
        ("[client.dns]\nx = 1\n", "line 1: unknown option 'dns' in [client]"),
        ("client.prot = 1\n", "line 1: unknown option 'prot' in [client]"),
        ("\nclient = { prot = 1 }\n", "line 2: unknown option 'prot' in [client]"),
        ("[client]\nport = 0\n", "line 2: port = 0: a port is a number from 1 to 65535"),
        ("[client]\nport = true\n", "line 2: port = True: write a whole number"),
        ("[client]\nport = 1.5\n", "line 2: port = 1.5: write a whole number"),
        ('[client]\nport = "x"\n', "line 2: port = x: write a whole number"),
        ('[client]\naddress = "10.0.0.1"\n', "line 2: address = 10.0.0.1: the prefix length"),
        ('[client]\naddress = "10.0.0.0/16"\n', "first or last address"),
        ('[client]\naddress = "host/16"\n', "write an IPv4 address with a prefix length"),
        ('[client]\naddress = "10.0.0.1/31"\n', "the prefix length is a number from 8 to 29"),
        ('[client]\naddress = "224.0.0.1/8"\n', "choose a private network"),
        ('[client]\naddress = "0.0.0.1/8"\n', "choose a private network"),
        ('[client]\naddress = "127.7.0.1/16"\n', "choose a private network"),
        ("[client]\nmtu = 100\n", "line 2: mtu = 100: write auto, or a number from 576 to 4040"),
        ('[client]\nengine = "fast"\n', "choose one of auto, native, python"),
        ("[client]\nworkers = 0\n", "line 2: workers = 0: write auto, or a number from 1 to 64"),
        ('[client]\nworkers = "many"\n', "line 2: workers = many: write auto, or a number from 1 to 64"),
        ('[client]\noffload = "on"\n', "line 2: offload = on: choose auto, off, or some of tun-tso, "),
        ("[client]\noffload = true\n", "line 2: offload = True: choose auto"),
        ('[client]\noffload = [["udp-gso"]]\n', "choose auto"),
        ("[client]\noffload = []\n", "line 2: offload = []: name either those to use"),
        ('[client]\noffload = ["udp-gso", "-udp-gro"]\n', "name either those to use, or those to leave out"),
        ('[client]\ninterface = "a/b"\n', "an interface name has 1 to 15"),
        ('[client]\ninterface = "0123456789abcdef"\n', "an interface name has 1 to 15"),
        ('[client]\nuser = ""\n', "write the name of a system user"),
        ('[client]\nstate = ""\n', "write a path"),
        ('[server]\ndeliver_to = "::1"\n', "line 2: deliver_to = ::1: write an IPv4 address"),
        ("[client\nport = 1\n", "line 1"),
        ("[client]\ndirect_minutes = 0\n", "line 2: direct_minutes = 0: write a number from 1 to 1440"),
        ("[server]\nhandshakes_per_second = 3\n", "line 2: handshakes_per_second = 3: write a number from 4 to"),
        ("[server]\nhandshakes_per_prefix = '1'\n", "line 2: handshakes_per_prefix = 1: write a number from 4 to"),
        ("[server.failure]\n", "line 1: unknown option 'failure' in [server]"),
        ("[client]\nfailure = 1\n", "line 2: failure = 1: write name patterns with what to do"),
        ("[client]\nfailure = 'direct'\n", "line 2: 'direct': choose one of block, direct"),
        ("[client.failure]\n'a' = 'block'\n\n '*.b.c' = 'drop'\n", "line 4: '*.b.c': choose one of block, direct"),
        ('[client.failure]\n"a" = "block"\n"b" = 1\n', "line 3: 'b': choose one of block, direct"),
        ("[client.failure]\na.b = 'block'\n", "line 2: 'a': write the pattern in quotes"),
        ("[client.failure]\n'a b' = 'block'\n", "line 2: 'a b': a name pattern has letters"),
        ("[client.failure]\n'' = 'block'\n", "line 2: '': a name pattern has letters"),
        ("[client.failure]\n'é' = 'block'\n", "line 2: 'é': a name pattern has letters"),
        ("[client]\nport = 1\nfailure = { 'a' = 'x' }\n", "line 3: 'a': choose one of"),
        ("[client]\nport = 1\nfailure.'*.a' = 'x'\n", "line 3: '*.a': choose one of"),
        ("\nclient = { failure = { 'a' = 'x' } }\n", "line 2: 'a': choose one of"),
        ("[server]\nport = 1\n[client.failure]\n'port' = 'x'\n", "line 4: 'port': choose one of"),
    ],
)
def test_bad_files(config, text, message):
    with pytest.raises(UserError) as caught:
        settings.load("client", config(text), {})
    assert message in str(caught.value)
    assert "pqtun.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_failure_policy(config):
    text = '[client]\ndirect_minutes = 3\n[client.failure]\n"Bank.example.net." = "block"\n"*.example.net" = "direct"\n'
    client, chosen = settings.load("client", config(text), {})
    assert (client.direct_minutes, chosen) == (3, {"direct_minutes", "failure"})
    assert client.failure == (Rule("bank.example.net", "block"), Rule("*.example.net", "direct"))
    client, _ = settings.load("client", config(text), {"failure": "a.b = block, *=direct", "direct_minutes": "60"})
    assert (client.failure, client.direct_minutes) == ((Rule("a.b", "block"), Rule("*", "direct")), 60)
    assert settings.ClientSettings().failure == ()


def test_handshake_limits(config):
    server, _ = settings.load(
        "server", config("[server]\nhandshakes_per_second = 40\n"), {"handshakes_per_prefix": "4"}
    )
    assert (server.handshakes_per_second, server.handshakes_per_prefix) == (40, 4)
    defaults = settings.ServerSettings()
    assert (defaults.handshakes_per_second, defaults.handshakes_per_prefix) == (2000, 100)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        settings.load("client", tmp_path / "none.toml", {})
    with pytest.raises(UserError, match="cannot be read"):
        settings.load("client", tmp_path, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        settings.load("client", binary, {})


def test_bad_flags_are_named():
    with pytest.raises(UserError, match=r"--key-port 70000: a port is a number"):
        settings.load("server", None, {"key_port": "70000"})


@given(st.text(max_size=200))
def test_any_text_loads_or_is_one_clear_line(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("config") / "pqtun.toml"
    try:
        file.write_text(text)
    except UnicodeEncodeError:
        return
    try:
        settings.load("server", file, {})
    except UserError as error:
        message = str(error)
    else:
        return
    assert message.startswith(str(file))
    assert "\n" not in message.replace(str(file), "")
