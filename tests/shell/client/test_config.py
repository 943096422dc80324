"""What a configuration means: beside what OpenSSH's `ssh -G` makes of the same files."""

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell.client.config import Config, expand, resolve
from pqtun.shell.client.configfile import ConfigError, matches, split_words
from pqtun.shell.client.options import parse

_BOTH = {  # of `ssh -G`, and of ours
    "addressfamily": lambda config: config.addressfamily,
    "batchmode": lambda config: _yes(config.batchmode),
    "compression": lambda config: _yes(config.compression),
    "connecttimeout": lambda config: "none" if config.connecttimeout is None else str(config.connecttimeout),
    "controlpath": lambda config: config.controlpath,
    "controlpersist": lambda config: {None: "no", 0: "yes"}.get(config.controlpersist, str(config.controlpersist)),
    "exitonforwardfailure": lambda config: _yes(config.exitonforwardfailure),
    "forwardagent": lambda config: config.forwardagent,
    "forwardx11": lambda config: _yes(config.forwardx11),
    "gatewayports": lambda config: _yes(config.gatewayports),
    "hostkeyalias": lambda config: config.hostkeyalias,
    "hostname": lambda config: config.hostname,
    "identitiesonly": lambda config: _yes(config.identitiesonly),
    "loglevel": lambda config: config.loglevel.replace("DEBUG1", "DEBUG").replace("QUIET", "SILENT"),
    "proxycommand": lambda config: config.proxycommand,
    "proxyjump": lambda config: config.proxyjump,
    "remotecommand": lambda config: config.remotecommand,
    "requesttty": lambda config: {"yes": "true", "no": "false"}.get(config.requesttty, config.requesttty),
    "serveralivecountmax": lambda config: str(config.serveralivecountmax),
    "serveraliveinterval": lambda config: str(config.serveraliveinterval or 0),
    "stricthostkeychecking": lambda config: {"yes": "true", "no": "false"}.get(
        config.stricthostkeychecking, config.stricthostkeychecking
    ),
    "tcpkeepalive": lambda config: _yes(config.tcpkeepalive),
    "user": lambda config: config.user,
}


def _yes(value):
    return "yes" if value else "no"


def theirs(*arguments, path, check=True):
    """The first value of each keyword, the others' too where there are several."""
    done = subprocess.run(
        ["ssh", "-G", "-F", str(path), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )
    if check:
        assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        found.setdefault(keyword, []).append(value)
    return done, found


def compare(path, *arguments):
    _, expected = theirs(*arguments, path=path)
    if expected["compression"] == ["UNKNOWN"]:  # OpenSSH 10.0 for yes
        expected["compression"] = ["yes"]
    config = resolve(parse(["-F", str(path), *arguments]))
    for keyword, of in _BOTH.items():
        value = of(config)
        assert [value] == (expected.get(keyword) or [None]), keyword
    forwards = [f"{forward.kind}forward {_ends(forward)}" for forward in config.forwards if forward.listen_path is None]
    assert forwards == [
        f"{keyword} {value}"
        for keyword in ("localforward", "remoteforward", "dynamicforward")
        for value in expected.get(keyword, [])
    ]
    return config


def _ends(forward):
    def end(host, port):
        return f"[{host}]:{port}"

    listen = str(forward.listen_port) if forward.listen_host is None else end(forward.listen_host, forward.listen_port)
    if forward.socks:
        return listen if forward.kind == "dynamic" else f"{listen} [socks]:0"
    return f"{listen} {end(forward.connect_host, forward.connect_port)}"


@pytest.fixture
def write(tmp_path):
    def to(text, name="config"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return to


@pytest.mark.parametrize(
    "text",
    [
        "",
        "User a\nUser b\n",
        "Host h\n User a\nHost other\n User b\nHost *\n User c\n",
        "Host !h *\n User a\nHost h* !host\n User b\n",
        "Host h?st host\n User a\n",
        "Host=host\nUser=a\n",
        'Host "host" other\n  User "with space"\n',
        "HostName %h.example.net\n",
        "HostName real.example\nMatch host real.example\n User a\nMatch originalhost host\n Compression yes\n",
        "Match final host host\n User late\nHost host\n HostName %h.x\n",
        "Match all\n User a\n",
        "Match user root\n Compression yes\nMatch !user root\n BatchMode yes\n",
        "User x\nMatch user x,y host h*\n Compression yes\n",
        "Match localuser nobody-such\n User a\nMatch exec true\n User b\n",
        'Match exec "test %h = host"\n User a\n',
        "Match !exec true\n User a\nMatch exec false\n User b\n",
        "HostName %h.example\nMatch final\n LogLevel VERBOSE\nMatch canonical\n LogLevel ERROR\n",
        "ProxyJump a,b@c:22\nProxyCommand nc %h %p\n",
        "ProxyCommand nc -x  y \t%h %p # not a comment\nProxyJump a\n",
        "ProxyJump none\n",
        "LocalForward 8080 host:80\nLocalForward 127.0.0.1:1 [::1]:2\nRemoteForward [::1]:9000 host:90\n",
        "DynamicForward 1080\nDynamicForward localhost:1081\n",
        "ClearAllForwardings yes\nLocalForward 8080 host:80\n",
        "ServerAliveInterval 1m30s\nServerAliveCountMax 7\nConnectTimeout 1h\n",
        "ControlPath /tmp/%h-%p-%r-%n-%u\nControlPersist 90\n",
        "ControlPath none\nControlPersist yes\n",
        "RequestTTY force\nForwardAgent yes\nForwardX11 yes\n",
        "StrictHostKeyChecking off\nHostKeyAlias other\nTCPKeepAlive no\n",
        "RemoteCommand echo 'a  b' %%\nGatewayPorts yes\nExitOnForwardFailure yes\n",
        "IdentitiesOnly yes # a comment\n# another\n\n   # and\n\tCompression yes   \n",
        "IgnoreUnknown Foo*,bar\nFooBar x\nBar y\nUser a\n",
        "GSSAPIAuthentication yes\nRekeyLimit 1G\nPreferredAuthentications publickey\nUser a\n",
        "AddressFamily inet6\nLogLevel debug2\n",
    ],
)
def test_as_openssh_reads_it(write, text):
    # It must name a port and a key, for which there are other defaults here.
    compare(write(text + "\nHost *\n  Port 22\n  IdentityFile /nowhere\n"), "host")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "99", "-l", "me", "host"],
        ["-o", "User=x", "y@host"],
        ["y@host", "-o", "User=x"],
        ["-C", "-A", "-X", "-q", "host"],
        ["-o", "ForwardAgent=no", "-A", "-vv", "host"],
        ["-J", "jump", "-o", "ProxyCommand=x", "host"],
        ["-L", "1:b:2", "-R", "c:3:d:4", "-D", "5", "host"],
        ["-6", "-S", "/tmp/x", "-tt", "host"],
        ["-N", "host"],
        ["-W", "a:1", "host"],
    ],
)
def test_the_command_line_comes_first(write, arguments):
    path = write("Port 1\nUser file\nProxyJump filejump\nLocalForward 9 e:9\nCompression no\nLogLevel ERROR\n")
    compare(path, *arguments)


def test_include(write, tmp_path):
    write("User included\nHost other\nCompression yes\n", "a.inc")
    write("Port 77\nTCPKeepAlive no\n", "b.inc")
    path = write(f"Host nothing\nInclude {tmp_path}/a.inc\nHost *\nInclude {tmp_path}/*.inc\nGatewayPorts yes\n")
    config = compare(path, "host")
    assert (config.user, config.port, config.gatewayports, config.compression) == ("included", 77, True, False)


def test_an_endless_include_ends(write, tmp_path):
    path = write(f"Include {tmp_path}/config\n")
    with pytest.raises(ConfigError, match="Too many recursive"):
        resolve(parse(["-F", str(path), "host"]))


@pytest.mark.parametrize(
    ("criteria", "arguments", "holds"),
    [
        ("sessiontype shell", ["host"], True),
        ("sessiontype exec", ["host"], False),
        ("sessiontype exec,shell", ["host", "ls"], True),
        ("sessiontype subsystem command sftp", ["-s", "host", "sftp"], True),
        ("sessiontype none", ["-N", "host"], True),
        ("!sessiontype none", ["-N", "host"], False),
        ('command "ls *"', ["host", "ls", "-l"], True),
        ('command "ls *"', ["host"], False),
        ('command ""', ["host"], True),
        ("version OpenSSH_10.*", ["host"], True),
        ("version OpenSSH_9.*", ["host"], False),
    ],
)
def test_criteria_since_openssh_10(write, criteria, arguments, holds):
    path = write(f"Match {criteria}\n User found\n")
    assert (resolve(parse(["-F", str(path), *arguments])).user == "found") == holds


def test_what_systemd_has_in_ssh_config_is_read(write):
    path = write(
        "Host unix/* vsock/*\n ProxyCommand a %h %p\n ProxyUseFdpass yes\n CheckHostIP no\n\nHost .host\n User x\n"
    )
    assert resolve(parse(["-F", str(path), "host"])).proxycommand is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Nonsense yes\n", "line 1: Bad configuration option: nonsense"),
        ("\n\nPort x\n", "line 3"),
        ("Port 70000\n", "line 1"),
        ("Compression maybe\n", "line 1"),
        ("User\n", "Missing argument"),
        ('User "a\n', "invalid quotes"),
        ("User a b\n", "extra arguments"),
        ("Match nonsense x\n", "Unsupported Match attribute nonsense"),
        ("Match host\n", "Missing Match criteria"),
        ("EscapeChar ab\n", "Bad escape"),
        ("LocalForward 1\n", "Bad forwarding"),
        ("HostName %x\n", "unknown key %x"),
        ("ServerAliveInterval 5x\n", "invalid time"),
        ("LogLevel LOUD\n", "unsupported log level"),
        ("Host other\nPort x\n", "line 2"),
    ],
)
def test_what_ssh_refuses_is_refused(write, text, message):
    path = write(text)
    done, _ = theirs("host", path=path, check=False)
    assert done.returncode != 0
    with pytest.raises(UserError) as caught:
        resolve(parse(["-F", str(path), "host"]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults():
    config = resolve(parse(["-F", "none", "host"]))
    assert (config.port, config.hostname, config.identityfile) == (42422, "host", ())
    assert resolve(parse(["-F", "none", "--direct", "host"])).port == 22
    assert config.sendenv == ("LANG", "LC_*")


def test_paths_are_expanded(write, monkeypatch):
    monkeypatch.setenv("WHERE", "there")
    monkeypatch.setenv("AGENT", "/agent")
    path = write(
        "User u\nIdentityFile ~/%r-%h\nIdentityFile ${WHERE}/k\nIdentityFile ~/%r-%h\nUserKnownHostsFile /a ~/b\n"
        "IdentityAgent $AGENT\nLocalForward /s/%h /d/%r\nCertificateFile %d/c\n"
    )
    config = resolve(parse(["-F", str(path), "host"]))
    home = os.path.expanduser("~")
    assert config.identityfile == (f"{home}/u-host", "there/k")
    assert config.userknownhostsfile == ("/a", f"{home}/b")
    assert config.identityagent == "/agent"
    assert config.certificatefile == (f"{home}/c",)
    assert (config.forwards[0].listen_path, config.forwards[0].connect_path) == ("/s/host", "/d/u")
    with pytest.raises(UserError, match="NOT_THERE"):
        resolve(parse(["-F", "none", "-o", "IdentityFile=${NOT_THERE}", "host"]))


def test_control_paths_are_those_of_openssh(write):
    """So that both may share connections."""
    path = write("ControlPath /tmp/%C\nPort 1\nUser u\n")
    _, expected = theirs("host", path=path)
    assert [resolve(parse(["-F", str(path), "host"])).controlpath] == expected["controlpath"]


def test_others_must_not_write_the_users_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    folder.mkdir()
    (folder / "config").write_text("User a\n")
    (folder / "config").chmod(0o664)
    with pytest.raises(ConfigError, match="Bad owner or permissions"):
        resolve(parse(["host"]))
    (folder / "config").chmod(0o644)
    assert resolve(parse(["host"])).user == "a"
    (folder / "extra").write_text("Port 5\n")
    (folder / "config").write_text("Include extra\n")
    assert resolve(parse(["host"])).port == 5


@given(st.text(alphabet=" \t#\"'\\abc=", max_size=30))
@settings(max_examples=200)
def test_any_line_is_split_or_refused(text):
    try:
        words = split_words(text)
    except ValueError:
        return
    assert all(isinstance(word, str) for word in words)
    if not set(text) & set("#\"'\\"):
        assert words == text.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('a "b c" d', ["a", "b c", "d"]),
        ("a 'b \"c' d", ["a", 'b "c', "d"]),
        ("a\\ b c", ["a b", "c"]),
        ('"a\\"b"', ['a"b']),
        ("a#b #c", ["a#b"]),
        ('a"b"c', ["abc"]),
        ('""', [""]),
        ("a\\\\b \\x", ["a\\b", "\\x"]),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@given(st.text(alphabet="ab*?!,[]", max_size=10), st.text(alphabet="ab[]", max_size=6))
def test_any_pattern(pattern, value):
    assert matches(pattern, value) in (True, False)
    assert not matches(f"*,!{value}", value)


def test_brackets_are_no_classes():
    assert matches("[ab]", "[ab]")
    assert not matches("[ab]", "a")


@given(st.text(max_size=20))
def test_any_text_is_expanded_or_refused(text):
    try:
        assert "%" in text or expand(text, {}) == text
    except UserError:
        assert "%" in text


@given(
    st.lists(st.tuples(st.sampled_from(["User", "Port", "Host", "Match", "x", ""]), st.text(max_size=10)), max_size=8)
)
@settings(max_examples=100)
def test_any_file_is_read_or_refused(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("config") / "c"
    path.write_text("".join(f"{keyword} {value}\n" for keyword, value in lines), errors="surrogatepass", newline="")
    try:
        config = resolve(parse(["-F", str(path), "host"]))
    except UserError:
        return
    assert isinstance(config, Config)


@pytest.mark.parametrize("host", ["a b", "a$(id)", "`id`", "a;b", "a\nb", "a|b", "x" * 2000, "a\\b", "(a)", "a\x1b"])
def test_hosts_that_a_shell_would_read_are_refused(host):
    with pytest.raises(UserError, match="hostname contains"):
        resolve(parse(["-F", "none", host]))


@pytest.mark.parametrize("user", ["a`id`", "a;b", "-x", "a\nb", "a|b"])
def test_users_that_a_shell_would_read_are_refused(user):
    with pytest.raises(UserError, match="username contains"):
        resolve(parse(["-F", "none", "-l", user, "host"]))
