import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.client.escapes import Escape, EscapeFilter

KEYS = st.binary(max_size=30) | st.lists(
    st.sampled_from([b"~", b"\r", b"\n", b".", b"?", b"a", b"\x1a"]), max_size=20
).map(b"".join)


def one_by_one(filter_, data):
    return [part for byte in data for part in filter_.feed(bytes([byte]))]


def joined(parts):
    """Neighbouring bytes in one, as the pieces in which they came do not matter."""
    found = []
    for part in parts:
        if isinstance(part, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"~.", [Escape.TERMINATE]),
        (b"a~.", [b"a~."]),
        (b"a\r~.", [b"a\r", Escape.TERMINATE]),
        (b"a\n~?b", [b"a\n", Escape.HELP, b"b"]),
        (b"~~", [b"~"]),
        (b"~~.", [b"~."]),
        (b"\r~~\r~.", [b"\r~\r", Escape.TERMINATE]),
        (b"~x", [b"~x"]),
        (b"~x~.", [b"~x~."]),
        (b"~?~.", [Escape.HELP, Escape.TERMINATE]),
        (b"~\r~.", [b"~\r", Escape.TERMINATE]),
        (b"~\x1a", [Escape.SUSPEND]),
        (b"~#~&~B~C~R~V~v", [
            Escape.LIST, Escape.BACKGROUND, Escape.BREAK, Escape.COMMAND, Escape.REKEY, Escape.QUIETER, Escape.LOUDER,
        ]),
        (b"ls ~/x\r", [b"ls ~/x\r"]),
    ],
)  # fmt: skip
def test_only_after_a_newline(typed, expected):
    assert joined(EscapeFilter(b"~").feed(typed)) == expected
    assert joined(one_by_one(EscapeFilter(b"~"), typed)) == expected


@given(KEYS)
def test_pieces_do_not_matter(data):
    whole, piecewise = EscapeFilter(b"~"), EscapeFilter(b"~")
    assert joined(whole.feed(data)) == joined(one_by_one(piecewise, data))


@given(KEYS)
def test_without_a_character_all_goes_through(data):
    assert b"".join(EscapeFilter(None).feed(data)) == data


@given(KEYS)
def test_nothing_is_made_up(data):
    """What goes to the server is what was typed, but for escapes and a character that is taken for one."""
    parts = EscapeFilter(b"~").feed(data)
    sent = b"".join(part for part in parts if isinstance(part, bytes))
    rest = iter(data)
    assert all(byte in rest for byte in sent)
    if not any(line.startswith(b"~") for line in data.replace(b"\r", b"\n").split(b"\n")):
        assert sent == data


@given(st.sampled_from([b"!", b"\x02", b"."]))
def test_other_characters(character):
    filter_ = EscapeFilter(character)
    assert filter_.feed(character + b"#") == [Escape.LIST]
    assert filter_.feed(character + character) == [character]
    assert filter_.feed(b"\r~.") == [b"\r~."]


def test_help_names_the_character():
    assert "^B  - send the escape character" in EscapeFilter(b"\x02").help()
    assert "suspend" not in EscapeFilter(b"~").help(shared=True)
