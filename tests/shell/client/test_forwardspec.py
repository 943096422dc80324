import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.client.forwardspec import Forward, parse_endpoint, parse_forward, parse_permitted
from pqtun.shell.endpoints import listed


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("local", "80:h:81", Forward("local", None, 80, None, "h", 81)),
        ("local", "a:80:h:81", Forward("local", "a", 80, None, "h", 81)),
        ("local", ":80:h:81", Forward("local", "", 80, None, "h", 81)),
        ("local", "*:80:[::1]:81", Forward("local", "*", 80, None, "::1", 81)),
        ("local", "[::1]:80:h:81", Forward("local", "::1", 80, None, "h", 81)),
        ("local", "80:/a/b", Forward("local", None, 80, None, None, None, "/a/b")),
        ("local", "/s:h:81", Forward("local", None, None, "/s", "h", 81)),
        ("local", "/s:/d", Forward("local", None, None, "/s", None, None, "/d")),
        ("local", r"/s\:x:/d", Forward("local", None, None, "/s:x", None, None, "/d")),
        ("local", "a:80:/d", Forward("local", "a", 80, None, None, None, "/d")),
        ("remote", "0:h:81", Forward("remote", None, 0, None, "h", 81)),
        ("remote", "80", Forward("remote", None, 80)),
        ("remote", "a:80", Forward("remote", "a", 80)),
        ("remote", "/s:h:81", Forward("remote", None, None, "/s", "h", 81)),
        ("dynamic", "1080", Forward("dynamic", None, 1080)),
        ("dynamic", "[::]:1080", Forward("dynamic", "::", 1080)),
    ],
)
def test_forwards(kind, text, expected):
    assert parse_forward(kind, text) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("local", "80"),
        ("local", "80:h"),
        ("local", "0:h:1"),
        ("local", "80:h:0"),
        ("local", "80:h:65536"),
        ("local", "80::81"),
        ("local", "a:b:80:h:81"),
        ("local", "x:h:81"),
        ("local", "-1:h:81"),
        ("local", "[::1:80:h:81"),
        ("local", "[a]b:80:h:81"),
        ("local", ""),
        ("dynamic", "0"),
        ("dynamic", "a:b:1"),
        ("dynamic", "/s"),
        ("dynamic", ""),
        ("remote", ""),
        ("remote", "a:b:c:d:e"),
    ],
)
def test_refused(kind, text):
    with pytest.raises(ValueError, match="Bad forwarding"):
        parse_forward(kind, text)


@given(st.sampled_from(["local", "remote", "dynamic"]), st.text(alphabet="0123456789:[]/\\ab*", max_size=24))
def test_any_text_is_read_or_refused(kind, text):
    try:
        forward = parse_forward(kind, text)
    except ValueError:
        return
    assert (forward.listen_path is None) != (forward.listen_port is None)
    assert forward.connect_path is None or forward.connect_port is None
    assert forward.listen
    assert forward.connect


@given(st.sampled_from(["h", "::1", "10.0.0.1"]), st.integers(1, 65535), st.integers(1, 65535))
def test_ends_are_written_as_they_are_read(host, listen, port):
    forward = Forward("local", host, listen, None, host, port)
    assert parse_forward("local", f"{forward.listen}:{forward.connect}") == forward


def test_endpoints():
    assert parse_endpoint("h:22") == ("h", 22)
    assert parse_endpoint("[::1]:22") == ("::1", 22)
    for text in ("h", "h:0", ":22", "h:1:2", ""):
        with pytest.raises(ValueError, match="Bad"):
            parse_endpoint(text)


@pytest.mark.parametrize(
    ("words", "host", "port", "expected"),
    [
        (["any"], "h", 1, True),
        (["none"], "h", 1, False),
        (["h:1"], "h", 1, True),
        (["h:1"], "h", 2, False),
        (["h:1"], "H", 1, False),
        (["h:*", "[::1]:2"], "h", 7, True),
        (["h:*", "[::1]:2"], "::1", 2, True),
        (["h:*", "[::1]:2"], "::1", 3, False),
        (["*:22"], "anything", 22, True),
        (["h*:22"], "hh", 22, False),
    ],
)
def test_permitted_destinations(words, host, port, expected):
    assert listed(parse_permitted(words), host, port) == expected


@pytest.mark.parametrize("word", ["h", ":1", "h:", "h:x", "h:65536", "h:1:2", "[::1", "none"])
def test_destinations_that_cannot_be_read(word):
    with pytest.raises(ValueError, match=r"Bad (destination|forwarding)"):
        parse_permitted([word, "h:1"])
