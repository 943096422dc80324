"""The section [sshd]."""

from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.daemon import settings
from pqtun.protocol.errors import UserError


@pytest.fixture
def config(tmp_path):
    def write(text):
        file = tmp_path / "pqtun.toml"
        file.write_text(text)
        return file

    return write


def test_defaults(config):
    loaded, deliver_to = settings.load_sshd(config(""), {})
    assert loaded == settings.SshdSettings()
    assert (loaded.port, loaded.interface, loaded.address, deliver_to) == (42422, "pqtsrv0", None, None)


def test_what_the_servers_section_says(config):
    file = config('[server]\ninterface = "tun9"\naddress = "10.9.0.1/16"\ndeliver_to = "192.0.2.9"\n')
    loaded, deliver_to = settings.load_sshd(file, {})
    assert (loaded.interface, loaded.address, deliver_to) == ("tun9", None, IPv4Address("192.0.2.9"))
    assert settings.load_sshd(file, {"interface": "tun8"})[0].interface == "tun8"


def test_file_and_flags(config):
    file = config(
        '[sshd]\naddress = "10.9.0.1/16"\nauthorized_keys = [".ssh/authorized_keys", "/etc/keys/%u"]\n'
        'allow_users = ["alice", "team-*"]\npam = "none"\ntcp_forwarding = false\naudit = "none"\n'
        'trusted_user_ca_keys = "/etc/ca"\nkeepalive = 0\nport = 2222\n'
    )
    loaded, _ = settings.load_sshd(file, {"port": "2223", "tcp_forwarding": "yes", "deny_users": "eve, mallory"})
    assert loaded.address == IPv4Interface("10.9.0.1/16")
    assert loaded.authorized_keys == (".ssh/authorized_keys", "/etc/keys/%u")
    assert (loaded.allow_users, loaded.deny_users) == (("alice", "team-*"), ("eve", "mallory"))
    assert (loaded.pam, loaded.audit, loaded.trusted_user_ca_keys) == (None, None, Path("/etc/ca"))
    assert (loaded.port, loaded.tcp_forwarding, loaded.keepalive) == (2223, True, 0)


@pytest.mark.parametrize(
    "line",
    [
        'address = "10.9.0.1"',
        'permit_root_login = "yes"',
        "permit_root_login = true",
        'allow_users = ["a b"]',
        'allow_users = [""]',
        "allow_users = [1]",
        "authorized_keys = []",
        'pam = "../shadow"',
        'pam = ""',
        'tcp_forwarding = "maybe"',
        "tcp_forwarding = 1",
        "max_channels = 0",
        "max_channels = 1001",
        "max_startups = 0",
        "keepalive = -1",
        "port = 0",
        "engine = 'auto'",
    ],
)
def test_mistakes(config, line):
    with pytest.raises(UserError, match=f"line 2: .*{line.split()[0]}"):
        settings.load_sshd(config(f"[sshd]\n{line}\n"), {})


def test_mistakes_of_other_sections_show_too(config):
    with pytest.raises(UserError, match="line 2: unknown option"):
        settings.load_sshd(config("[server]\nx = 1\n"), {})


@given(st.lists(st.from_regex(r"[a-z*?%/.-]{1,10}", fullmatch=True), min_size=1, max_size=5))
def test_lists_are_the_same_as_text(words):
    assert settings.patterns(words) == settings.patterns(", ".join(words)) == tuple(words)


@given(st.text() | st.integers() | st.booleans() | st.lists(st.text() | st.integers()) | st.none())
def test_any_value_is_taken_or_refused(value):
    for option in settings.option_names(settings.SshdSettings):
        try:
            settings.parse("sshd", option, value)
        except ValueError:
            continue
