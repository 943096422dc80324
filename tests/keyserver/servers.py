"""Key servers over the recorded key, with clocks that stand still."""

from functools import cache

from pqtun.keys.ring import EphemeralRing
from pqtun.keyserver.server import KeyServer
from pqtun.protocol.keytree import KeyTree
from tests.protocol.vectors import public_key


@cache
def the_tree() -> KeyTree:
    return KeyTree(public_key())


def a_server(tree: KeyTree | None = None) -> KeyServer:
    return KeyServer(tree or the_tree(), EphemeralRing(lambda: 1_800_000_010.0, lambda: 5000.0))
