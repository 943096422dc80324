from ipaddress import IPv4Address

from pqtun.daemon.waiting import Waiting
from pqtun.pump.limits import HELD_SECONDS

ONE, OTHER = IPv4Address("10.42.0.2"), IPv4Address("10.42.0.3")


def test_an_address_that_is_sent_to_is_held_for_until_that_ends():
    waiting = Waiting()
    waiting.wanted(ONE, 0.0)
    waiting.wanted(OTHER, 1.0)
    assert waiting.quiet(HELD_SECONDS - 1) == waiting.unsure(HELD_SECONDS - 1) == []
    assert (waiting.quiet(HELD_SECONDS), waiting.unsure(HELD_SECONDS)) == ([], [ONE])
    waiting.wanted(ONE, HELD_SECONDS + 1)
    assert waiting.unsure(HELD_SECONDS + 1) == [OTHER]
    assert waiting.quiet(2 * HELD_SECONDS) == []
    assert waiting.quiet(2 * HELD_SECONDS + 1) == [OTHER]
    assert waiting.unsure(2 * HELD_SECONDS + 1) == [ONE]
    assert waiting.quiet(3 * HELD_SECONDS + 1) == [ONE]
    assert len(waiting) == 0


def test_a_client_that_is_back_is_waited_for_no_more():
    waiting = Waiting()
    waiting.wanted(ONE, 0.0)
    assert waiting.ended(ONE)
    assert not waiting.ended(ONE)
    waiting.wanted(ONE, 0.0)
    waiting.unsure(HELD_SECONDS)
    assert waiting.ended(ONE)
    assert waiting.quiet(1e9) == waiting.unsure(1e9) == []
