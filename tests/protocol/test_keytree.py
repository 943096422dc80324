import hashlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqtun.protocol.base32 import encode
from pqtun.protocol.keytree import NODES, KeyTree, PartialTree, ServerPublicKey, node_length
from tests.protocol.vectors import load, public_key

KNOWN = load("keytree.json")


@pytest.fixture(scope="module")
def tree():
    return KeyTree(public_key())


def test_known_answers(tree):
    assert tree.keyhash.hex() == KNOWN["keyhash"]
    assert encode(tree.keyhash) == KNOWN["keyhash_base32"]
    for node in KNOWN["nodes"]:
        data = tree.node((node["depth"], node["pos"]))
        assert len(data) == node["len"] == node_length((node["depth"], node["pos"]))
        assert hashlib.sha256(data).hexdigest() == node["sha256"]


def test_dimensions():
    assert [sum(depth == d for depth, _ in NODES) for d in range(4)] == KNOWN["dimensions"] == [1, 1, 26, 910]


@pytest.mark.parametrize("node", [(-1, 0), (4, 0), (0, 1), (1, 1), (2, 26), (3, 910), (3, -1)])
def test_no_such_node(node):
    with pytest.raises(ValueError, match="no such node"):
        node_length(node)
    assert PartialTree(bytes(32)).add(node, b"").rejected == [node]


@pytest.mark.parametrize("sizes", [(1_047_318, 32), (1_047_320, 32), (1_047_319, 31)])
def test_keys_of_another_size(sizes):
    with pytest.raises(ValueError, match="size"):
        KeyTree(ServerPublicKey(bytes(sizes[0]), bytes(sizes[1])))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_any_order_with_duplicates_and_wrong_nodes(tree, seed):
    random = Random(seed)
    partial = PartialTree(tree.keyhash)
    order = [*NODES, *NODES[:50]]
    random.shuffle(order)
    verified = {(0, 0)}
    missing = set(NODES) - verified
    for node in order:
        if random.random() < 0.05:
            wrong = bytearray(tree.node(node))
            wrong[random.randrange(len(wrong))] ^= 1
            added = partial.add(node, bytes(wrong))
            assert not added.verified
            assert all(n in missing or n == node for n in added.rejected)
        added = partial.add(node, tree.node(node))
        assert not set(added.verified) & verified
        verified |= set(added.verified)
        missing -= verified
    for node in sorted(missing):  # those whose wrong version was held when the parent came
        verified |= set(partial.add(node, tree.node(node)).verified)
    assert partial.complete
    assert partial.verified_count == len(NODES)
    assert partial.public_key() == public_key()


def test_a_held_wrong_node_is_rejected_when_its_parent_comes(tree):
    partial = PartialTree(tree.keyhash)
    assert partial.add((3, 0), bytes(1152)) == partial.add((3, 1), tree.node((3, 1)))
    assert partial.is_held((3, 0))
    partial.add((1, 0), tree.node((1, 0)))
    added = partial.add((2, 0), tree.node((2, 0)))
    assert added.rejected == [(3, 0)]
    assert set(added.verified) == {(2, 0), (3, 1)}
    assert not partial.is_held((3, 0))
    assert not partial.complete
    with pytest.raises(ValueError, match="not complete"):
        partial.public_key()


@pytest.mark.parametrize("change", [-1, 1])
def test_each_size_but_the_right_one_is_rejected(tree, change):
    for node in [(1, 0), (2, 25), (3, 909), (3, 0)]:
        data = tree.node(node)
        wrong = data[:-1] if change < 0 else data + b"\0"
        assert PartialTree(tree.keyhash).add(node, wrong).rejected == [node]


def test_the_root_is_the_hash_itself(tree):
    partial = PartialTree(tree.keyhash)
    assert partial.add((0, 0), tree.keyhash).rejected == []
    assert partial.add((0, 0), bytes(32)).rejected == [(0, 0)]
    with pytest.raises(ValueError, match="32 bytes"):
        PartialTree(bytes(31))
