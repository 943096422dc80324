"""The lines of sftp: quoting, commands, completion, listings."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell.ssh import prepare

prepare()

from pqtun.shell.client.globbing import escape, is_pattern  # noqa: E402
from pqtun.shell.client.location import Location  # noqa: E402
from pqtun.shell.client.options import UsageError  # noqa: E402
from pqtun.shell.client.sftp import parse_command  # noqa: E402
from pqtun.shell.client.sftpcompletion import CachedNames, complete, local_names  # noqa: E402
from pqtun.shell.client.sftpline import ALIASES, COMMANDS, help_text, marked, parse, quoted, split  # noqa: E402
from pqtun.shell.client.sftplisting import Listed, human, in_columns, lines, ordered, space  # noqa: E402
from pqtun.shell.client.store import Entry  # noqa: E402

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x2F} & set(name))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("get a b", [b"get", b"a", b"b"]),
        ('get "a b"', [b"get", b"a b"]),
        ("get 'a \"b'", [b"get", b'a "b']),
        ("get a\\ b", [b"get", b"a b"]),
        ('get "a\\"b"c', [b"get", b'a"bc']),
        ("get *.c", [b"get", b"*.c"]),
        ('get "*.c"', [b"get", b"\\*.c"]),
        ("get \\*.c", [b"get", b"\\*.c"]),
        ("get a\\\\b", [b"get", b"a\\\\b"]),
        ("get '' x", [b"get", b"", b"x"]),
        ("get a#b # comment", [b"get", b"a#b"]),
        ("# all of it", []),
        ("  ", []),
    ],
)
def test_words(line: str, words: list[bytes]) -> None:
    assert [word.pattern for word in split(line).words] == words


@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["", '"', "'"]))
def test_quoted_names_mean_themselves(names: list[bytes], quote: str) -> None:
    line = " ".join(quote + quoted(name, quote) + quote for name in names)
    words = split(line).words
    assert [word.text for word in words] == names
    assert [word.pattern for word in words] == [escape(name) for name in names]
    assert not any(is_pattern(word.pattern) for word in words)


@given(st.text())
def test_every_line_is_read_or_refused(line: str) -> None:
    try:
        command = parse(line)
    except UserError:
        return
    assert command is None or command.name in {*COMMANDS, "!"}


@given(st.sampled_from([*COMMANDS, *ALIASES]), st.lists(st.sampled_from(["-a", "-l", "-rp", "x", "--", "-", "'y z'"])))
def test_every_command_keeps_to_its_syntax(name: str, words: list[str]) -> None:
    line = " ".join([name, *words])
    try:
        command = parse(line)
    except UserError as error:
        assert "usage: " in str(error)  # noqa: PT017
        return
    assert command is not None
    syntax = COMMANDS[command.name]
    if command.name not in ("!", "lls"):
        assert syntax.least <= len(command.words) <= syntax.most
        assert command.flags <= set(syntax.flags)


def test_lines() -> None:
    command = parse("get -rp 'a b' c")
    assert command is not None
    assert (command.name, command.flags, [word.text for word in command.words]) == ("get", {"r", "p"}, [b"a b", b"c"])
    assert marked(" - @ get -rp x ") == ("- @ ", "get -rp x")
    assert marked("ls -l") == ("", "ls -l")
    shell = parse("!ls 'x")
    assert shell is not None
    assert shell.rest == "ls 'x"
    listing = parse("lls -la 'x y'")
    assert listing is not None
    assert listing.rest == "-la 'x y'"
    assert parse("# comment") is None
    assert all(name in help_text() for name in COMMANDS)


@pytest.mark.parametrize(
    "line",
    ["get", "get 'a", "nonsense", "ls -z", "cd a b", "rename a", "get a b c", "rm ''", "ls a\0", "!\0", "lls \0"],
)
def test_wrong_lines(line: str) -> None:
    with pytest.raises(UserError):
        parse(line)


def test_command_lines() -> None:
    command = parse_command(["-ab", "file", "-B", "1000", "-R", "7", "-P", "22", "me@host:dir", "local"])
    assert (command.resume, command.batch_file, command.batch) == (True, "file", True)
    assert (command.block_size, command.depth, command.local) == (1000, 7, b"local")
    assert command.destination == Location("host", b"dir", "me")
    spoken = {flags: parse_command([*flags.split(), "host"]).announces for flags in ("", "-q", "-b x", "-b x -N")}
    assert spoken == {"": True, "-q": False, "-b x": False, "-b x -N": True}
    for wrong in ([], ["-Z", "host"], ["host", "local"], ["-B", "1", "host"], ["a", "b", "c"]):
        with pytest.raises(UsageError):
            parse_command(wrong)


# -- completion ------------------------------------------------------------------------------------------

REMOTE = {
    b".": [
        (b"file one", False),
        (b"file'two", False),
        (b"dir", True),
        (b".hidden", False),
        (b"*star", False),
        (b"\xff", False),
    ],
    b"dir": [(b"inner", False)],
}


def remote(path: bytes) -> list[tuple[bytes, bool]]:
    return REMOTE.get(path, [])


def here(path: bytes) -> list[tuple[bytes, bool]]:
    return [(b"local", False)] if path == b"." else []


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("ge", ["get "]),
        ("re", ["reconnect ", "reget ", "rename ", "reput "]),
        ("-lp", ["-lpwd "]),
        ("get fi", ["get file\\ one ", "get file\\'two "]),
        ("get file\\ ", ["get file\\ one "]),
        ('get "file', ['get "file one" ', 'get "file\'two" ']),
        ("get 'file ", ["get 'file one' "]),
        ("get di", ["get dir/"]),
        ("get dir/", ["get dir/inner "]),
        ("get .h", ["get .hidden "]),
        ("get -r di", ["get -r dir/"]),
        ("get x lo", ["get x local "]),
        ("put lo", ["put local "]),
        ("put x di", ["put x dir/"]),
        ("put ", ["put local "]),
        ("lcd lo", ["lcd local "]),
        ("rm \\*", ["rm \\*star "]),
        ("chmod 600 di", ["chmod 600 dir/"]),
        ("chmod 6", []),
        ("pwd x", []),
        ("nonsense x", []),
        ("get nothing", []),
    ],
)
def test_completion(line: str, completed: list[str]) -> None:
    assert [found.line for found in complete(line, remote, here)] == completed


@given(st.text())
def test_completion_of_every_line(line: str) -> None:
    for found in complete(line, remote, here):
        assert isinstance(found.line, str)


@given(NAMES, st.sampled_from(["", '"', "'"]))
def test_what_is_completed_means_that_name(name: bytes, quote: str) -> None:
    for begun in {b"", name[:1]}:
        if name.startswith(b".") and not begun:
            continue
        typed = os.fsdecode(begun) if quote and not begun else quoted(begun, quote)
        found = complete(f"get {quote}{typed}", lambda path: [(name, False)], here)
        assert [split(one.line).words[1].text for one in found] == [name]


def test_listings_are_kept_for_a_moment() -> None:
    now = 0.0
    asked: list[bytes] = []

    def names(path: bytes) -> list[tuple[bytes, bool]]:
        asked.append(path)
        return [(path, False)]

    cached = CachedNames(names, lambda: now)
    assert cached(b"a") == cached(b"a") == [(b"a", False)]
    cached(b"b")
    assert asked == [b"a", b"b"]
    now = 6.0
    cached(b"a")
    cached.forget()
    cached(b"a")
    assert asked == [b"a", b"b", b"a", b"a"]


def test_local_names(tmp_path: object) -> None:
    top = os.fsencode(str(tmp_path))
    os.mkdir(top + b"/\xff")
    assert local_names(top) == [(b"\xff", True)]
    assert local_names(top + b"/none") == []


# -- listings --------------------------------------------------------------------------------------------


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), min_size=1, max_size=30)),
    st.integers(1, 120),
)
def test_columns_hold_every_name(names: list[str], width: int) -> None:
    rows = in_columns(names, width)
    assert sorted("".join(rows).replace(" ", "")) == sorted("".join(names).replace(" ", ""))
    assert all(len(row) <= max(width, max(map(len, names)) + 2) for row in rows)


def test_orders_and_lines() -> None:
    files = [
        Listed(b"b", Entry(0o100644, 5, 0, 100, 0, 0), b"-rw-r--r-- long \x1b b"),
        Listed(b"a", Entry(0o040755, 1 << 20, 0, 200, 1, 2), b""),
    ]

    def names(flags: str) -> list[bytes]:
        return [file.name for file in ordered(files, frozenset(flags))]

    assert names("") == names("t") == names("S") == [b"a", b"b"]
    assert names("r") == names("tr") == names("f") == [b"b", b"a"]
    long = lines(files, frozenset("l"), 80, 1e9)
    assert long[0] == "-rw-r--r-- long \\033 b"
    assert long[1].startswith("drwxr-xr-x")
    assert long[1].endswith("1970 a")
    assert "1.0M" in lines(files, frozenset("lh"), 80, 1e9)[1]
    assert lines(files, frozenset("1"), 80, 0) == ["b", "a"]
    assert lines([Listed(b"x", Entry())], frozenset("n"), 80, 0)[0].startswith("??????????")


@given(st.integers(0, 1 << 64))
def test_human_sizes_are_short(size: int) -> None:
    assert len(human(size)) <= 5


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.booleans(), st.booleans())
def test_space(total: int, used: int, available: int, readable: bool, inodes: bool) -> None:
    assert len(space(total, used, available, 4096, readable=readable, inodes=inodes)) == 2
