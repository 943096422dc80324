import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol import base32, names
from tests.protocol.vectors import load


@pytest.mark.parametrize("case", load("base32.json")["encode"], ids=lambda c: c["text"][:12])
def test_base32_known_answers(case):
    data = bytes.fromhex(case["bytes"])
    assert base32.encode(data) == case["text"]
    assert base32.decode(case["text"]) == data
    assert base32.decode(case["text"].upper()) == data


@pytest.mark.parametrize("case", load("base32.json")["decode_invalid"], ids=lambda c: ascii(c["text"]))
def test_base32_refuses(case):
    with pytest.raises(base32.Base32Error):
        base32.decode(case["text"])


@given(st.binary(max_size=80))
def test_base32_round_trip(data):
    assert base32.decode(base32.encode(data)) == data


@given(st.text(max_size=60))
def test_base32_decodes_only_what_it_encodes(text):
    try:
        data = base32.decode(text)
    except base32.Base32Error:
        return
    assert base32.encode(data) == text.lower()


def test_base32_refuses_letters_that_lower_to_ascii():
    with pytest.raises(base32.Base32Error):
        base32.decode("\u212a0")  # the Kelvin sign, whose lower case is k


@pytest.mark.parametrize("case", load("names.json"), ids=lambda c: c["name"][:24] or "empty")
def test_names_known_answers(case):
    found = names.parse_name(case["name"])
    if case["name"].startswith("PQ1"):
        assert found is not None  # DNS names are case-insensitive; PQConnect misses this one
        assert found.keyhash.hex() == "ee1601b5838c3af87e2bad4a35c7b0f75fcb0062566f3a8cb79d89a758240e07"
    elif "keyhash" not in case:
        assert found is None
    else:
        assert found == names.Announcement(bytes.fromhex(case["keyhash"]), case.get("pqcport"), case.get("keyport"))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 65535), st.integers(1, 65535), st.booleans())
def test_label_round_trip(keyhash, port, key_port, with_ports):
    ports = (port, key_port) if with_ports else (None, None)
    label = names.make_label(keyhash, *ports)
    assert len(label) <= 63
    assert names.parse_name(f"www.{label.upper()}.example.net.") == names.Announcement(keyhash, *ports)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_none(text):
    found = names.parse_name(text)
    assert found is None or len(found.keyhash) == 32


@given(st.text("0123456789bcdfghjklmnpqrstuvwxyz", min_size=40, max_size=70))
def test_only_two_sizes_announce(data):
    if names.parse_label("pq1" + data) is not None:
        assert len(data) in (52, 60)


@pytest.mark.parametrize("ports", [(1, None), (None, 1), (0, 1), (1, 65536)])
def test_make_label_refuses_ports(ports):
    with pytest.raises(ValueError, match="port"):
        names.make_label(bytes(32), *ports)


def test_make_label_refuses_a_short_hash():
    with pytest.raises(ValueError, match="32 bytes"):
        names.make_label(bytes(31))


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("p=42424", 42424),
        (" p = 1 ", 1),
        ("p=0", None),
        ("p=65536", None),
        ("p=", None),
        ("ip=1;p=2", None),
        ("p=1;", None),
    ],
)
def test_port_text(text, port):
    assert names.parse_port_text(text) == port


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ip=203.0.113.5;p=42425", ("203.0.113.5", 42425)),
        ("ip = 2001:db8::5 ; p = 9", ("2001:db8::5", 9)),
        ("ip=203.0.113.5", None),
        ("ip=203.0.113.5;p=0", None),
        ("p=42425;ip=203.0.113.5", None),
        ("ip=host;p=1", None),
    ],
)
def test_key_server_text(text, found):
    assert names.parse_key_server_text(text) == found
