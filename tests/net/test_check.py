"""`pqtun check`: with everything in order, and with each fault on the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pqtun.protocol.names import make_label
from tests.net import pqtun
from tests.net.bad_key_server import PORT as BAD_PORT
from tests.net.lab import CLIENT4, SERVER4, SERVER6, Lab
from tests.net.stage import HOST, PLAIN, Stage, python, start_python, started, status, stopped

STEPS = ["dns", "key", "hash", "handshake", "ping"]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab() as lab:
        made = Stage(lab)
        started(made.server)
        yield made


def check(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it on the client, whatever comes of it."""
    argv = pqtun.argv("check", "--run", str(stage.client.run_directory), *arguments)
    return stage.lab.run(stage.net.client, *argv, env=pqtun.environment(), check=False, timeout=60)


def document(stage: Stage, *arguments: str) -> dict[str, Any]:
    """Its JSON document; the exit code and the steps' order must fit it."""
    done = check(stage, *arguments, "--json")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1)
    assert [step["step"] for step in found["steps"]] == STEPS[: len(found["steps"])]
    assert found["ok"] == all(step["ok"] for step in found["steps"])
    for step in found["steps"]:
        assert step["ok"] == (step["error"] is None)
        assert step["seconds"] >= 0
    return found


def fault(stage: Stage, host: str, step: str) -> str:
    """What is said of the step that fails, as text and in JSON, which must be the last one."""
    found = document(stage, host)
    assert not found["ok"]
    assert found["steps"][-1]["step"] == step
    assert all(earlier["ok"] for earlier in found["steps"][:-1])
    error: str = found["steps"][-1]["error"]
    assert "\n" not in error
    return error


def test_all_is_well(stage: Stage) -> None:
    done = check(stage, HOST)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[:4] for line in lines] == ["ok  "] * len(STEPS)
    assert f"{stage.label} at {SERVER4}, {SERVER6}" in lines[0]
    assert f"tunnel to {SERVER6} port 42424 and to {SERVER4} port 42424" in lines[3]
    assert f"{SERVER6}: 4 of 4 answered" in lines[4]
    assert f"{SERVER4}: 4 of 4 answered" in lines[4]
    found = document(stage, HOST)
    assert found["ok"]
    assert len(found["steps"]) == len(STEPS)
    both = {"addresses": [SERVER4, SERVER6], "answering": [SERVER6, SERVER4]}
    assert found == {**found, "host": HOST, "name": stage.label, **both}
    assert f"pq1{found['keyhash']}" in stage.label


def test_dns_only(stage: Stage) -> None:
    before = status(stage.server)["key_server"]
    assert [step["step"] for step in document(stage, HOST, "--dns-only")["steps"]] == ["dns"]
    assert check(stage, HOST, "--dns-only").stdout.startswith("ok   DNS announcement")
    assert check(stage, PLAIN, "--dns-only").returncode == 1
    assert status(stage.server)["key_server"] == before


def test_without_root(stage: Stage) -> None:
    # In one process, as an unprivileged user may not be able to read this checkout.
    code = f"""
        import os
        import dns.asyncbackend, dns._asyncio_backend
        from pqtun.cli.main import main, parser
        from pqtun.protocol import primitives
        parser()  # imports the commands
        os.setgroups([]); os.setgid(12345); os.setuid(12345)
        print(main(["check", "{HOST}"]))
    """
    assert python(stage.lab, stage.net.client, code).splitlines()[-1] == "0"


def test_beside_a_running_client(stage: Stage) -> None:
    """It sees the private address and asks the client for what is behind it."""
    started(stage.client)
    try:
        assert stage.private_address()
        found = document(stage, HOST)
        assert found["ok"], found
        assert set(found["addresses"]) == set(found["answering"]) == {SERVER4, SERVER6}
        assert stage.curl().tunnelled
    finally:
        assert stopped(stage.client) == 0


def test_not_announced(stage: Stage) -> None:
    assert f"{PLAIN} announces no pq1 key" in fault(stage, PLAIN, "dns")
    done = check(stage, PLAIN)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL DNS announcement")


def test_no_such_name(stage: Stage) -> None:
    assert "nothing.example.net does not exist in DNS" in fault(stage, "nothing.example.net", "dns")


def test_announced_without_address(stage: Stage) -> None:
    target = stage.label.replace("example", "no-address")
    stage.add_records(f"no-address.example.net. 60 IN CNAME {target}.", f'{target}. 60 IN TXT "x"')
    assert f"{target} has neither an A nor an AAAA record" in fault(stage, "no-address.example.net", "dns")


def test_server_down(stage: Stage) -> None:
    assert stopped(stage.server) == 0
    try:
        said = fault(stage, HOST, "key")
    finally:
        started(stage.server)
    for address in (SERVER6, SERVER4):
        assert f"key server {address} port 42425: the key server cannot be reached: " in said


def test_key_server_down(stage: Stage) -> None:
    """The rest of the server runs."""
    stage.announce("no-keys.example.net", stage.keyhash, SERVER4, (42424, 45999))
    said = fault(stage, "no-keys.example.net", "key")
    assert f"key server {SERVER4} port 45999: " in said


def test_nobody_answers(stage: Stage) -> None:
    """Neither a key server, nor, for a host beside it, the resolver. Both take about 10 s."""
    process = start_python(stage.lab, stage.net.server, "-m", "tests.net.bad_key_server", "silent", SERVER4)
    process.wait_output("ready", 10)
    stage.announce("silent.example.net", stage.keyhash, SERVER4, (42424, BAD_PORT))
    stage.lab.set_nameservers(stage.net.router, CLIENT4)
    argv = ("-m", "pqtun", "check", "--json")
    lookup = start_python(stage.lab, stage.net.router, *argv, HOST)
    said = fault(stage, "silent.example.net", "key")
    assert f"key server {SERVER4} port {BAD_PORT}: no answer" in said
    assert lookup.wait(10) == 1
    [step] = json.loads(lookup.output())["steps"]
    assert f"DNS lookup of {HOST} (A) failed" in step["error"]


def test_wrong_key(stage: Stage) -> None:
    stage.announce("unfit.example.net", bytes.fromhex("5a" * 32), SERVER4)
    said = fault(stage, "unfit.example.net", "key")
    assert "another key" in said


@pytest.mark.parametrize("silent", [False, True], ids=["closed", "silent"])
def test_tunnel_port_dead(stage: Stage, silent: bool) -> None:
    """The key server runs; where the tunnels should be is nothing, or something that does not answer."""
    host, port = ("silent-port.example.net", 45997) if silent else ("closed-port.example.net", 45998)
    if silent:
        code = f"import socket; s = socket.socket(2, 2); s.bind(('', {port})); print('ready', flush=True)"
        process = start_python(stage.lab, stage.net.server, "-c", f"{code}\nwhile True: s.recv(9999)")
        process.wait_output("ready", 10)
    stage.announce(host, stage.keyhash, SERVER4, (port, 42425))
    assert f"no answer from {SERVER4} port {port}" in fault(stage, host, "handshake")


def test_it_asks_the_resolver_of_the_host_and_only_what_it_must(stage: Stage) -> None:
    asked = len(stage.dns.queries())
    assert document(stage, HOST)["ok"]
    assert sorted(query[:2] for query in stage.dns.queries()[asked:]) == [(HOST, "A"), (HOST, "AAAA")]


def test_ipv6_only(stage: Stage) -> None:
    target = make_label(stage.keyhash) + ".six.example.net."
    stage.add_records(f"six.example.net. 60 IN CNAME {target}", f"{target} 60 IN AAAA {SERVER6}")
    found = document(stage, "six.example.net")
    assert found["ok"], found
    assert found["addresses"] == found["answering"] == [SERVER6]


def test_an_address_that_does_not_answer(stage: Stage) -> None:
    """All is well over the other one; what is wrong with this one is said."""
    stage.announce("moved.example.net", stage.keyhash, SERVER4)
    target = make_label(stage.keyhash) + ".moved.example.net."
    dead = SERVER6.replace("::20", "::99")
    stage.add_records(f"{target} 60 IN AAAA {dead}")
    found = document(stage, "moved.example.net")
    assert found["ok"], found
    assert (found["addresses"], found["answering"]) == ([SERVER4, dead], [SERVER4])
    assert f"from {SERVER4} port 42425; no answer from key server {dead} port 42425" in found["steps"][1]["detail"]


@contextmanager
def wall(stage: Stage, ns: str, rule: str) -> Iterator[None]:
    """Drop what comes into a namespace and matches."""
    text = f"table inet wall {{\nchain input {{\ntype filter hook input priority 0\n{rule} drop\n}}\n}}\n"
    stage.lab.run(ns, "nft", "-f", "-", stdin=text.encode())
    try:
        yield
    finally:
        stage.lab.run(ns, "nft", "delete", "table", "inet", "wall")


def test_a_firewall_that_lets_only_one_family_to_the_tunnel_port(stage: Stage) -> None:
    with wall(stage, stage.net.server, "meta nfproto ipv6 udp dport 42424"):
        found = document(stage, HOST)
    assert found["ok"], found
    assert found["answering"] == [SERVER4]
    assert f"tunnel to {SERVER4} port 42424; no answer from {SERVER6} port 42424" in found["steps"][3]["detail"]
    assert SERVER6 not in found["steps"][4]["detail"]


def test_one_lookup_fails(stage: Stage) -> None:
    """A resolver that does not answer AAAA questions keeps nobody from the IPv4 address."""
    # The type follows the name, of two bytes more than its text (RFC 1035 section 4.1.2), and 8 + 12 bytes of headers.
    with wall(stage, stage.net.resolver, f"udp dport 53 @th,{(8 + 12 + len(HOST) + 2) * 8},16 28"):
        found = document(stage, HOST)
    assert found["ok"], found
    assert found["addresses"] == [SERVER4]
    assert f"DNS lookup of {HOST} (AAAA) failed" in found["steps"][0]["detail"]
