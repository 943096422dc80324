from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon.policy import FailurePolicy, Rule, RuleError, parse_rules

RULES = {
    "bank.example.net": "block",
    "*.example.net": "direct",
    "[!w]ww.example.org": "direct",
    "*": "block",
}


@pytest.mark.parametrize(
    ("names", "direct"),
    [
        (["www.example.net"], True),
        (["WWW.Example.NET."], True),
        (["a.b.example.net"], True),
        (["example.net"], False),
        (["bank.example.net"], False),
        (["www.example.net", "bank.example.net"], False),  # the first rule that matches any of them
        (["other.example.com", "pq1abc.example.net"], True),
        (["zww.example.org"], True),
        (["www.example.org"], False),
        (["example.com"], False),
        ([""], False),
        ([], False),
    ],
)
def test_the_first_rule_that_matches_counts(names: list[str], direct: bool) -> None:
    assert FailurePolicy(parse_rules(RULES)).allows_direct(names) is direct


def test_without_a_rule_nothing_is_direct() -> None:
    assert FailurePolicy().allows_direct(["www.example.net"]) is False
    assert FailurePolicy().minutes == 10
    only = FailurePolicy(parse_rules({"*.example.net": "direct"}), 3)
    assert (only.allows_direct(["www.example.org"]), only.allows_direct(["a.example.net"])) == (False, True)


def test_rules_as_a_table_and_as_a_text() -> None:
    rules = (Rule("bank.example.net", "block"), Rule("*.example.net", "direct"))
    assert parse_rules({"Bank.Example.net.": "block", "*.example.net": "direct"}) == rules
    assert parse_rules(" Bank.Example.net.=block ,*.example.net = direct") == rules
    assert parse_rules({}) == ()


@pytest.mark.parametrize(
    ("value", "pattern", "text"),
    [
        ({"a": "drop"}, "a", "choose one of block, direct"),
        ({"a": True}, "a", "choose one of block, direct"),
        ({"b": "block", "a": ["block"]}, "a", "choose one of block, direct"),
        ({"a": {"net": "direct"}}, "a", "in quotes"),
        ({"a b": "block"}, "a b", "a name pattern has"),
        ({"a/b": "block"}, "a/b", "a name pattern has"),
        ({"": "block"}, "", "a name pattern has"),
        ({"a" * 254: "block"}, "a" * 254, "a name pattern has"),
        ("a", "a", "choose one of"),
        ("a=block,", "", "a name pattern has"),
        ("a=block=direct", "a", "choose one of"),
    ],
)
def test_bad_rules(value: object, pattern: str, text: str) -> None:
    with pytest.raises(RuleError, match=text) as caught:
        parse_rules(value)
    assert caught.value.pattern == pattern


@pytest.mark.parametrize("value", ["", " ", 1, True, ["a=block"], None])
def test_what_holds_no_rules(value: object) -> None:
    with pytest.raises(ValueError, match="write name patterns"):
        parse_rules(value)


@given(st.text(max_size=40), st.lists(st.text(max_size=20), max_size=3))
def test_any_text_is_rules_or_one_clear_line(text: str, names: list[str]) -> None:
    try:
        rules = parse_rules(text)
    except ValueError as error:
        message = str(error)
    else:
        message = "well"
        assert FailurePolicy(rules).allows_direct(names) in (True, False)
    assert len(message.splitlines()) == 1


@given(st.from_regex(r"[a-z.]{1,30}", fullmatch=True))
def test_a_name_matches_itself(name: str) -> None:
    rules = parse_rules(f"{name}=direct,*=block")
    assert FailurePolicy(rules).allows_direct([name.upper()])
    assert not FailurePolicy(rules).allows_direct([f"x{name}"])
