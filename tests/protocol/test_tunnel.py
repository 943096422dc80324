from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pqtun.protocol import primitives, schedule
from pqtun.protocol.constants import LAST_EPOCH
from pqtun.protocol.errors import MessageError
from pqtun.protocol.limits import RECEIVE_WINDOW, SKIPPED_BLOCKS
from pqtun.protocol.tunnel import Tunnel
from tests.protocol.pqconnect_receiver import PqconnectReceiver
from tests.protocol.vectors import load

TID, TI, TR = b"t" * 32, b"i" * 32, b"r" * 32


def packet_index(datagram):
    """Epoch and counter, as they are on the wire."""
    return int.from_bytes(datagram[34:36], "big"), int.from_bytes(datagram[36:40], "big")


def pair(now=0.0, first_epoch=0):
    return Tunnel(TID, TI, TR, now, first_epoch), Tunnel(TID, TR, TI, now, first_epoch)


def snapshot(tunnel):
    """Everything that a receiving side could change, secrets included."""
    receive, send = tunnel._receive, tunnel._send
    epochs = {
        n: (e.came_up, bytes(e.chain_key), e.expected, e.derived, {b: bytes(k) for b, k in e.blocks.items()})
        for n, e in receive._epochs.items()
    }
    return epochs, receive.newest, bytes(receive._next_root), receive.deadline, send.epoch, send.counter, send.expires


@pytest.mark.parametrize("case", load("tunnel.json"), ids=lambda c: c["tid"][:8])
def test_known_answers(case):
    tid, send_root, recv_root = (bytes.fromhex(case[name]) for name in ("tid", "send_root", "recv_root"))
    sender, receiver = Tunnel(tid, send_root, recv_root, 0.0), Tunnel(tid, recv_root, send_root, 0.0)
    for packet in case["datagrams"]:
        datagram, plaintext = bytes.fromhex(packet["datagram"]), bytes.fromhex(packet["plaintext"])
        assert datagram[:34] == b"\2\0" + tid
        now = 30.0 * packet_index(datagram)[0]
        assert sender.seal(plaintext, now) == datagram
        assert receiver.open(datagram, now) == plaintext


@pytest.mark.parametrize("case", load("tunnel.json"), ids=lambda c: c["tid"][:8])
def test_known_packet_keys(case):
    send = schedule.SendSchedule(bytes.fromhex(case["send_root"]), 0.0)
    for epoch in case["send_schedule"]:
        send.advance(30.0 * epoch["epoch"])
        assert send.epoch == epoch["epoch"]
        for counter, known in enumerate(epoch["packet_keys"]):
            assert (send.next_key()[0], send._block[send._offset - 32 : send._offset].hex()) == (counter, known)


def test_both_directions_and_sizes():
    a, b = pair()
    for size in (0, 1, 20, 1400, 65_000):
        assert b.open(a.seal(bytes(size), 1.0), 1.0) == bytes(size)
        assert a.open(b.seal(b"x" * size, 1.0), 1.0) == b"x" * size


@pytest.mark.parametrize("wrong", [(31, 32, 32), (32, 33, 32), (32, 32, 0)])
def test_secrets_of_another_size(wrong):
    with pytest.raises(ValueError, match="32 bytes"):
        Tunnel(*(bytes(size) for size in wrong), 0.0)


def test_a_packet_opens_once():
    a, b = pair()
    datagrams = [a.seal(bytes([i]), 0.0) for i in range(40)]
    for datagram in reversed(datagrams):
        b.open(datagram, 0.0)
    before = snapshot(b)
    for datagram in datagrams:
        with pytest.raises(MessageError, match="replay"):
            b.open(datagram, 0.0)
    assert snapshot(b) == before


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_nothing_forged_changes_state(seed):
    random = Random(seed)
    a, b = pair()
    now = 0.0
    for _ in range(6):
        now += random.choice([0.0, 1.0, 31.0])
        datagram = a.seal(bytes(random.randrange(50)), now)
        forgeries = [datagram[:size] for size in range(0, len(datagram), 7)] + [datagram + b"\0"]
        for _ in range(20):
            forged = bytearray(datagram)
            forged[random.randrange(len(forged))] ^= 1 << random.randrange(8)
            forgeries.append(bytes(forged))
        for epoch in (0, 1, 3, 4, 5, 6, LAST_EPOCH):
            for counter in (0, 17, 18, 4095, 4096, 2**32 - 1):
                forgeries.append(datagram[:34] + epoch.to_bytes(2, "big") + counter.to_bytes(4, "big") + datagram[40:])
        b.expire(now)  # what the clock does is not the forger's doing
        before = snapshot(b)
        for forged in forgeries:
            if forged != datagram:
                with pytest.raises(MessageError):
                    b.open(forged, now)
        assert snapshot(b) == before
        b.open(datagram, now)
        a.open(b.seal(b"", now), now)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.4))
def test_loss_reordering_and_duplication(seed, loss):
    random = Random(seed)
    ends = pair()
    now, sent, got = 0.0, [{}, {}], [[], []]
    network = []
    for number in range(400):
        now += random.choice([0.0, 0.0, 0.1, 2.0])
        side = random.randrange(2)
        sent[side][number] = b"%d" % number
        datagram = ends[side].seal(sent[side][number], now)
        if random.random() >= loss:
            network += [(1 - side, datagram)] * random.choice([1, 1, 1, 2])
        while network and random.random() < 0.6:
            to, arrived = network.pop(random.randrange(min(len(network), 30)))
            try:
                got[to].append(ends[to].open(arrived, now))
            except MessageError as error:
                if error.reason not in ("replay", "old_epoch"):
                    raise
    for to in range(2):
        assert len(set(got[to])) == len(got[to])
        assert set(got[to]) <= set(sent[1 - to].values())
    delivered = len(got[0]) + len(got[1])
    assert delivered > 0.4 * (1 - loss) * 400


def test_a_burst_of_lost_packets_within_the_window():
    a, b = pair()
    lost = [a.seal(b"", 0.0) for _ in range(RECEIVE_WINDOW - 1)]
    b.open(a.seal(b"next", 0.0), 0.0)
    assert b.open(lost[-1], 0.0) == b""  # late, not lost
    for _ in range(RECEIVE_WINDOW):
        ahead = a.seal(b"", 0.0)
    with pytest.raises(MessageError, match="counter_ahead"):
        b.open(a.seal(b"", 0.0), 0.0)
    b.open(ahead, 0.0)


def test_memory_is_bounded_and_the_oldest_skipped_keys_go():
    a, b = pair()
    first = a.seal(b"first", 0.0)
    for _ in range(5):
        for _ in range(RECEIVE_WINDOW - 2):
            a.seal(b"", 0.0)
        b.open(a.seal(b"", 0.0), 0.0)
        assert sum(len(e.blocks) for e in b._receive._epochs.values()) <= SKIPPED_BLOCKS
    with pytest.raises(MessageError, match="replay"):
        b.open(first, 0.0)


def test_memory_is_bounded_over_all_epochs_of_a_tunnel():
    """Anybody can be a server's peer, and jump to the end of the window in each of five epochs."""
    a, b = pair()
    datagrams, last = {}, RECEIVE_WINDOW - 1
    for epoch in range(5):
        a._send.step_up_to(epoch, 0.0)
        for counter in range(RECEIVE_WINDOW):
            datagram = a.seal(b"", 0.0)
            if counter >= last - 1:
                datagrams[epoch, counter] = datagram
    for epoch in (4, 0, 1, 3, 2):
        b.open(datagrams[epoch, last], 0.0)
        assert sum(len(e.blocks) for e in b._receive._epochs.values()) <= SKIPPED_BLOCKS
    b.open(datagrams[4, last - 1], 0.0)  # the newest epoch's latest are kept
    with pytest.raises(MessageError, match="replay"):
        b.open(datagrams[0, last - 1], 0.0)


def test_used_blocks_are_freed():
    a, b = pair()
    for _ in range(10_000):
        b.open(a.seal(b"", 0.0), 0.0)
    assert sum(len(e.blocks) for e in b._receive._epochs.values()) <= 1


def test_epochs_follow_the_clock():
    a, _ = pair()
    for now, epoch in [(0.0, 0), (29.9, 0), (30.0, 1), (59.9, 1), (75.0, 2), (119.0, 3)]:
        a.seal(b"", now)
        assert a.send_epoch == epoch


def test_the_sender_follows_the_peer():
    a, b = pair()
    a.open(b.seal(b"", 40.0), 2.0)  # the peer's clock is ahead
    assert a.send_epoch == a.recv_epoch == 1
    assert packet_index(a.seal(b"", 2.0)) == (1, 0)
    a.seal(b"", 32.1)
    assert a.send_epoch == 2


def test_an_epoch_that_begins_early():
    a, b = pair()
    a.seal(b"", 0.0)
    a.next_epoch(7.0)
    assert packet_index(a.seal(b"", 7.0)) == (1, 0)
    assert packet_index(a.seal(b"", 36.9)) == (1, 1)  # it lasts as long as any
    a.next_epoch(37.0)  # which is when the next one begins anyway
    late = a.seal(b"late", 37.0)
    assert packet_index(late) == (2, 0)
    assert b.open(late, 37.0) == b"late"


def test_no_epoch_comes_after_the_last():
    a, _ = pair(first_epoch=LAST_EPOCH)
    a.next_epoch(1.0)
    assert packet_index(a.seal(b"", 1.0)) == (LAST_EPOCH, 0)


def test_a_dead_tunnel_has_no_next_epoch():
    a, _ = pair()
    a.erase()
    a.next_epoch(1.0)
    assert a.send_epoch == 0


def test_the_next_epoch_reaches_a_pqconnect_peer_that_lost_too_many_packets():
    a, _ = pair()
    peer = PqconnectReceiver(0.0)

    def heard():
        return peer.read(*packet_index(a.seal(b"", 1.0)), 1.0)

    assert all(heard() for _ in range(1000))
    for _ in range(90):
        a.seal(b"", 1.0)
    assert not any([heard() for _ in range(100)][18:])
    a.next_epoch(1.0)
    assert heard()


def test_up_to_four_epochs_ahead():
    a, b = pair()
    for _ in range(4):
        a.step(0.0)
    b.open(a.seal(b"", 0.0), 0.0)
    assert b.recv_epoch == 4
    assert len(b._receive._epochs) == 5
    for _ in range(5):
        a.step(0.0)
    with pytest.raises(MessageError, match="epoch_ahead"):
        b.open(a.seal(b"", 0.0), 0.0)
    assert b.recv_epoch == 4


def test_a_late_packet_of_an_epoch_that_was_skipped():
    a, b = pair()
    late = [a.seal(b"%d" % epoch, 30.0 * epoch) for epoch in range(4)]
    for datagram in reversed(late):
        b.open(datagram, 90.0)
    for number, datagram in enumerate(late):
        with pytest.raises(MessageError, match="replay"):
            b.open(datagram, 90.0)
        assert packet_index(datagram)[0] == number


def test_old_epochs_are_erased_and_the_tunnel_dies():
    a, b = pair()
    early = a.seal(b"", 0.0)
    b.open(a.seal(b"", 31.0), 31.0)
    secrets = [*b._receive._epochs.values()]
    assert b.next_deadline == 120.0
    b.expire(120.0)
    assert b.next_deadline == 151.0
    assert secrets[0].chain_key == bytes(32)
    with pytest.raises(MessageError, match="old_epoch"):
        b.open(early, 121.0)
    b.expire(151.0)
    assert b.dead
    assert b.next_deadline is None
    assert secrets[1].chain_key == bytes(32) == b._receive._next_root == b._send._chain_key == b._send._next_root
    for attempt in (lambda: b.seal(b"", 151.0), lambda: b.open(early, 151.0)):
        with pytest.raises(MessageError, match="dead"):
            attempt()


def test_a_late_timer_keeps_no_tunnel_alive():
    a, b = pair()
    datagram = a.seal(b"", 119.0)
    with pytest.raises(MessageError, match="dead"):
        b.open(datagram, 500.0)
    with pytest.raises(MessageError, match="dead"):
        a.seal(b"", 500.0)


def test_traffic_keeps_a_tunnel_alive_across_many_epochs():
    a, b = pair()
    for second in range(0, 3000, 7):
        b.open(a.seal(b"", second), second)
        a.open(b.seal(b"", second), second)
    assert a.send_epoch == b.send_epoch == 2996 // 30
    assert len(a._receive._epochs) <= 5


def test_erase_overwrites_everything():
    a, b = pair()
    b.open(a.seal(b"", 31.0), 31.0)
    a.seal(b"", 31.0)
    held = [b._receive._next_root, b._send._chain_key, b._send._next_root]
    held += [part for e in b._receive._epochs.values() for part in (e.chain_key, *e.blocks.values())]
    b.erase()
    assert b.dead
    assert all(part.count(0) == len(part) for part in held)


def test_a_used_key_is_erased_at_once():
    a, b = pair()
    datagram = a.seal(b"", 0.0)
    key = primitives.kdf(19, primitives.kdf(2, TI)[1])[1]
    assert key not in a._send._block
    b.open(datagram, 0.0)
    assert all(key not in block for e in b._receive._epochs.values() for block in e.blocks.values())


def test_the_last_epoch_ends_the_tunnel():
    a, b = pair(first_epoch=LAST_EPOCH)
    b.open(a.seal(b"", 1.0), 1.0)
    with pytest.raises(MessageError, match="epoch_end"):
        a.seal(b"", 31.0)
    with pytest.raises(MessageError, match="epoch_end"):
        b.step(1.0)


def test_a_counter_that_ends_moves_the_tunnel_to_the_next_epoch():
    a, b = pair()
    b.open(a.seal(b"", 1.0), 1.0)
    a._send.counter = 2**32 - 1
    assert packet_index(a.seal(b"", 5.0)) == (0, 2**32 - 1)
    datagram = a.seal(b"next", 6.0)
    assert packet_index(datagram) == (1, 0)
    assert b.open(datagram, 6.0) == b"next"
    assert packet_index(a.seal(b"", 35.9)) == (1, 1)  # 30 s from its own start
    assert packet_index(a.seal(b"", 36.0)) == (2, 0)


def test_a_counter_that_ends_in_the_last_epoch_ends_the_tunnel():
    a, _ = pair(first_epoch=LAST_EPOCH)
    a._send.counter = 2**32
    with pytest.raises(MessageError, match="epoch_end"):
        a.seal(b"", 1.0)


@pytest.mark.parametrize("epoch", [-1, LAST_EPOCH + 1])
def test_there_are_65536_epochs(epoch):
    with pytest.raises(ValueError, match="65535"):
        Tunnel(TID, TI, TR, 0.0, epoch)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_tunnel_that_was_put_aside_goes_on(seed):
    """Its end is made anew from what a cookie holds, whatever came before; the other end has moved both chains on."""
    random = Random(seed)
    client, server = pair()
    now = 0.0
    for _ in range(random.randrange(12)):
        now += random.choice([0.0, 1.0, 31.0, 70.0])
        for end in (client, server):
            end.expire(now)
        assume(not client.dead and not server.dead)
        sender, receiver = random.sample((client, server), 2)
        datagram = sender.seal(b"", now)
        if random.random() < 0.7:
            receiver.open(datagram, now)
    before = server.send_epoch, server.recv_epoch
    state = server.state(now)
    notice = server.seal(b"pqccookE", now)
    assert state.tid == TID
    assert state.epoch == packet_index(notice)[0] >= max(before)
    assert client.open(notice, now) == b"pqccookE"
    client.step(now)
    server.erase()
    again = Tunnel(TID, state.send_root, state.recv_root, now, state.epoch + 1)
    assert again.open(client.seal(b"up", now), now) == b"up"
    assert client.open(again.seal(b"down", now), now) == b"down"


def test_a_dead_tunnel_has_no_state_and_one_at_its_end_neither():
    a, _ = pair()
    with pytest.raises(MessageError, match="dead"):
        a.state(120.0)
    last, _ = pair(first_epoch=LAST_EPOCH)
    with pytest.raises(MessageError, match="epoch_end"):
        last.state(0.0)


def test_memory_is_bounded_over_all_tunnels(monkeypatch):
    """Beyond that a tunnel keeps as many skipped keys as it takes where no packet is late."""
    monkeypatch.setattr(schedule, "ALL_BLOCKS", 30)
    blocks = schedule.KeyBlocks()
    ends = []
    for number in range(5):
        tid = bytes([number]) * 32
        ends.append((Tunnel(tid, TI, TR, 0.0), Tunnel(tid, TR, TI, 0.0, all_blocks=blocks)))

    def kept(receiver):
        return sum(len(e.blocks) for e in receiver._receive._epochs.values())

    def skip(sender, receiver, packets):
        skipped = [sender.seal(b"skipped", 0.0) for _ in range(packets)]
        assert receiver.open(sender.seal(b"", 0.0), 0.0) == b""
        return skipped

    late = [skip(*end, 10 * 18) for end in ends[:2]]
    assert [kept(b) for _, b in ends] == [11, 11, 0, 0, 0]
    skip(*ends[2], 10 * 18)  # this one is over the bound, and pays for it
    assert [kept(b) for _, b in ends] == [11, 11, 5, 0, 0]
    assert blocks.in_use == 27
    skip(*ends[3], 18)
    skip(*ends[4], 18)
    assert blocks.in_use == 31
    for sender, receiver in ends:
        for _ in range(100):
            assert receiver.open(sender.seal(b"x", 0.0), 0.0) == b"x"
    assert [kept(b) for _, b in ends] == [5, 11, 5, 2, 2]  # the first one's left room for the second
    with pytest.raises(MessageError, match="replay"):
        ends[0][1].open(late[0][0], 0.0)
    for _, receiver in ends[:4]:
        receiver.erase()
    assert blocks.in_use == kept(ends[4][1])
    ends[4][1].expire(120.0)
    assert blocks.in_use == 0


def test_a_cookie_moves_both_chains():
    a, b = pair()
    a.step(5.0)
    b.step(5.0)
    assert (a.send_epoch, a.recv_epoch) == (1, 1)
    assert b.open(a.seal(b"x", 5.0), 5.0) == b"x"


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    _, b = pair()
    before = snapshot(b)
    for datagram in (data, b"\2\0" + data, b"\2\0" + TID + data):
        with pytest.raises(MessageError):
            b.open(datagram, 0.0)
    assert snapshot(b) == before


@pytest.mark.parametrize("size", range(56))
def test_short_datagrams_are_no_tunnel_packets(size):
    a, b = pair()
    datagram = a.seal(b"", 0.0)
    with pytest.raises(MessageError):
        b.open(datagram[:size], 0.0)
