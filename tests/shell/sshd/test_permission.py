import dataclasses
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pqtun.shell.sshd.messages import MessageError
from pqtun.shell.sshd.permission import Permission

TEXTS = st.text(max_size=20)
ENDPOINTS = st.none() | st.lists(st.tuples(TEXTS, st.none() | st.integers(1, 65535)), max_size=4).map(tuple)
PERMISSIONS = st.builds(
    Permission,
    origin=TEXTS,
    key_type=TEXTS,
    fingerprint=TEXTS,
    command=st.none() | TEXTS,
    environment=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
    pty=st.booleans(),
    port_forwarding=st.booleans(),
    agent_forwarding=st.booleans(),
    x11_forwarding=st.booleans(),
    permit_open=ENDPOINTS,
    permit_listen=ENDPOINTS,
    touch_required=st.booleans(),
    verify_required=st.booleans(),
)
PLAIN = Permission(origin="f:1", key_type="ssh-ed25519", fingerprint="SHA256:x")


@given(PERMISSIONS)
def test_through_json_and_back(permission):
    assert Permission.from_json(json.loads(json.dumps(permission.to_json()))) == permission


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@given(st.sampled_from([field.name for field in dataclasses.fields(Permission)]), JSON)
@example("environment", "")
@example("environment", ["ab"])
@example("permit_open", "")
def test_any_value_of_any_field(name, value):
    values = json.loads(json.dumps(PLAIN.to_json())) | {name: value}
    try:
        permission = Permission.from_json(values)
    except MessageError:
        return
    assert json.loads(json.dumps(permission.to_json())) == values


@pytest.mark.parametrize("values", [{}, {"pty": True}, PLAIN.to_json() | {"more": 1}])
def test_other_fields_are_refused(values):
    with pytest.raises(MessageError):
        Permission.from_json(values)


@pytest.mark.parametrize(
    ("endpoints", "host", "port", "permitted"),
    [
        (None, "anything", 1, True),
        ((), "localhost", 80, False),
        ((("localhost", 80),), "localhost", 80, True),
        ((("localhost", 80),), "localhost", 81, False),
        ((("localhost", 80),), "127.0.0.1", 80, False),
        ((("localhost", None),), "localhost", 9, True),
        ((("*", 80),), "example.com", 80, True),
        ((("*", 80),), "example.com", 81, False),
        ((("*", None),), "::1", 1, True),
        ((("*.example.com", 80),), "a.example.com", 80, False),  # no patterns in it, as in sshd
        ((("a", 1), ("b", 2)), "b", 2, True),
        ((("a", 1), ("b", 2)), "a", 2, False),
    ],
)
def test_lists_of_ends(endpoints, host, port, permitted):
    assert dataclasses.replace(PLAIN, permit_open=endpoints).permits(host, port) is permitted
    assert dataclasses.replace(PLAIN, permit_listen=endpoints).permits_listen(host, port) is permitted
    forbidden = dataclasses.replace(PLAIN, permit_open=endpoints, permit_listen=endpoints, port_forwarding=False)
    assert not forbidden.permits(host, port)
    assert not forbidden.permits_listen(host, port)


def test_listening_on_all_addresses_is_what_a_star_names():
    assert dataclasses.replace(PLAIN, permit_listen=(("*", 80),)).permits_listen("", 80)
    assert not dataclasses.replace(PLAIN, permit_listen=(("localhost", 80),)).permits_listen("", 80)


@pytest.mark.parametrize(
    ("endpoints", "permitted"), [(None, True), ((), False), ((("*", None),), True), ((("*", 80),), False)]
)
def test_unix_sockets(endpoints, permitted):
    permission = dataclasses.replace(PLAIN, permit_open=endpoints, permit_listen=endpoints)
    assert permission.permits_unix() is permission.permits_listen_unix() is permitted
    assert not dataclasses.replace(PLAIN, port_forwarding=False).permits_unix()
