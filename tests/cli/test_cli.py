import json
import re
import socket
import threading
from ipaddress import IPv4Address

import pytest

from pqtun import __version__
from pqtun.cli import announce, status
from pqtun.cli.main import main
from pqtun.daemon.checkup import Checkup
from pqtun.protocol.names import parse_name
from tests.protocol.vectors import VECTORS, load

KEYS = VECTORS / "server-keys"
HASH = load("keytree.json")["keyhash_base32"]
LABEL = f"pq1{HASH}55g15fg1"


@pytest.fixture
def run(capsys):
    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def public_keys(tmp_path):
    """`announce` needs the public files only."""
    for name in ("mceliece_pk", "x25519_pk"):
        (tmp_path / name).write_bytes((KEYS / name).read_bytes())
    return tmp_path


def test_version(run):
    assert run("--version") == (0, f"pqtun {__version__}\n", "")


def test_keygen_and_again(run, tmp_path):
    keys = tmp_path / "keys"
    code, out, _ = run("keygen", "--keys", keys)
    assert code == 0
    first = re.search(r"key hash: ([0-9a-z]{52})\n", out)[1]
    assert f"pqtun server --keys {keys}" in out
    code, out, err = run("keygen", "--keys", keys)
    assert code == 1
    assert out == ""
    assert err.startswith("pqtun keygen: ")
    assert "--force" in err
    assert err.count("\n") == 1
    assert run("announce", "a.example.net", "--address", "192.0.2.1", "--keys", keys)[1].count(first) == 2
    code, out, _ = run("keygen", "--keys", keys, "--force")
    assert code == 0
    assert first not in out


def test_announce_zone(run, public_keys):
    code, out, _ = run(
        "announce",
        "www.example.net",
        "Mail.Example.NET.",
        "--keys",
        public_keys,
        "--address",
        "192.0.2.1",
        "2001:db8::1",
    )
    assert code == 0
    assert out.splitlines() == [
        f"www.example.net. 3600 IN CNAME {LABEL}.example.net.",
        f"{LABEL}.example.net. 3600 IN A 192.0.2.1",
        f"{LABEL}.example.net. 3600 IN AAAA 2001:db8::1",
        f"mail.example.net. 3600 IN CNAME {LABEL}.example.net.",
    ]


def test_announce_tinydns(run, public_keys):
    arguments = ("announce", "www.example.net", "--keys", public_keys, "--address", "192.0.2.1", "2001:db8::1")
    code, out, _ = run(*arguments, "--format", "tinydns")
    assert code == 0
    assert out.splitlines() == [
        f"Cwww.example.net:{LABEL}.example.net.:3600",
        f"+{LABEL}.example.net:192.0.2.1:3600",
        f":{LABEL}.example.net:28:\\040\\001\\015\\270" + "\\000" * 11 + "\\001:3600",
    ]


def test_announce_a_server_with_ipv6_alone(run, public_keys):
    code, out, err = run("announce", "www.example.net", "--keys", public_keys, "--address", "2001:db8::1")
    assert code == 0
    assert [line.split()[3:5] for line in out.splitlines()][1] == ["AAAA", "2001:db8::1"]
    assert "PQConnect clients cannot reach" in err


def test_announce_json_with_ports(run, public_keys):
    code, out, _ = run(
        "announce", "www.example.net", "--keys", public_keys, "--address", "192.0.2.1", "--address", "192.0.2.2",
        "--port", "443", "--key-port", "853", "--format", "json",
    )  # fmt: skip
    assert code == 0
    records = json.loads(out)["records"]
    assert [record["type"] for record in records] == ["CNAME", "A", "A"]
    announced = parse_name(records[0]["value"])
    assert (announced.keyhash.hex(), announced.port, announced.key_port) == (load("keytree.json")["keyhash"], 443, 853)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["announce", "www", "--address", "192.0.2.1"], 1, "'www' is no host name with a domain"),
        (["announce", "a b.example", "--address", "192.0.2.1"], 1, "is no host name"),
        (["announce", "a-.example", "--address", "192.0.2.1"], 1, "is no host name"),
        (["announce", "example.net", "--address", "192.0.2.1"], 1, "announce a name in it such as www.example.net"),
        (["announce", "w.x.y", "--address", "192.0.2.1", "--port", "9", "--key-port", "9"], 1, "two different ports"),
        (
            ["announce", "www.example.net", "--address", "fe80::1%eth0"],
            2,
            "'fe80::1%eth0' is an address of one link only",
        ),
        (["announce", f"www.{'.'.join(['x' * 63] * 3)}", "--address", "192.0.2.1"], 1, "too long"),
        (["announce", "www.example.net", "--address", "192.0.2.300"], 2, "'192.0.2.300' is no IP address"),
        (["announce", "www.example.net", "--address", "192.0.2.1", "--port", "0"], 2, "a port is a number"),
        (["announce", "--address", "192.0.2.1", "www.example.net"], 2, "hosts come before --address"),
        (["announce", "www.example.net"], 2, "--address"),
        (["status", "other"], 2, "invalid choice"),
        (["unknown"], 2, "invalid choice"),
        ([], 2, "required"),
        (["client", "--mtu", "1"], 1, "--mtu 1: write auto, or a number from 576 to 4040"),
        (["client", "--failure", "*.a=direct,b"], 1, "--failure *.a=direct,b: choose one of block, direct"),
        (["client", "--direct-minutes", "0"], 1, "--direct-minutes 0: write a number from 1 to 1440"),
        (["server", "--handshakes-per-second", "x"], 1, "--handshakes-per-second x: write a whole number"),
        (["server", "--handshakes-per-prefix", "3"], 1, "--handshakes-per-prefix 3: write a number from 4 to 1000000"),
        (["server", "--address", "10.0.0.1"], 1, "--address 10.0.0.1: the prefix length"),
        (["server", "--config", "/nonexistent.toml"], 1, "/nonexistent.toml: no such file"),
    ],
)
def test_bad_arguments_get_a_clear_message(run, public_keys, arguments, code, message):
    if arguments and arguments[0] == "announce":
        arguments = [*arguments, "--keys", public_keys]
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("client", ["--mtu auto|N", "--direct-minutes N", "(10)", "--failure NAMES=block|direct,..."]),
        ("server", ["--mtu auto|N", "--handshakes-per-second N", "(2000)", "--handshakes-per-prefix N", "(100)"]),
    ],
)
def test_help_names_the_options_and_their_defaults(run, command, lines):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    for line in lines:
        assert line in out
    assert "None" not in out
    assert "()" not in out


def test_announce_without_keys(run, tmp_path):
    code, out, err = run("announce", "www.example.net", "--address", "192.0.2.1", "--keys", tmp_path / "none")
    assert (code, out) == (1, "")
    assert err.startswith("pqtun announce: ")
    assert "none" in err


@pytest.mark.parametrize("role", [[], ["client"], ["server"]])
def test_status_of_nothing(run, tmp_path, role):
    code, out, err = run("status", *role, "--run", tmp_path)
    assert (code, out) == (1, "")
    assert "runs with" in err


def stale_socket(path):
    """What a service that was killed leaves behind."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_status_beside_a_service_that_was_killed(run, tmp_path):
    stale_socket(tmp_path / "client.sock")
    assert "no pqtun client, server or sshd runs" in run("status", "--run", tmp_path)[2]
    assert "no pqtun client runs" in run("status", "client", "--run", tmp_path)[2]

    def answer(listening):
        with listening.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b'{"role": "server"}\n')

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "server.sock"))
        listening.listen()
        thread = threading.Thread(target=answer, args=[listening])
        thread.start()
        code, out, err = run("status", "--run", tmp_path, "--json")
        thread.join(10)
    assert (code, json.loads(out), err) == (0, {"server": {"role": "server"}}, "")


def test_status_tells_what_was_dropped(run):
    head = dict.fromkeys(("role", "interface", "address", "mtu", "port", "engine", "pid", "version"), "x")
    counters = {"events": {"attempts_full": 2}, "key_server": {"static": 938, "dropped_type": 1}}
    lines = status._text({**head, "uptime": 1, "peers": [], **counters}).splitlines()
    assert "  events: attempts_full 2" in lines
    assert "  key server: dropped_type 1, static 938" in lines


def test_status_tells_what_the_engine_leaves_to_the_kernel():
    head = dict.fromkeys(("role", "interface", "address", "mtu", "port", "pid", "version"), "x")
    native = {"engine": "native", "workers": 4, "offload": {"tun-tso": "on", "udp-gso": "failed"}}
    lines = status._text({**head, **native, "uptime": 1, "peers": []}).splitlines()
    assert "  engine: native, 4 workers" in lines
    assert "  offload: tun-tso on, udp-gso failed" in lines
    lines = status._text({**head, "engine": "python", "workers": 1, "offload": {}, "uptime": 1, "peers": []})
    assert "  engine: python\n" in lines
    assert "offload" not in lines


@pytest.mark.parametrize("host", ["", ".", "192.0.2.1", "2001:db8::1"])
def test_check_of_what_is_no_name(run, tmp_path, host):
    code, out, err = run("check", host, "--run", tmp_path)
    assert (code, err) == (1, "")
    assert out.startswith("FAIL DNS announcement")
    assert f"{host!r} is no name" in out


def test_check_beside_a_client_that_was_killed(tmp_path):
    """A server on the local network has a private address of its own."""
    stale_socket(tmp_path / "client.sock")
    addresses = [IPv4Address("192.168.1.7")]
    assert Checkup("www.example.net", tmp_path)._behind_client(addresses) == addresses


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 s"), (90061, "1 d 1 h")])
def test_durations(seconds, text):
    assert status._duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (2**50, "1024.00 TiB")])
def test_sizes(number, text):
    assert status._size(number) == text


def test_tinydns_octal_of_an_address():
    record = {"name": "a.example", "type": "AAAA", "ttl": 1, "value": "::1"}
    assert announce._tinydns([record]) == ":a.example:28:" + "\\000" * 15 + "\\001:1"


def test_an_empty_path_is_wrong_usage(run):
    code, _, err = run("client", "--config", "")
    assert code == 2
    assert "write a path" in err


def test_a_status_cannot_steer_the_terminal():
    peer = {"name": "a\x1b]0;evil\x07\nb\x9b2J", "state": "up", "private_address": "10.43.0.2"}
    head = dict.fromkeys(("role", "interface", "address", "mtu", "port", "engine", "pid", "version"), "x")
    text = status._text({**head, "uptime": 1, "peers": [peer]})
    assert "peer: a?]0;evil??b?2J" in text
    assert all(line.isprintable() for line in text.split("\n"))
