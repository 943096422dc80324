import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.keyserver import limits
from pqtun.keyserver.download import Download, DownloadError
from pqtun.protocol.keydatagram import ephemeral_response, static_request, static_response
from pqtun.protocol.keytree import NODES
from tests.keyserver.servers import a_server, the_tree
from tests.keyserver.simulation import Link, Simulation
from tests.protocol.vectors import public_key

ASKED = len(NODES) - 1  # all but the root, which is the key hash


def simulate(tree, server, *, seed=1, processing=0.0, start=1000.0, **path):
    """A download over a path that is alike both ways."""
    up, down = Link(random=Random(seed), **path), Link(random=Random(seed + 1000), **path)
    return Simulation(Download(tree.keyhash, start), server, up, down, processing, start, start)


def assert_complete(simulation):
    download = simulation.download
    assert download.failure is None
    assert download.done
    assert download.public_key() == public_key()
    assert download.progress == (len(NODES), len(NODES))
    assert download.next_timer is None
    assert download.requests_to_send(simulation.now + 1000) == []


def test_undisturbed_path(tree, server):
    simulation = simulate(tree, server.answer, delay=0.01)
    assert simulation.run() < 0.2
    assert_complete(simulation)
    assert simulation.download.counters["requests"] == ASKED  # not one too many
    assert server.counters["static"] == ASKED


def test_first_flight_is_bounded_and_begins_at_the_top(tree):
    first = Download(tree.keyhash, 0.0).requests_to_send(0.0)
    assert first == [static_request(node) for node in NODES[1 : 1 + limits.INITIAL_WINDOW]]


@pytest.mark.parametrize("seed", range(5))
def test_loss_of_a_tenth_at_200_ms(tree, server, seed):
    """Each direction loses 10 %: about 2.5 s where an undisturbed path with that round trip takes 1.5 s."""
    simulation = simulate(tree, server.answer, delay=0.1, loss=0.1, seed=seed)
    assert simulation.run() < 4.0
    assert_complete(simulation)
    # 19 % of the round trips fail, so 1157 requests are needed on average.
    assert simulation.download.counters["requests"] < 1.3 * ASKED


def test_a_path_that_loses_half_the_round_trips(tree, server):
    simulation = simulate(tree, server.answer, delay=0.1, loss=0.3)
    assert simulation.run() < 30
    assert_complete(simulation)


@pytest.mark.parametrize("queue", [20, 50, 200])
def test_line_of_1_mbit_is_filled_and_not_flooded(tree, server, queue):
    """1.09 MB with headers need 8.9 s at 1 Mbit/s."""
    simulation = simulate(tree, server.answer, delay=0.01, rate=1e6, queue=queue)
    assert simulation.run() < 9.5
    assert_complete(simulation)
    # Never more queued than the first flight, whatever the queue could hold; nothing dropped.
    assert simulation.up.longest <= limits.INITIAL_WINDOW
    assert simulation.most_in_flight <= limits.INITIAL_WINDOW
    assert simulation.up.overflowed == simulation.down.overflowed == 0


@pytest.mark.parametrize(
    ("queue", "delay", "share"),
    [(4, 0.01, 0.05), (10, 0.01, 0.02), (20, 0.1, 0.05)],
)
def test_little_is_dropped_by_a_short_queue(tree, server, queue, delay, share):
    simulation = simulate(tree, server.answer, delay=delay, rate=1e6, queue=queue)
    assert simulation.run() < 10
    assert_complete(simulation)
    assert simulation.up.overflowed <= share * simulation.up.offered


@pytest.mark.parametrize("burst", [2_500, 12_000, 30_000])
@pytest.mark.parametrize("queue", [25, 1000])
def test_the_burst_of_a_token_bucket_promises_nothing(tree, server, queue, burst):
    """The first datagrams pass at once, in 0.4 ms; then 1 Mbit/s. What they promised must not fill the queue."""
    simulation = simulate(tree, server.answer, delay=0.0002, rate=1e6, queue=queue, burst=burst)
    assert simulation.run() < 9.5
    assert_complete(simulation)
    assert simulation.most_in_flight <= limits.INITIAL_WINDOW + burst / 1000 + 4
    assert simulation.up.overflowed <= 0.05 * simulation.up.offered


def test_slow_line_that_loses(tree, server):
    simulation = simulate(tree, server.answer, delay=0.1, rate=1e6, queue=20, loss=0.1)
    assert simulation.run() < 18  # 11 s if the line were never idle
    assert_complete(simulation)


def test_64_kbit_fits_in_the_time_limit(tree, server):
    simulation = simulate(tree, server.answer, delay=0.1, rate=64e3, queue=50)
    assert simulation.run() < limits.TOTAL_TIMEOUT / 2
    assert_complete(simulation)
    assert simulation.up.overflowed == 0


def test_jitter(tree, server):
    """Round trips of 20 to 200 ms in any order, and a tenth lost: the shortest one must not govern the window."""
    simulation = simulate(tree, server.answer, delay=0.01, jitter=0.09, loss=0.1)
    assert simulation.run() < 20
    assert_complete(simulation)


def test_reordering_costs_few_repetitions(tree, server):
    simulation = simulate(tree, server.answer, delay=0.025, jitter=0.025)
    assert simulation.run() < 1.5
    assert_complete(simulation)
    assert simulation.download.counters["requests"] < 1.15 * ASKED


def test_duplicates_are_counted_and_change_nothing(tree, server):
    simulation = simulate(tree, server.answer, delay=0.01, duplicates=0.3)
    assert simulation.run() < 0.3
    assert_complete(simulation)
    assert simulation.download.counters["duplicate"] > 100
    assert simulation.download.counters["requests"] == ASKED


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_found_and_asked_again(tree, server, seed):
    simulation = simulate(tree, server.answer, delay=0.01, damage=0.1, seed=seed)
    assert simulation.run() < 1
    assert_complete(simulation)
    assert simulation.download.counters["rejected"] > 30


@pytest.mark.parametrize("seed", range(3))
def test_everything_at_once(tree, server, seed):
    simulation = simulate(
        tree,
        server.answer,
        seed=seed,
        delay=0.05,
        jitter=0.05,
        loss=0.1,
        duplicates=0.1,
        damage=0.05,
        rate=5e6,
        queue=30,
    )
    assert simulation.run() < 15
    assert_complete(simulation)


def test_server_that_takes_its_time(tree, server):
    simulation = simulate(tree, server.answer, delay=0.01, processing=0.2)
    assert simulation.run() < ASKED * 0.2 + 1
    assert_complete(simulation)
    assert simulation.most_in_flight <= limits.INITIAL_WINDOW


def test_server_that_trickles_is_given_up(tree, server):
    simulation = simulate(tree, server.answer, delay=0.01, processing=5.0)
    assert simulation.run() == pytest.approx(limits.TOTAL_TIMEOUT, abs=0.1)
    assert_failed(simulation, "timeout")


def assert_failed(simulation, reason):
    download = simulation.download
    assert isinstance(download.failure, DownloadError)
    assert download.failure.reason == reason
    assert str(download.failure)
    assert "\n" not in str(download.failure)
    assert not download.done
    assert download.next_timer is None
    assert download.requests_to_send(simulation.now) == []
    with pytest.raises(ValueError, match="not complete"):
        download.public_key()


def test_no_answer(tree):
    simulation = simulate(tree, lambda _: None)
    assert simulation.run() == pytest.approx(limits.NO_ANSWER_TIMEOUT)
    assert_failed(simulation, "no_answer")
    # The first flight, then two probes at growing intervals.
    assert limits.INITIAL_WINDOW + 6 <= simulation.up.offered <= 2 * limits.INITIAL_WINDOW


def test_server_that_goes_away(tree, server):
    simulation = simulate(tree, lambda datagram: server.answer(datagram) if simulation.now < 1000.5 else None, rate=1e6)
    assert simulation.run() == pytest.approx(limits.STALL_TIMEOUT + 0.6, abs=0.3)
    assert_failed(simulation, "timeout")
    assert simulation.up.offered < 150


def test_server_that_comes_back(tree, server):
    def pausing(datagram):
        return None if 1000.5 < simulation.now < 1020 else server.answer(datagram)

    simulation = simulate(tree, pausing, rate=1e6)
    assert simulation.run() < 35
    assert_complete(simulation)


def test_garbage(tree):
    random = Random(5)
    simulation = simulate(tree, lambda datagram: random.randbytes(len(datagram)))
    assert simulation.run() == pytest.approx(limits.NO_ANSWER_TIMEOUT)
    assert_failed(simulation, "no_answer")
    assert "no answers" in str(simulation.download.failure)
    assert sum(value for key, value in simulation.download.counters.items() if key.startswith("dropped_")) > 10


def test_one_wrong_node_is_asked_again(tree, server):
    wrong = {(1, 0): 2, (2, 7): 1, (3, 500): 2}

    def lying(datagram):
        for node in wrong:
            if wrong[node] and datagram == static_request(node):
                wrong[node] -= 1
                return static_response(node, bytes([wrong[node]]) * len(tree.node(node)))
        return server.answer(datagram)

    simulation = simulate(tree, lying)
    assert simulation.run() < 2
    assert_complete(simulation)
    assert simulation.download.counters["rejected"] == 5
    assert simulation.download.counters["requests"] == ASKED + 5


def test_one_node_that_stays_wrong_is_the_wrong_key(tree, server):
    node = (3, 500)
    simulation = simulate(
        tree,
        lambda datagram: (
            static_response(node, bytes(1152)) if datagram == static_request(node) else server.answer(datagram)
        ),
    )
    assert simulation.run() < 3
    assert_failed(simulation, "wrong_key")


def test_wrong_tree(tree, other_tree):
    simulation = simulate(tree, a_server(other_tree).answer, delay=0.1)
    # Three round trips are enough to be sure.
    assert simulation.run() < 1.0
    assert_failed(simulation, "wrong_key")
    assert simulation.up.offered < 250


def test_random_wrong_bytes_end_as_well(tree):
    random = Random(7)

    def lying(datagram):
        return b"\xf1" + datagram[1:11] + random.randbytes(len(datagram) - 11)

    simulation = simulate(tree, lying)
    assert simulation.run() < 5
    assert_failed(simulation, "wrong_key")
    assert max(simulation.download.counters.values()) < 10_000


def test_progress_grows_and_never_exceeds_the_total(tree, server):
    seen = []

    def watching(datagram):
        seen.append(simulation.download.progress)
        return server.answer(datagram)

    simulation = simulate(tree, watching, loss=0.05)
    simulation.run()
    verified = [count for count, _ in seen]
    assert verified[0] == 1
    assert verified == sorted(verified)
    assert {total for _, total in seen} == {len(NODES)}


def test_refusals_are_forgiven_for_a_while(tree, server):
    download = Download(tree.keyhash, 0.0)
    request = download.requests_to_send(0.0)[0]
    for _ in range(20):
        download.refused("Connection refused", 0.0)
    download.refused("Connection refused", limits.REFUSED_TIMEOUT - 0.1)
    assert download.failure is None
    response = server.answer(request)
    download.receive(response, 1.95)
    download.refused("Connection refused", limits.REFUSED_TIMEOUT + 0.1)
    assert download.failure is None
    download.refused("Connection refused", 2 * limits.REFUSED_TIMEOUT + 0.2)
    assert download.failure is not None
    assert download.failure.reason == "network"
    assert "Connection refused" in str(download.failure)
    assert download.next_timer is None


def test_what_was_not_asked_is_dropped(tree, server):
    download = Download(tree.keyhash, 0.0)
    download.requests_to_send(0.0)
    download.receive(server.answer(static_request((3, 800))), 0.1)
    download.receive(server.answer(static_request((0, 0))), 0.1)
    download.receive(ephemeral_response(bytes(1158), bytes(32)), 0.1)
    assert download.counters["dropped_unasked"] == 1
    assert download.counters["duplicate"] == 1
    assert download.counters["dropped_type"] == 1
    assert download.progress[0] == 1


def test_each_other_size_of_an_answer_is_dropped(tree, server):
    download = Download(tree.keyhash, 0.0)
    request = download.requests_to_send(0.0)[0]
    answer = server.answer(request)
    for size in range(len(answer)):
        download.receive(answer[:size], 0.1)
    for extra in (1, 2, 3, 1000):
        download.receive(answer + bytes(extra), 0.1)
    assert download.progress[0] == 1
    assert sum(value for key, value in download.counters.items() if key.startswith("dropped_")) == len(answer) + 4
    download.receive(answer, 0.1)
    assert download.progress[0] == 2


@given(st.lists(st.binary(max_size=1300), max_size=30))
def test_random_datagrams_change_nothing(datagrams):
    download = Download(bytes(32), 0.0)
    download.requests_to_send(0.0)
    before = download.in_flight, download.next_timer
    for datagram in datagrams:
        download.receive(datagram, 0.5)
    assert (download.in_flight, download.next_timer) == before
    assert download.progress[0] == 1


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.12),
    damage=st.floats(0, 0.05),
    jitter=st.floats(0, 0.1),
    rate=st.sampled_from([None, 2e6]),
)
def test_any_path_is_completed(seed, loss, damage, jitter, rate):
    simulation = simulate(
        the_tree(),
        a_server().answer,
        seed=seed,
        delay=0.02,
        loss=loss,
        damage=damage,
        jitter=jitter,
        rate=rate,
        queue=40,
    )
    assert simulation.run() < 90
    assert_complete(simulation)


def test_memory_is_bounded_whatever_the_server_sends(tree, other_tree, server):
    """Every answer wrong, over and over: what is kept stays of the tree's size."""
    download = Download(tree.keyhash, 0.0)
    answers = [static_response(node, other_tree.node(node)) for node in NODES[1:]]
    now = 0.0
    tracemalloc.start()
    try:
        for _ in range(30):
            now += 0.01
            download.requests_to_send(now)
            for answer in answers:
                download.receive(answer[:11] + bytes(answer[11:]), now)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
