"""Command lines of scp, locations, patterns, and the lines of the old protocol: every text."""

from __future__ import annotations

import asyncio
import fnmatch
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import MessageError, UserError
from pqtun.shell.ssh import prepare

prepare()

from pqtun.shell.client import rcp  # noqa: E402
from pqtun.shell.client.globbing import alternatives, escape, expand, is_pattern, matches, unescape  # noqa: E402
from pqtun.shell.client.location import Location, parse, parse_destination  # noqa: E402
from pqtun.shell.client.options import UsageError  # noqa: E402
from pqtun.shell.client.rcpcopier import Expected  # noqa: E402
from pqtun.shell.client.scp import parse_command  # noqa: E402

ARGUMENTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)


@pytest.mark.parametrize(
    ("argument", "location"),
    [
        ("host:path", Location("host", b"path")),
        ("host:", Location("host", b"")),
        ("user@host:/a:b", Location("host", b"/a:b", "user")),
        ("a@b@host:x", Location("host", b"x", "a@b")),
        ("[fd00::1]:x", Location("fd00::1", b"x")),
        ("user@[fd00::1]:x", Location("fd00::1", b"x", "user")),
        ("scp://user@host:42422/dir/a%20b", Location("host", b"dir/a b", "user", 42422)),
        ("scp://host//etc", Location("host", b"/etc")),
        ("scp://[fd00::1]:22/x", Location("fd00::1", b"x", None, 22)),
        ("scp://host", Location("host", b"")),
        ("./a:b", Location(None, b"./a:b")),
        ("/a:b", Location(None, b"/a:b")),
        ("a/b:c", Location(None, b"a/b:c")),
        (":x", Location(None, b":x")),
        ("plain", Location(None, b"plain")),
        ("[a", Location(None, b"[a")),
        ("[a]b", Location(None, b"[a]b")),
        ("file[1]:x", Location("file[1]", b"x")),
    ],
)
def test_locations(argument: str, location: Location) -> None:
    assert parse(argument) == location


@pytest.mark.parametrize(
    "argument",
    [
        "-oProxyCommand=x:y",
        "@host:x",
        "-x@host:y",
        "scp://:22/x",
        "scp://host:0/",
        "scp://host:99999/",
        "scp://[::1/",
        "scp://h:x/",
        "user@:x",
        "scp://host/a%00b",
        "scp://a%00b@host/",
        "",
    ],
)
def test_no_locations(argument: str) -> None:
    with pytest.raises(UserError):
        parse(argument)


@given(ARGUMENTS)
def test_every_argument_is_a_location_or_refused(argument: str) -> None:
    for read in (parse, parse_destination):
        try:
            location = read(argument)
        except UserError:
            continue
        assert location.host is None or (location.host and not location.host.startswith("-"))
        if location.host is None:
            assert location.path == os.fsencode(argument)
        str(location)


def test_destinations_of_sftp() -> None:
    assert parse_destination("me@host") == Location("host", b"", "me")
    assert parse_destination("host:dir/") == Location("host", b"dir/")
    assert parse_destination("[fd00::1]") == Location("fd00::1", b"")
    assert parse_destination("sftp://host:22/a") == Location("host", b"a", None, 22)


def test_flags() -> None:
    command = parse_command(
        ["-3rpqv", "-P42", "-l", "800", "-oPort=7", "-i", "key", "-C", "--direct", "--", "-a", "h:b"]
    )
    assert (command.recursive, command.preserve, command.quiet, command.verbose) == (True, True, True, 1)
    assert command.ssh.direct
    assert command.limit == 100 * 1024
    assert command.ssh.settings == [("port", "42"), ("port", "7"), ("identityfile", "key"), ("compression", "yes")]
    assert command.sources == [Location(None, b"-a")]
    options = command.for_host(Location("h", b"", "me", 99))
    assert options.host == "h"
    assert options.setting("port") == "99"
    assert options.setting("user") == "me"
    assert options.setting("forwardagent") == "no"
    assert command.for_host(Location("h", b"")).setting("port") == "42"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a"],
        ["-l", "x", "a", "b"],
        ["-P"],
        ["-Z", "a", "b"],
        ["--nonsense", "a", "b"],
        ["-O", "--resume", "a", "h:b"],
        ["-X", "x=1", "a", "b"],
        ["-l", "0", "a", "b"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_command(arguments)


@given(st.lists(ARGUMENTS | st.sampled_from(["-r", "-l", "-o", "-X", "--", "a:b", "-", "nrequests=4"]), max_size=8))
def test_every_command_line_is_read_or_refused(arguments: list[str]) -> None:
    try:
        command = parse_command(arguments)
    except UserError:
        return
    assert command.help or command.sources


# -- patterns --------------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name)
PIECES = st.lists(
    st.sampled_from([b"a", b"b", b"-", b"*", b"?", b"[", b"]", b"!", b"\\", b".", b"ab", b"[a-b]"]), max_size=8
)


@given(NAMES)
def test_an_escaped_name_means_itself(name: bytes) -> None:
    assert matches(escape(name), name)
    assert unescape(escape(name)) == name
    assert not is_pattern(escape(name))


@given(PIECES, st.text("ab-.[]!", max_size=6))
def test_patterns_are_those_of_fnmatch(pieces: list[bytes], name: str) -> None:
    pattern = b"".join(pieces)
    if b"\\" in pattern or (name.startswith(".") and not pattern.startswith(b".")):
        matches(pattern, name.encode())  # fnmatch knows neither
    else:
        assert matches(pattern, name.encode()) == fnmatch.fnmatchcase(name, pattern.decode())


def test_leading_dots_stand_in_the_pattern() -> None:
    assert not matches(b"*", b".hidden")
    assert not matches(b"?hidden", b".hidden")
    assert matches(b".*", b".hidden")


@given(st.binary(max_size=30))
def test_braces_never_go_wrong(pattern: bytes) -> None:
    assert alternatives(pattern)


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        (b"a", [b"a"]),
        (b"{a,b}c", [b"ac", b"bc"]),
        (b"x{a,{b,c}d}", [b"xa", b"xbd", b"xcd"]),
        (b"{}", [b"{}"]),
        (b"{a}", [b"{a}"]),
        (b"{a,b", [b"{a,b"]),
        (b"\\{a,b}", [b"\\{a,b}"]),
        (b"{a,}", [b"a", b""]),
    ],
)
def test_braces(pattern: bytes, means: list[bytes]) -> None:
    assert alternatives(pattern) == means


def test_too_many_braces() -> None:
    with pytest.raises(UserError):
        alternatives(b"{a,b,c,d,e,f,g,h,i,j}" * 4)


TREE = {b"/": [b"a", b"b", b"..", b"x/y"], b"/a": [b"1", b"2"], b"/b": [b"1"], b".": [b"here"]}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (b"/*/1", [b"/a/1", b"/b/1"]),
        (b"/*", [b"/a", b"/b"]),
        (b"/a/[2-9]", [b"/a/2"]),
        (b"h*", [b"here"]),
        (b"/none/*", []),
        (b"/a", [b"/a"]),
    ],
)
def test_expanding(pattern: bytes, found: list[bytes]) -> None:
    paths = {b"here", *(os.path.join(top, name) for top, names in TREE.items() for name in names)}

    async def names(path: bytes) -> list[bytes]:
        return TREE.get(path, [])

    async def exists(path: bytes) -> bool:
        return path in paths

    assert asyncio.run(expand(pattern, names, exists)) == found


def test_names_that_a_source_may_bring() -> None:
    expected = Expected(b"dir/{*.txt,b}")
    assert b"a.txt" in expected
    assert b"b" in expected
    assert b".bashrc" not in expected
    assert b"c" not in expected
    assert b"c" in Expected(None)


# -- the old protocol ------------------------------------------------------------------------------------


@given(
    st.binary(max_size=60)
    | st.builds(
        lambda a, b: a + b, st.sampled_from([b"C0644 5 ", b"D0755 0 ", b"T", b"\1", b"E"]), st.binary(max_size=20)
    )
)
def test_every_line_is_read_or_refused(line: bytes) -> None:
    try:
        read = rcp.parse(line)
    except MessageError:
        return
    if isinstance(read, rcp.FileComes | rcp.DirectoryComes):
        assert b"/" not in read.name
        assert b"\0" not in read.name
        assert read.name not in (b"", b".", b"..")
        assert 0 <= read.permissions <= 0o7777


def test_lines() -> None:
    assert rcp.parse(b"C0644 12 a b ") == rcp.FileComes(0o644, 12, b"a b ")
    assert rcp.parse(b"D0755 0 d") == rcp.DirectoryComes(0o755, b"d")
    assert rcp.parse(b"T12 0 34 0") == rcp.TimesCome(34, 12)
    assert rcp.parse(b"E") == rcp.DirectoryEnds()
    assert rcp.parse(b"\1scp: no\r") == rcp.Complaint("no\\015", False)
