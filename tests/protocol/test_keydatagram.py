import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol import keydatagram as kd
from pqtun.protocol.errors import MessageError
from pqtun.protocol.keytree import NODES, KeyTree, node_length
from tests.protocol.vectors import load, public_key

KNOWN = load("keyserver.json")
EPHEMERAL = KNOWN["ephemeral"]


@pytest.mark.parametrize("case", KNOWN["static"], ids=lambda c: f"{c['depth']}-{c['pos']}")
def test_static_known_answers(case):
    node = case["depth"], case["pos"]
    request, response = bytes.fromhex(case["request"]), bytes.fromhex(case["response"])
    data = KeyTree(public_key()).node(node)
    assert kd.static_request(node) == request
    assert kd.static_response(node, data) == response
    assert kd.parse_request(request) == kd.StaticRequest(node)
    assert kd.parse_response(response) == kd.StaticResponse(node, data)
    assert len(request) == len(response)


def test_ephemeral_known_answers():
    keys = bytes.fromhex(EPHEMERAL["sntrup761_pk"]), bytes.fromhex(EPHEMERAL["x25519_pk"])
    request, response = bytes.fromhex(EPHEMERAL["request"]), bytes.fromhex(EPHEMERAL["response"])
    assert kd.ephemeral_request() == request
    assert kd.ephemeral_response(*keys) == response
    assert kd.parse_request(request) == kd.EphemeralRequest()
    assert kd.parse_response(response) == kd.EphemeralResponse(*keys)
    assert len(request) == len(response)


def test_every_node_can_be_asked_for():
    for node in NODES:
        request = kd.static_request(node)
        assert kd.parse_request(request) == kd.StaticRequest(node)
        assert len(request) == len(kd.static_response(node, bytes(node_length(node))))


REQUESTS = [kd.static_request(node) for node in [(0, 0), (1, 0), (2, 25), (3, 0), (3, 909)]] + [kd.ephemeral_request()]
RESPONSES = [kd.static_response(n, bytes(node_length(n))) for n in [(0, 0), (1, 0), (2, 25), (3, 0), (3, 909)]]
RESPONSES.append(kd.ephemeral_response(bytes(1158), bytes(32)))


@pytest.mark.parametrize("index", range(len(REQUESTS)))
@pytest.mark.parametrize("kind", ["request", "response"])
def test_each_other_size_is_refused(index, kind):
    whole = (REQUESTS if kind == "request" else RESPONSES)[index]
    parse = kd.parse_request if kind == "request" else kd.parse_response
    parse(whole)
    for size in [*range(len(whole)), *range(len(whole) + 1, len(whole) + 40), 2 * len(whole), 4096]:
        with pytest.raises(MessageError):
            parse((whole + bytes(4096))[:size])


@pytest.mark.parametrize("request_", REQUESTS)
def test_padding_that_is_not_zero_is_refused(request_):
    with pytest.raises(MessageError):
        kd.parse_request(request_[:-1] + b"\1")


@given(st.binary(max_size=64), st.sampled_from([b"\xf0\0", b"\xf1\0", b"\xf2\0", b"\xf3\0", b""]))
def test_random_bytes_are_refused(data, kind):
    for parse in (kd.parse_request, kd.parse_response):
        with pytest.raises(MessageError):
            parse(kind + data)


@pytest.mark.parametrize("kind", [b"\xf0\0", b"\xf1\0", b"\xf3\0"])
def test_many_empty_fields_are_refused(kind):
    for fields in (4, 2000):
        for parse in (kd.parse_request, kd.parse_response):
            with pytest.raises(MessageError):
                parse(kind + bytes(2 * fields))


def test_makers_refuse_other_sizes():
    with pytest.raises(ValueError, match="size"):
        kd.static_response((3, 0), bytes(1151))
    with pytest.raises(ValueError, match="size"):
        kd.ephemeral_response(bytes(1158), bytes(31))
    with pytest.raises(ValueError, match="no such node"):
        kd.static_request((3, 910))
