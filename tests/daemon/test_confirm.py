from itertools import count

from pqtun.daemon.confirm import ASK_AGAIN, TOKEN_BYTES, Confirmations

HERE, THERE = ("192.0.2.9", 42423), ("2001:db8::9", 1234)
ONE, OTHER = bytes(32), bytes([1]) * 32


def confirmations():
    numbers = count(1)
    return Confirmations(lambda size: next(numbers).to_bytes(size, "big"))


def test_tokens_are_random():
    asked = Confirmations()
    tokens = {asked.ask(bytes([number]), HERE, 0.0) for number in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {TOKEN_BYTES}


def test_only_the_right_answer_counts_and_once():
    asked = confirmations()
    token, other = asked.ask(ONE, HERE, 0.0), asked.ask(OTHER, THERE, 0.0)
    assert asked.answered(ONE, other) is None
    assert asked.answered(ONE, token[:-1]) is None
    assert asked.answered(ONE, b"") is None
    assert asked.answered(bytes([2]) * 32, token) is None
    assert asked.answered(ONE, token) == HERE
    assert asked.answered(ONE, token) is None
    assert asked.answered(OTHER, other) == THERE
    assert len(asked) == 0


def test_a_new_question_replaces_the_old_one():
    asked = confirmations()
    old = asked.ask(ONE, HERE, 0.0)
    new = asked.ask(ONE, THERE, 0.0)
    assert asked.answered(ONE, old) is None
    assert asked.due(ASK_AGAIN[0]) == [(ONE, new, THERE)]
    assert asked.answered(ONE, new) == THERE


def test_repeated_with_the_pauses_that_are_meant_and_then_no_more():
    asked = confirmations()
    token = asked.ask(ONE, HERE, 0.0)
    repeated = []
    for tenth in range(2000):
        for tid, again, endpoint in asked.due(tenth / 10):
            assert (tid, again, endpoint) == (ONE, token, HERE)
            repeated.append(tenth / 10)
    assert repeated == [sum(ASK_AGAIN[: number + 1]) for number in range(len(ASK_AGAIN))]
    assert asked.answered(ONE, token) == HERE  # late, but there


def test_revived_only_when_given_up():
    asked = confirmations()
    token = asked.ask(ONE, HERE, 0.0)
    asked.revive(OTHER)
    asked.revive(ONE)
    for now in range(100):
        asked.due(float(now))
    assert asked.due(1000.0) == []
    asked.revive(ONE)
    assert asked.due(1000.0) == [(ONE, token, HERE)]


def test_asked_once_more_at_once():
    asked = confirmations()
    assert asked.again(ONE, 0.0) is None
    token = asked.ask(ONE, HERE, 0.0)
    assert asked.again(ONE, 0.9) == (token, HERE)
    assert asked.due(1.0) == []
    assert asked.due(1.9) == [(ONE, token, HERE)]


def test_forgotten():
    asked = confirmations()
    token = asked.ask(ONE, HERE, 0.0)
    asked.forget(ONE)
    asked.forget(ONE)
    assert asked.answered(ONE, token) is None
    assert asked.due(10.0) == []
