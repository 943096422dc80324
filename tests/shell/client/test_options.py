import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.shell.client.options import UsageError, parse, split_destination, split_hop, split_setting


@pytest.mark.parametrize(
    ("words", "host", "command", "settings"),
    [
        (["h"], "h", (), []),
        (["-vvp22", "u@h"], "h", (), [("loglevel", "DEBUG2"), ("port", "22"), ("user", "u")]),
        (["-p", "22", "h", "ls", "-l"], "h", ("ls", "-l"), [("port", "22")]),
        (["h", "-p", "22", "ls", "-l"], "h", ("ls", "-l"), [("port", "22")]),
        (["h", "--", "-l", "x"], "h", ("-l", "x"), []),
        (["--", "h", "-l"], "h", ("-l",), []),
        (["-4C", "-6", "h"], "h", (), [("addressfamily", "inet6"), ("compression", "yes")]),
        (["-lu", "-l", "v", "h"], "h", (), [("user", "u"), ("user", "v")]),
        (["-l", "u", "v@w@h"], "h", (), [("user", "u"), ("user", "v@w")]),
        (["-oPort=1", "-o", "User u", "-o", "IdentityFile = x", "h"], "h", (), [
            ("port", "1"), ("user", "u"), ("identityfile", "x"),
        ]),
        (["-t", "h"], "h", (), [("requesttty", "yes")]),
        (["-tt", "h"], "h", (), [("requesttty", "force")]),
        (["-Tt", "h"], "h", (), [("requesttty", "yes")]),
        (["-tT", "h"], "h", (), [("requesttty", "no")]),
        (["-MM", "h"], "h", (), [("controlmaster", "ask")]),
        (["-L1:a:2", "-L", "3:b:4", "-Rx", "h"], "h", (), [
            ("localforward", "1:a:2"), ("localforward", "3:b:4"), ("remoteforward", "x"),
        ]),
        (["ssh://u@h:7"], "h", (), [("user", "u"), ("port", "7")]),
        (["ssh://[::1]:7/"], "::1", (), [("port", "7")]),
        (["-A", "-a", "h"], "h", (), [("forwardagent", "no")]),
        (["-o", "ForwardAgent=yes", "-a", "h"], "h", (), [("forwardagent", "no")]),
        (["-q", "h", "-v"], "h", (), [("loglevel", "DEBUG1")]),
    ],
)  # fmt: skip
def test_read_as_ssh_does(words, host, command, settings):
    options = parse(words)
    assert (options.host, options.command) == (host, command)
    assert sorted(options.settings) == sorted(settings)


def test_own_options():
    options = parse(["--direct", "h", "--persistent", "--run=/x", "true"])
    assert options.direct
    assert options.persistent
    assert (options.run, options.command) == ("/x", ("true",))
    assert parse(["--run", "/y", "h"]).run == "/y"
    assert not parse(["h", "ls", "--direct"]).direct


def test_others():
    options = parse(["-W", "a:1", "-E", "log", "-F", "none", "-O", "check", "h"])
    assert (options.stdio_forward, options.log_file, options.config_file) == (("a", 1), "log", "none")
    assert options.control_command == "check"
    assert options.setting("sessiontype") == "none"
    assert parse(["-V"]).version
    assert parse(["-G", "h"]).print_config


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-p"],
        ["-y", "h"],
        ["--other", "h"],
        ["-O", "dance", "h"],
        ["-o", "", "h"],
        ["-oPort", "h"],
        ["-W", "a:1", "-W", "b:1", "h"],
        ["-W", "a", "h"],
        ["@h"],
        ["u@"],
        ["--", "-oProxyCommand=x"],
        ["-l", "u", "--", "u@-x"],
        ["ssh://u@"],
        ["--run"],
    ],
)
def test_refused(words):
    with pytest.raises(UsageError):
        parse(words)


@given(st.lists(st.text(alphabet="-aABCDEfpLRWMNovtT@:= x1", max_size=6), max_size=6))
def test_any_words_are_read_or_refused(words):
    try:
        options = parse(words)
    except UsageError:
        return
    assert options.host or options.version or options.help
    assert not options.host.startswith("-")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h", (None, "h", None)),
        ("u@h:1", ("u", "h", "1")),
        ("a@b@h", ("a@b", "h", None)),
        ("[::1]:2", (None, "::1", "2")),
        ("u@[::1]", ("u", "::1", None)),
        ("fe80::1", (None, "fe80::1", None)),
    ],
)
def test_hops(text, expected):
    assert split_hop(text) == expected


def test_destinations_keep_colons():
    assert split_destination("u@fe80::1") == ("u", "fe80::1", None)


@given(st.text(max_size=30))
def test_settings(text):
    try:
        keyword, value = split_setting(text)
    except UsageError:
        return
    assert keyword == keyword.lower()
    assert value
