"""The parts of the benchmarks that compute: search, statistics, tables, the page."""

from __future__ import annotations

import json
import random
import socket
import struct

import pytest

from benchmarks import shell, soak
from benchmarks.attack import Attack
from benchmarks.attacker import COOKIE_BYTES, HANDSHAKE_BYTES, HINT, KINDS, Datagram, Forger, Seen, datagrams
from benchmarks.generator import Trial, highest_rate
from benchmarks.impaired import CASES, ratio, row
from benchmarks.measure import quantile
from benchmarks.publish import rewrite
from benchmarks.report import OURS, goals, table, verdicts
from benchmarks.samples import Samples, spread
from benchmarks.soak import Watch
from tests.net.impairment import Conditions


def limited(limit: float) -> tuple[list[float], object]:
    asked: list[float] = []

    def trial(rate: float) -> Trial:
        asked.append(rate)
        sent = round(rate)
        got = sent if rate <= limit else round(sent * 0.9)
        return Trial(sent, got, got, 0, 1.0)

    return asked, trial


@pytest.mark.parametrize("limit", [900, 10_000, 12_345, 250_000])
def test_search_comes_close_from_below(limit: float) -> None:
    asked, trial = limited(limit)
    found = highest_rate(trial, 10_000)  # type: ignore[arg-type]
    assert limit / 1.04 <= found <= limit
    assert len(asked) < 60


def test_search_forgives_one_failure() -> None:
    failed = []

    def trial(rate: float) -> Trial:
        if rate == 1000 and not failed:
            failed.append(rate)
            return Trial(1000, 500, 500, 0, 1.0)
        return Trial(1000, 1000 if rate <= 1000 else 0, 0, 0, 1.0)

    assert highest_rate(trial, 1000) >= 1000


def test_search_gives_up() -> None:
    assert highest_rate(lambda rate: Trial(100, 0, 0, 0, 1.0), 10_000) == 0


def test_losses_of_a_thousandth_count() -> None:
    assert Trial(10_000, 9991, 0, 0, 1.0).lossless
    assert not Trial(10_000, 9990, 0, 0, 1.0).lossless
    assert not Trial(0, 0, 0, 0, 1.0).lossless


def test_quantile_and_spread() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([7], 0.99) == 7
    assert spread([5, 1, 3]) == (1, 5)
    assert spread([1, 2, 3, 4, 5]) == (1.5, 4.5)


def test_goals_are_ratios_of_medians() -> None:
    samples = Samples(
        {OURS: {"tcp_up": [3e9, 2e9, 4e9], "cpu_gb": [2]}, "wireguard-go": {"tcp_up": [1e9], "cpu_gb": [2]}}
    )
    up, cpu = verdicts(samples)
    assert (up.ratio, up.met) == (3, True)
    assert (cpu.ratio, cpu.met) == (1, False)
    text, all_met = goals(samples)
    assert "MISSED" in text
    assert not all_met
    assert "3000 (2000-4000)" in table(samples, [OURS])
    assert Samples.from_summary(samples.summary()).of(OURS, "tcp_up") == [3e9, 2e9, 4e9]


def test_only_marked_parts_of_the_page_change() -> None:
    page = "a\n<!-- bench one -->\nold\n<!-- end -->\nb\n<!-- bench two -->\nstays\n<!-- end -->\n"
    assert rewrite(page, {"one": "new"}) == page.replace("old", "new")


# -- attacks and bad paths -------------------------------------------------------------------------

CLIENT, SERVER = ("192.0.2.10", 42423), ("198.51.100.20", 42424)


def tunnel_packet(tid: bytes, epoch: int, counter: int, size: int) -> bytes:
    return b"\x02\x00" + tid + struct.pack(">HI", epoch, counter) + random.Random(counter).randbytes(size)


def seen() -> Seen:
    found = Seen()
    for counter in range(10):
        found.take(Datagram(CLIENT, SERVER, tunnel_packet(b"t" * 32, 3, counter, 100)))
        found.take(Datagram(SERVER, CLIENT, tunnel_packet(b"t" * 32, 3, counter, 1400)))
    found.take(Datagram(CLIENT, SERVER, b"\x01\x00" + bytes(HANDSHAKE_BYTES - 2)))
    return found


def test_datagrams_that_were_sent_as_one_are_seen_one_by_one() -> None:
    sent = [bytes([n]) * size for n, size in enumerate((1200, 1200, 300))]
    packet = Datagram(CLIENT, SERVER, b"".join(sent)).packet()
    virtio = struct.pack("=BBHHHH", 0, 5, 0, 1200, 0, 0)
    found = list(datagrams(virtio + bytes(14) + packet))
    assert [datagram.data for datagram in found] == sent
    assert {(datagram.source, datagram.destination) for datagram in found} == {(CLIENT, SERVER)}
    assert list(datagrams(bytes(24) + Datagram(CLIENT, ("198.51.100.20", 53), b"x").packet())) == []


def test_what_is_seen_is_told_apart() -> None:
    found = seen()
    assert [len(kept) for kept in (found.to_server, found.to_client, found.handshakes)] == [10, 10, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_makes_packets(kind: str) -> None:
    forger = Forger(seen(), SERVER[0], "seed")
    made = [forger.make(kind) for _ in range(200)]
    for datagram in made:
        packet = datagram.packet()
        assert len(packet) == int.from_bytes(packet[2:4], "big") == 28 + len(datagram.data)
        assert socket.inet_ntoa(packet[16:20]) in (CLIENT[0], SERVER[0])
    real = {datagram.data for datagram in (*seen().to_server, *seen().to_client)}
    data = [datagram.data for datagram in made]
    if kind.startswith("garbage handshakes"):
        assert {(len(d), d[:2]) for d in data} == {(HANDSHAKE_BYTES, b"\x01\x00")}
        assert len(set(data)) == 200
    elif kind.startswith("forged"):
        assert {d[:34] for d in data} == {b"\x02\x00" + b"t" * 32}
        assert not real & set(data)
        assert len({d[34:36] for d in data}) > 5
    elif kind.startswith("replayed tunnel"):
        assert set(data) <= real
    elif kind == "bit-flipped copies":
        assert not real & set(data)
        assert all(any(len(d) == len(r) and _distance(d, r) == 1 for r in real) for d in data)
    elif kind == "truncated copies":
        assert all(any(r.startswith(d) and r != d for r in real) for d in data)
    elif kind == "03 00":
        assert set(data) == {HINT}
    elif kind == "garbage cookies":
        assert {len(d) for d in data} == {COOKIE_BYTES}
    sources = {datagram.source[0] for datagram in made}
    assert (len(sources) > 150) == (kind.endswith(("sources", "cookies", "noise", "port")))


def _distance(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


@pytest.mark.parametrize(
    ("rate", "changes", "connect", "withstood"),
    [(0.8e9, [], 1.9, True), (0.79e9, [], 1.0, False), (1e9, ["port"], 1.0, False), (1e9, [], 2.1, False)],
)
def test_what_it_means_to_withstand(rate: float, changes: list[str], connect: float, withstood: bool) -> None:
    made = Attack("noise", 1, 1.0, [0.5e9, 1.5e9, 0.5e9], [rate, rate], {}, changes, [connect])
    assert json.loads(made.line())["withstood"] == withstood


def test_ratios_of_bad_paths() -> None:
    samples = Samples({"plain": {"1 % loss": [10, 9, 11]}, "pqtun": {"1 % loss": [12, 11, 30]}})
    assert ratio(samples, "1 % loss") == pytest.approx(1.2)
    assert row(samples, "1 % loss") == "| 1 % loss | 10.00 (9.00-11.00) | 12.00 (11.00-30.00) | 1.20 MISSED |"
    assert "not measured" in row(samples, "10 % loss")
    assert set().union(*CASES.values()) <= set(vars(Conditions()))
    assert not any("," in case for case in CASES)  # it separates them on the command line


def test_memory_and_keys_that_grow_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch([])
    flat = [(10.0 * n, 50_000_000 + n % 3 * 100_000) for n in range(60)]
    watch.memory = {"client 1": flat}
    watch.check_memory()
    assert watch.failures == []
    watch.memory = {"client 2": [(at, size + int(at) * 50_000) for at, size in flat], "server 3": [(0.0, 200_000_000)]}
    watch.check_memory()
    assert [failure.split(":")[0] for failure in watch.failures] == ["client 2", "server 3"]
    watch.failures.clear()
    # An epoch's keys are as old as it has been seen for; a younger tunnel of the same peer is another one.
    looks = [(1000, 500, 16, []), (1110, 610, 16, []), (1115, 615, 17, []), (1200, 80, 17, []), (1319, 199, 17, [])]
    for now, age, epoch, failures in [*looks, (1322, 202, 17, ["client"])]:
        monkeypatch.setattr(soak.time, "monotonic", lambda now=now: now)
        watch._look_at("client", {"name": "pq1x", "age": float(age), "epoch": {"receive": epoch}})
        assert [failure.split(":")[0] for failure in watch.failures] == failures
    assert (watch.epochs, watch.oldest) == (17, 122)


def shell_samples(login: float, echo: float) -> Samples:
    keys = {measure.key for measure in shell.MEASURES}
    rates = {key: [1e8, 1.2e8, 1.1e8] for key in keys - {"login", "echo"}}
    return Samples(
        {
            shell.OURS: {**rates, "login": [login], "echo": [echo]},
            shell.THEIRS: {**rates, "login": [0.2], "echo": [0.001]},
        }
    )


@pytest.mark.parametrize(
    ("login", "echo", "met"), [(0.26, 0.003, True), (0.27, 0.001, False), (0.1, 0.0031, False), (0.26, 0.0, True)]
)
def test_the_shell_is_held_to_its_goals(login: float, echo: float, met: bool) -> None:
    samples = shell_samples(login, echo)
    assert shell.met(samples) == met
    lines = shell.table(samples, [shell.OURS, shell.THEIRS]).split("\n")
    assert len(lines) == 2 + len(shell.MEASURES)
    assert sum("MISSED" in line for line in lines) == (0 if met else 1)
    assert len({line.count("|") for line in lines}) == 1
    assert not shell.met(Samples({shell.OURS: {"login": [0.1]}}))  # what was not measured is not met
