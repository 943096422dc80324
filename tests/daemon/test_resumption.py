import pytest

from pqtun.daemon.resumption import NEW_SECONDS, RESUMABLE_SECONDS, ResumptionMemory
from pqtun.protocol.control import resume_proof

NEW = bytes([9]) * 32


def secret_of(tid):
    return bytes([tid[0] + 100]) * 32


def tids(number):
    return [bytes([n + 1]) * 32 for n in range(number)]


def kept(memory, tid, now=0.0):
    assert memory.offer(tid, secret_of(tid), now) is None
    return memory.keep(tid)


def claim(memory, tid, successor=NEW):
    return memory.claim(tid, resume_proof(secret_of(tid), successor), successor)


def secrets(memory):
    return [*memory._live.values(), *(secret for secret, _ in [*memory._new.values(), *memory._gone.values()])]


@pytest.mark.parametrize("state", ["new", "live", "gone"])
def test_a_proof_counts_once(state):
    memory = ResumptionMemory()
    (tid,) = tids(1)
    memory.offer(tid, secret_of(tid), 0.0)
    if state != "new":
        memory.keep(tid)
    if state == "gone":
        assert memory.died(tid, 0.0)
    (secret,) = secrets(memory)
    assert memory.claim(tid, resume_proof(secret_of(tid), bytes(32)), NEW) is False
    assert claim(memory, tid, tid) is None
    assert secret == secret_of(tid)
    assert claim(memory, tid) is True
    assert secret == bytes(32)
    assert claim(memory, tid) is None
    assert len(memory) == 0


def test_the_secret_is_a_copy():
    memory = ResumptionMemory()
    (tid,) = tids(1)
    secret = bytearray(secret_of(tid))
    memory.offer(tid, secret, 0.0)
    secret[:] = bytes(32)
    assert claim(memory, tid) is True


def test_a_tunnel_whose_client_cannot_resume_is_forgotten_with_it():
    memory = ResumptionMemory()
    one, other = tids(2)
    memory.offer(one, secret_of(one), 0.0)
    (secret,) = secrets(memory)
    assert memory.died(one, 1.0) is False
    assert memory.died(other, 1.0) is False
    assert secret == bytes(32)
    assert memory.keep(one) is None
    assert len(memory) == 0


def test_times():
    memory = ResumptionMemory()
    one, two, three = tids(3)
    memory.offer(one, secret_of(one), 0.0)
    kept(memory, two)
    kept(memory, three)
    memory.died(two, 10.0)
    everything = secrets(memory)
    assert memory.expire(NEW_SECONDS - 1) == []
    assert len(memory) == 3
    assert memory.expire(NEW_SECONDS) == []
    assert claim(memory, one) is None
    assert memory.expire(RESUMABLE_SECONDS + 9) == []
    assert memory.expire(RESUMABLE_SECONDS + 10) == [two]
    assert claim(memory, three) is True  # it lives
    assert everything == [bytes(32)] * 3


def test_the_longest_dead_make_room_then_the_oldest():
    memory = ResumptionMemory(limit=3)
    one, two, three, four, five, six = tids(6)
    for tid in (one, two, three):
        assert kept(memory, tid) is None
    assert memory.keep(three) is None  # a hello that was repeated
    memory.died(three, 0.0)
    memory.died(two, 1.0)
    everything = secrets(memory)
    assert kept(memory, four) == three
    assert kept(memory, five) == two
    assert kept(memory, six) == one
    assert sorted(map(bytes, everything)) == [bytes(32)] * 3
    assert [claim(memory, tid) for tid in (one, two, three, four, five, six)] == [None] * 3 + [True] * 3


def test_those_without_a_hello_push_out_each_other_only():
    memory = ResumptionMemory(limit=3, new_limit=2)
    old, one, two, three = tids(4)
    kept(memory, old)
    memory.died(old, 0.0)
    assert memory.offer(one, secret_of(one), 0.0) is None
    assert memory.offer(two, secret_of(two), 0.0) is None
    assert memory.offer(three, secret_of(three), 0.0) == one
    assert len(memory) == 3
    assert memory.keep(one) is None
    assert [claim(memory, tid) for tid in (old, one, two, three)] == [True, None, True, True]


def test_erase_leaves_nothing():
    memory = ResumptionMemory()
    one, two, three = tids(3)
    kept(memory, one)
    kept(memory, two)
    memory.died(two, 0.0)
    memory.offer(three, secret_of(three), 0.0)
    everything = secrets(memory)
    memory.erase()
    assert everything == [bytes(32)] * 3
    assert len(memory) == 0


def test_many_that_died_together_expire_in_one_look():
    """A cut of the server's own line ends all tunnels within seconds, and a day later all are forgotten."""
    memory = ResumptionMemory()
    tids = [number.to_bytes(32, "big") for number in range(65_536)]
    for tid in tids:
        memory.offer(tid, bytes(32), 0.0)
        memory.keep(tid)
    for tid in tids:
        memory.died(tid, 0.0)
    assert memory.expire(RESUMABLE_SECONDS) == tids
