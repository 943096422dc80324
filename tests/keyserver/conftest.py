import pytest

from pqtun.keyserver.server import KeyServer
from pqtun.protocol.keytree import KeyTree, ServerPublicKey
from tests.keyserver.servers import a_server, the_tree
from tests.protocol.vectors import public_key


@pytest.fixture(scope="session")
def tree() -> KeyTree:
    return the_tree()


@pytest.fixture(scope="session")
def other_tree() -> KeyTree:
    key = public_key()
    return KeyTree(ServerPublicKey(bytes(byte ^ 0xFF for byte in key.mceliece_pk), key.x25519_pk))


@pytest.fixture
def server() -> KeyServer:
    return a_server()
