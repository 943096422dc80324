import dataclasses
import time
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pqtun.shell.sshd import keyoptions
from pqtun.shell.sshd.keyoptions import KeyOptions, OptionError

RESTRICTED = KeyOptions(pty=False, port_forwarding=False, agent_forwarding=False, x11_forwarding=False)


def replaced(**fields) -> KeyOptions:
    return dataclasses.replace(KeyOptions(), **fields)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("restrict", RESTRICTED),
        ("RESTRICT", RESTRICTED),
        ("restrict,pty", dataclasses.replace(RESTRICTED, pty=True)),
        ("pty,restrict", RESTRICTED),  # later ones win
        ("no-pty", replaced(pty=False)),
        ("no-pty,pty", KeyOptions()),
        ("no-port-forwarding", replaced(port_forwarding=False)),
        ("no-agent-forwarding", replaced(agent_forwarding=False)),
        ("no-X11-forwarding", replaced(x11_forwarding=False)),
        ("user-rc,no-user-rc", KeyOptions()),
        ("cert-authority", replaced(cert_authority=True)),
        ("no-touch-required", replaced(touch_required=False)),
        ("verify-required", replaced(verify_required=True)),
        ('command="date"', replaced(command="date")),
        ('command=""', replaced(command="")),
        (r'command="echo \"a b\""', replaced(command='echo "a b"')),
        (r'command="a\\b\n"', replaced(command=r"a\\b\n")),  # only \" stands for something else
        ('command="a,b c"', replaced(command="a,b c")),
        ('environment="A=1",environment="B=x=y"', replaced(environment=(("A", "1"), ("B", "x=y")))),
        ('environment="A=1",environment="A=2"', replaced(environment=(("A", "1"),))),
        ('environment="A="', replaced(environment=(("A", ""),))),
        ('permitopen="localhost:80"', replaced(permit_open=(("localhost", 80),))),
        ('permitopen="[::1]:80",permitopen="*:*"', replaced(permit_open=(("::1", 80), ("*", None)))),
        ('permitopen="h:http"', replaced(permit_open=(("h", 80),))),
        ('permitlisten="8080"', replaced(permit_listen=(("*", 8080),))),
        ('permitlisten="*"', replaced(permit_listen=(("*", None),))),
        ('permitlisten="localhost:*"', replaced(permit_listen=(("localhost", None),))),
        ('from="10.0.0.0/8,!10.1.1.1"', replaced(sources="10.0.0.0/8,!10.1.1.1")),
        ('principals="alice,admins"', replaced(principals=("alice", "admins"))),
        ('expiry-time="20300102Z"', replaced(expires=datetime(2030, 1, 2, tzinfo=UTC).timestamp())),
    ],
)
def test_options(text, options):
    assert keyoptions.parse(text) == options


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "pty,",
        ",pty",
        "pty,,pty",
        "pty pty",
        "unknown",
        "no-restrict",
        "no-cert-authority",
        "no-command",
        "command",
        "command=",
        "command=date",
        'command="date',
        'command="date"x',
        'command="a",command="b"',
        'from="10.0.0.1",from="10.0.0.2"',
        'from="10.0.0.1/8"',
        'from=""',
        'principals="a",principals="b"',
        'restrict="yes"',
        'tunnel="1"',
        'environment="A"',
        'environment="=x"',
        'environment="A-B=x"',
        'environment="LD_PRELOAD=/tmp/x.so"',
        'environment="BASH_ENV=/tmp/x"',
        'environment="PYTHONPATH=/tmp"',
        'permitopen="80"',
        'permitopen="localhost"',
        'permitopen="localhost:"',
        'permitopen="localhost:0"',
        'permitopen="localhost:65536"',
        'permitopen="localhost/80"',
        'permitopen="[::1:80"',
        'permitopen="[::1]x:80"',
        'permitopen="::1:80"',
        'permitlisten="[::1]"',
        f'permitopen="{"x" * 1025}:1"',
        'expiry-time="2030"',
        'expiry-time="20301301"',
        'expiry-time="20300101T1200"',
        'expiry-time="2030010112"',
        'zap="1"',
        "pt\u0443",
    ],
)
def test_options_that_refuse_the_key(text):
    with pytest.raises(OptionError):
        keyoptions.parse(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("20300102Z", datetime(2030, 1, 2, tzinfo=UTC)),
        ("203001021530UTC", datetime(2030, 1, 2, 15, 30, tzinfo=UTC)),
        ("20300102153045Z", datetime(2030, 1, 2, 15, 30, 45, tzinfo=UTC)),
    ],
)
def test_expiry(text, moment):
    assert keyoptions.expiry(text) == moment.timestamp()


def test_expiry_is_local_time_without_z(monkeypatch):
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "UTC-3")  # three hours east
        time.tzset()
        east = keyoptions.expiry("20300102")
    time.tzset()
    assert east == keyoptions.expiry("20300102Z") - 3 * 3600


def test_the_earliest_expiry_counts():
    text = 'expiry-time="20400101Z",expiry-time="20300101Z",expiry-time="20500101Z"'
    assert keyoptions.parse(text).expires == keyoptions.expiry("20300101Z")


QUOTED = st.text(st.characters(codec="utf-8", exclude_characters='\0\n\r"'), max_size=20).filter(
    lambda text: not text.endswith("\\")
)


@given(QUOTED, QUOTED)
def test_what_stands_in_quotes_is_taken_as_it_is(left, right):
    escaped = f'{left}"{right}'.replace('"', '\\"')
    text = f'command="{escaped}",pty ssh-ed25519 AAAA'
    length = keyoptions.length(text)
    assert length is not None
    assert text[length:] == " ssh-ed25519 AAAA"
    assert keyoptions.parse(text[:length]).command == f'{left}"{right}'


@given(st.text(st.sampled_from('",=\\ \tno-ptycommandrestrictfrom10.*:[]'), max_size=60))
@example('command="\\')
@example('command="\\"')
@example("\\")
def test_any_text(text):
    length = keyoptions.length(text)
    assert length is None or 0 <= length <= len(text)
    try:
        options = keyoptions.parse(text)
    except OptionError:
        return
    assert options == keyoptions.parse(text + ",user-rc")


@given(st.sampled_from(['command="a"', "pty", "restrict", 'from="10.*"', 'permitopen="a:1"']), st.data())
def test_any_part_of_an_option(text, data):
    part = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(OptionError):
        keyoptions.parse(part)


def test_merge_takes_what_both_allow():
    line = keyoptions.parse('no-pty,no-touch-required,environment="A=1",permitopen="a:1"')
    merged = keyoptions.merge(line, replaced(agent_forwarding=False, command="date", verify_required=True))
    assert merged == dataclasses.replace(
        line, agent_forwarding=False, command="date", verify_required=True, touch_required=True
    )


def test_commands_that_contradict_each_other_are_refused():
    with pytest.raises(OptionError):
        keyoptions.merge(replaced(command="a"), replaced(command="b"))
    assert keyoptions.merge(replaced(command="a"), replaced(command="a")).command == "a"
    assert keyoptions.merge(replaced(command=""), KeyOptions()).command == ""
